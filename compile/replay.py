"""Runs one layer of a model at a time over a fixed set of texts, and shows what goes in and out of its projections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compile.model import Classifier
from compile.text import Encoded, sorted_batches
from compile.training import to_tensors

_ROWS = 32
_STATES = "hidden_states"


class Replay:
    """Token states of every batch, as they enter the layer that is next.

    What a layer is called with besides the states (masks, positions) is recorded from one run of the whole model; it
    does not depend on the layers' weights, so these may change in between.
    """

    def __init__(self, model: Classifier, encoded: Encoded, pad: int) -> None:
        self.model = model
        self._real: list[Tensor] = []
        self._states: list[Tensor] = []
        self._rest: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = [[] for _ in model.layers]
        model.eval()
        hooks = [
            layer.register_forward_pre_hook(self._recorder(at), with_kwargs=True)
            for at, layer in enumerate(model.layers)
        ]
        try:
            with torch.no_grad():
                for rows in sorted_batches(encoded, _ROWS):
                    tensors = to_tensors(encoded, rows, pad)
                    model(**tensors)
                    self._real.append(tensors["attention_mask"].flatten().bool())
        finally:
            for hook in hooks:
                hook.remove()

    def inputs(self, layer: int, projection: nn.Module) -> Iterator[Tensor]:
        """What goes into a projection of the layer that is next, batch by batch: real tokens [tokens, width]."""
        seen: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0])

        yield from self._watched(layer, projection.register_forward_pre_hook(look), seen)

    def outputs(self, layer: int, projection: nn.Module) -> Iterator[Tensor]:
        """What comes out of a projection of the layer that is next, as `inputs`."""
        seen: list[Tensor] = []

        def look(module: nn.Module, args: tuple[Tensor, ...], made: Tensor) -> None:
            seen.append(made)

        yield from self._watched(layer, projection.register_forward_hook(look), seen)

    def advance(self, layer: int) -> None:
        """Let every batch pass the layer, with its weights as they are now."""
        self._states = [self._run(layer, batch) for batch in range(len(self._states))]

    def _watched(self, layer: int, hook: Any, seen: list[Tensor]) -> Iterator[Tensor]:
        try:
            for batch, real in enumerate(self._real):
                self._run(layer, batch)
                found = seen.pop()
                yield found.reshape(-1, found.shape[-1])[real]
        finally:
            hook.remove()

    def _run(self, layer: int, batch: int) -> Tensor:
        args, kwargs = self._rest[layer][batch]
        with torch.no_grad():
            made = self.model.layers[layer](self._states[batch], *args, **kwargs)
        return made if isinstance(made, Tensor) else made[0]

    def _recorder(self, layer: int) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = dict(kwargs)
            states = args[0] if args else rest.pop(_STATES)
            if layer == 0:
                self._states.append(states)
            self._rest[layer].append((args[1:], rest))

        return record
