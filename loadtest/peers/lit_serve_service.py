"""What LitServe runs. A module of its own, because LitServe's workers import the class by its name. No postponed
annotations here: LitServe reads the types of the methods."""

from typing import Any

import litserve  # type: ignore[import-not-found, unused-ignore]

from loadtest.peers.model import MAX_ROWS, WORKERS, ModelFiles, OnnxModel


class Classifier(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """The model behind LitServe's hooks."""

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        self._model = OnnxModel(ModelFiles.from_environment())

    def decode_request(self, request: dict[str, Any]) -> Any:
        """The text of a request."""
        return request["inputs"]

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """One answer a text of the batch."""
        return self._model.predict(texts)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


def server() -> Any:
    """The server, not yet running."""
    api = Classifier(max_batch_size=MAX_ROWS, batch_timeout=0.005)
    return litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
