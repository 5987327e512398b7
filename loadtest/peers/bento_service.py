"""What BentoML runs. No postponed annotations here: BentoML reads the types of the method."""

from typing import Any

import bentoml  # type: ignore[import-not-found, unused-ignore]

from loadtest.peers.model import MAX_ROWS, WORKERS, ModelFiles, OnnxModel


@bentoml.service(workers=WORKERS, traffic={"timeout": 60}, logging={"access": {"enabled": False}})  # type: ignore[misc, untyped-decorator, unused-ignore]
class Classifier:
    """The model behind BentoML's API."""

    def __init__(self) -> None:
        self._model = OnnxModel(ModelFiles.from_environment())

    @bentoml.api(batchable=True, max_batch_size=MAX_ROWS, max_latency_ms=10_000)  # type: ignore[misc, untyped-decorator, unused-ignore]
    def predict(self, inputs: list[str]) -> list[dict[str, Any]]:
        """One answer a text of the batch."""
        return self._model.predict(inputs)
