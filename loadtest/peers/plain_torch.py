"""A plain FastAPI server around a transformers model in fp32, as people write it.

Settings: one uvicorn worker; a plain `def` route, which FastAPI runs in its thread pool; `torch.inference_mode`; no
batching; torch's own number of threads. That is the shape of most tutorials, and it is the only contestant that does
not run the int8 file. The architecture is that of our full model; the weights are drawn at random, because what a
forward pass costs does not depend on them (nobody looks at its answers).
"""

from __future__ import annotations

from typing import Any

from loadtest.peers.contestant import Wire, tei_body
from loadtest.peers.model import ModelFiles, port_from_environment
from loadtest.peers.peer import Peer

PEER = Peer(
    name="FastAPI + torch fp32",
    packages=("fastapi", "torch", "transformers", "uvicorn"),
    command=("-m", "loadtest.peers.plain_torch"),
    wire=Wire("/predict", tei_body),
    environment={"HF_HUB_OFFLINE": "1"},
)


def app_of(files: ModelFiles) -> Any:
    """The whole server."""
    import torch
    from fastapi import FastAPI
    from pydantic import BaseModel
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    sizes = files.encoder
    if sizes is None:
        raise SystemExit("the family's fp32 graph names no BERT; this contestant can serve nothing else")
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.positions,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_labels=len(files.labels),
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=files.tokenizer, pad_token="[PAD]")

    class Question(BaseModel):
        inputs: str

    app = FastAPI()

    def predict(question: Question) -> dict[str, Any]:
        encoded = tokenizer(
            question.inputs, truncation=True, max_length=files.max_tokens, return_tensors="pt", padding=False
        )
        with torch.inference_mode():
            shares = model(**encoded).logits.softmax(dim=-1)[0]
        best = int(shares.argmax())
        return {"label": files.labels[best], "score": float(shares[best])}

    # The class is local, so its name in the annotation cannot be looked up later.
    predict.__annotations__["question"] = Question
    app.post("/predict")(predict)
    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        app_of(ModelFiles.from_environment()), host="127.0.0.1", port=port_from_environment(), log_level="warning"
    )
