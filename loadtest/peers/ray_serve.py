"""A plain Ray Serve deployment with `@serve.batch`, as its documentation shows it.

Settings: Ray's and Serve's defaults (Python proxy, one replica), batches of at most 16 that wait for at most 10 ms (the
documented default), and `max_ongoing_requests` of 256: at its default of 5 no batch larger than 5 could ever form, and
the documentation of batching says to raise it. The model is called in the replica's own thread, as in the
documentation's example.
"""

from __future__ import annotations

import signal
from typing import Any

from loadtest.peers.contestant import Wire, tei_body
from loadtest.peers.model import MAX_ROWS, ModelFiles, OnnxModel, port_from_environment
from loadtest.peers.peer import Peer

PEER = Peer(
    name="Ray Serve @serve.batch",
    packages=("ray.serve", "onnxruntime"),
    command=("-m", "loadtest.peers.ray_serve"),
    wire=Wire("/predict", tei_body),
    environment={"RAY_USAGE_STATS_ENABLED": "0"},
    sleeps=False,  # Ray takes processes that do not report for dead
)


def deployment(serve: Any) -> Any:
    """The deployment, bound to its model; `serve` is `ray.serve`."""
    from starlette.requests import Request

    @serve.deployment(max_ongoing_requests=256)  # type: ignore[untyped-decorator, unused-ignore]
    class Classifier:
        def __init__(self, files: ModelFiles) -> None:
            self._model = OnnxModel(files)

        @serve.batch(max_batch_size=MAX_ROWS, batch_wait_timeout_s=0.01)  # type: ignore[untyped-decorator]
        async def predict(self, texts: list[str]) -> list[dict[str, Any]]:
            return self._model.predict(texts)

        async def __call__(self, request: Request) -> Any:
            return await self.predict((await request.json())["inputs"])

    return Classifier.bind(ModelFiles.from_environment())  # type: ignore[attr-defined, unused-ignore]


def main() -> None:
    """Serve until SIGTERM."""
    import ray
    from ray import serve

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ray.init(address="local", log_to_driver=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port_from_environment()})
        serve.run(deployment(serve), route_prefix="/predict")
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
