"""The answering core: tokenizer, runtime, batcher, cache. No Ray, no HTTP in here."""
