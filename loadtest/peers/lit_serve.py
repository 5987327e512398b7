"""LitServe with dynamic batching.

Settings: batches of at most 16 that wait for at most 5 ms, two workers of one thread each (one a core), one API server.
`fast_queue` is off, as by default: its documentation means it for hundreds of requests a second and more.
"""

from __future__ import annotations

from loadtest.peers.contestant import Wire, tei_body
from loadtest.peers.model import port_from_environment
from loadtest.peers.peer import Peer

PEER = Peer(
    name="LitServe",
    packages=("litserve", "onnxruntime"),
    command=("-m", "loadtest.peers.lit_serve"),
    wire=Wire("/predict", tei_body),
)


if __name__ == "__main__":
    from loadtest.peers.lit_serve_service import server

    server().run(
        host="127.0.0.1",
        port=port_from_environment(),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
