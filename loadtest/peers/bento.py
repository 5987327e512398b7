"""BentoML with adaptive batching.

Settings: two workers (one a core) of one thread each; batches of at most 16; a latency bound of 10 s, because BentoML
refuses (503) what it expects to answer later than that, and at 1 s it refused a fifth of 64 clients; request logging
off. The batchable method is the API that is asked, which takes a list: the client sends lists of one text.
"""

from __future__ import annotations

import json
import os
import sys

from loadtest.peers.contestant import Wire
from loadtest.peers.model import port_from_environment
from loadtest.peers.peer import Peer


def list_body(text: str) -> bytes:
    """A batchable API wants a list."""
    return json.dumps({"inputs": [text]}, ensure_ascii=False).encode()


PEER = Peer(
    name="BentoML",
    packages=("bentoml", "onnxruntime"),
    command=("-m", "loadtest.peers.bento"),
    wire=Wire("/predict", list_body),
    environment={"BENTOML_DO_NOT_TRACK": "True"},
)


if __name__ == "__main__":
    port = str(port_from_environment())
    arguments = ["serve", "loadtest.peers.bento_service:Classifier", "--host", "127.0.0.1", "--port", port]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])
