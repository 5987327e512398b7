"""Dynamic int8 of an ONNX graph, and which of its matrix products suffer most from it."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from compile.graph.embeddings import quantize_tables
from compile.graph.smoothing import activations, matmuls, rounding_error
from compile.text import Encoded


def quantize_int8(
    source: Path, target: Path, keep_fp32: Sequence[str], reduce_range: bool, embeddings: bool
) -> list[str]:
    """Write `source` with int8 weights (per channel, symmetric) and dynamically quantized activations.

    `keep_fp32` names nodes left alone; `embeddings` says whether large tables become int8 (see `graph.embeddings`).
    `reduce_range` (7-bit weights) is for CPUs whose 8-bit dot products saturate.
    Returns the names of the matrix products that were quantized.
    """
    model = onnx.load(str(source))
    # Shapes that the exporter recorded go stale as nodes are replaced, and the quantizer trusts them.
    del model.graph.value_info[:]
    named = [node.name for node in matmuls(model) if node.name not in keep_fp32]
    if embeddings:
        quantize_tables(model)
    with _quiet():
        quantize_dynamic(
            model,
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            # The quantizer first turns each Gemm into a MatMul, under a name of its own.
            nodes_to_exclude=[name for kept in keep_fp32 for name in (kept, f"{kept}_MatMul")],
            # A contrib node hides the types behind it: say that they are float. Products of two activations stay fp32.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
    return named


def head_nodes(source: Path) -> list[str]:
    """Names of the products that make the logits: the head is tiny, and its errors are the answer's."""
    model = onnx.load(str(source), load_external_data=False)
    makers = {output: node for node in model.graph.node for output in node.output}
    node = makers.get("logits")
    while node is not None and node.op_type not in ("MatMul", "Gemm"):
        node = makers.get(node.input[0])
    return [] if node is None else [node.name]


def by_sensitivity(source: Path, encoded: Encoded, rows: Sequence[int], pad: int) -> list[tuple[str, float]]:
    """Matrix products with a constant side, the most sensitive first, with their relative error in int8.

    See `rounding_error`; the activations are those that the given rows cause.
    """
    model = onnx.load(str(source))
    weights = {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}
    nodes = matmuls(model)
    made = activations(model, sorted({node.input[0] for node in nodes}), encoded, [rows], pad)
    ranked = []
    for node in nodes:
        weight = weights[node.input[1]].T if _transposed(node) else weights[node.input[1]]
        ranked.append((node.name, rounding_error(made[node.input[0]], [weight])))
    return sorted(ranked, key=lambda item: (-item[1], item[0]))


def _transposed(node: onnx.NodeProto) -> bool:
    attributes: Mapping[str, int] = {a.name: a.i for a in node.attribute}
    return node.op_type == "Gemm" and bool(attributes.get("transB", 0))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
