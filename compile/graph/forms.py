"""The forms a graph can be exported in. Which one is cheapest depends on the lengths served, so it is measured.

`torchscript`  the old tracer's graph, plain attention
`dynamo`       torch.export's graph, plain attention
`mha`          torch.export's graph with one `com.microsoft::MultiHeadAttention` node a layer
`ragged`       the tracer's graph without padding outside attention (see `compile.graph.ragged`)
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function
from transformers.pytorch_utils import Conv1D

from compile.graph.attention import MASKED, causal_bias, padding_bias, softmax_attention
from compile.graph.ragged import RAGGED, RaggedServed
from compile.model import Classifier

_PLAIN, _MHA = "jouleserve_plain", "jouleserve_mha"


def _plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    return softmax_attention(query, key, value, scaling, position_bias, mask), None


def _plain_mask(attention_mask: Tensor, mask_function: Any = None, **_: Any) -> Tensor:
    return causal_bias(attention_mask) if mask_function is causal_mask_function else padding_bias(attention_mask)


def _mha_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    rows, heads, tokens, size = query.shape
    flat = [x.transpose(1, 2).reshape(rows, tokens, heads * size) for x in (query, key, value)]
    made = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        (*flat, None, mask, position_bias),
        {
            "num_heads": heads,
            "scale": float(scaling),
            "mask_filter_value": MASKED,
            "unidirectional": int(bool(getattr(module, "is_causal", False))),
        },
        dtype=query.dtype,
        shape=(rows, tokens, heads * size),
        version=1,
    )
    return made.reshape(rows, tokens, heads, size), None


def _mha_mask(attention_mask: Tensor, mask_function: Any = None, **_: Any) -> Tensor | None:
    return None if mask_function is causal_mask_function else attention_mask.to(torch.int32)


AttentionInterface.register(_PLAIN, _plain_attention)
AttentionInterface.register(_MHA, _mha_attention)
AttentionMaskInterface.register(_PLAIN, _plain_mask)
AttentionMaskInterface.register(_MHA, _mha_mask)


class _Served(nn.Module):
    """The graph's contract: named inputs in, logits alone out."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        logits: Tensor = self.model(input_ids, attention_mask, token_type_ids)[0]
        return logits


def export_form(model: Classifier, form: str, pair: bool, opset: int, path: Path) -> None:
    """Write `model` as an fp32 ONNX file with free `rows` and `tokens` axes, in the given form."""
    # The wrapper goes to eval mode, not the model alone: the exporter restores the wrapper's own training flag.
    wrapper = (RaggedServed(model) if form == "ragged" else _Served(model)).eval()
    model.attend_with({"mha": _MHA, "ragged": RAGGED}.get(form, _PLAIN))
    names = model.family.input_names(pair)
    ids = torch.tensor([[101, 2023, 2003, 1037, 102], [101, 7592, 102, 0, 0], [101, 3437, 2009, 102, 0]])
    ids = ids.clamp(max=int(getattr(model.config, "vocab_size", ids.max())) - 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    sample = (ids, mask, torch.zeros_like(ids))[: len(names)]
    with _quiet(), _linear_projections(model), torch.no_grad():
        if form in ("torchscript", "ragged"):
            axes = {name: {0: "rows", 1: "tokens"} for name in names} | {"logits": {0: "rows"}}
            torch.onnx.export(
                wrapper,
                sample,
                str(path),
                input_names=list(names),
                output_names=["logits"],
                dynamic_axes=axes,
                opset_version=opset,
                dynamo=False,
            )
        else:
            rows, tokens = torch.export.Dim("rows"), torch.export.Dim("tokens")
            program = torch.onnx.export(
                wrapper,
                sample,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes={name: {0: rows, 1: tokens} for name in names},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(str(path))
    model.attend_with("sdpa")


@contextlib.contextmanager
def _linear_projections(model: Classifier) -> Iterator[None]:
    """While open, GPT-2's Conv1D are Linear: their graph is one product of three axes, as every other family's."""
    found = [(parent, name, one) for parent in model.modules() for name, one in parent.named_children()]
    swapped = [(parent, name, one) for parent, name, one in found if isinstance(one, Conv1D)]
    for parent, name, one in swapped:
        linear = nn.Linear(one.nx, one.nf, device="meta")
        linear.weight, linear.bias = nn.Parameter(one.weight.detach().t()), one.bias
        setattr(parent, name, linear)
    try:
        yield
    finally:
        for parent, name, one in swapped:
            setattr(parent, name, one)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' chatter off the terminal; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
