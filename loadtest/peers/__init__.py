"""The contestants of the benchmark. Each module describes one, and is what runs when that one is started."""
