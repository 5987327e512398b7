"""TorchServe's handler: packed into a model archive, called with one list of requests a batch."""

from __future__ import annotations

import json
from typing import Any

from loadtest.peers.model import ModelFiles, OnnxModel

_state: dict[str, OnnxModel] = {}


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, Any]]:
    """One answer a request."""
    if "model" not in _state:
        _state["model"] = OnnxModel(ModelFiles.from_environment())
    if data is None:
        return []
    return _state["model"].predict([_text(one) for one in data])


def _text(request: dict[str, Any]) -> str:
    body = request.get("body", request.get("data"))
    parsed = body if isinstance(body, dict) else json.loads(body or b"{}")
    text: str = parsed["inputs"]
    return text
