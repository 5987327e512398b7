"""Fewer bits in an ONNX graph: int8 by dynamic or fixed ranges, 4-bit weights, half precision.

Which matrix products suffer most from it is told by `by_sensitivity`.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from compile.graph.embeddings import quantize_tables
from compile.graph.smoothing import BLOCK, Floats, activations, matmuls, rounding_error
from compile.text import Encoded

Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest value of tensors by name."""

_FAR_SHARE = 1e-5
"""The share of values that a percentile range leaves out at either end."""
_PRODUCTS = ["MatMul", "Gemm"]
_ALL_PRODUCTS = (*_PRODUCTS, "MatMulInteger", "MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
_SHORT = (
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
    onnx.TensorProto.FLOAT16,
)
_INT8_COMPUTE = 4
"""`accuracy_level` at which a 4-bit product rounds its activations to 8 bits by blocks, the fastest on a CPU."""


def quantize_int8(
    source: Path, target: Path, keep_fp32: Sequence[str], reduce_range: bool, embeddings: bool
) -> list[str]:
    """Write `source` with int8 weights (per channel, symmetric) and dynamically quantized activations.

    `keep_fp32` names nodes left alone; `embeddings` says whether large tables become int8 (see `graph.embeddings`).
    `reduce_range` (7-bit weights) is for CPUs whose 8-bit dot products saturate.
    Returns the names of the matrix products that are to be; `products_in_fewer_bits` counts those that are.
    """
    model, named = _prepared(source, keep_fp32, embeddings)
    with _quiet():
        quantize_dynamic(
            model,
            str(target),
            op_types_to_quantize=_PRODUCTS,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            # The quantizer first turns each Gemm into a MatMul, under a name of its own.
            nodes_to_exclude=[name for kept in keep_fp32 for name in (kept, f"{kept}_MatMul")],
            # A contrib node hides the types behind it: say that they are float. Products of two activations stay fp32.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
    return named


def quantize_static(
    source: Path, target: Path, keep_fp32: Sequence[str], reduce_range: bool, embeddings: bool, ranges: Ranges
) -> list[str]:
    """Write `source` with int8 weights (per channel, symmetric) and uint8 activations of fixed ranges, in QDQ form.

    `ranges` must hold the left side of every product (see `calibrate`). Results of products stay fp32, since what
    follows them (norms, softmax, the residual stream) does. The rest as in `quantize_int8`.
    """
    model, named = _prepared(source, keep_fp32, embeddings)
    # The quantizer passes over tensors whose type it cannot tell, such as those behind a contrib node.
    known = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ranges]
    model.graph.value_info.extend(known)
    limits = {
        name: TensorData(lowest=np.float32(min(low, 0.0)), highest=np.float32(max(high, 0.0)))
        for name, (low, high) in ranges.items()
    }
    with _quiet():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
            nodes_to_quantize=named,
            nodes_to_exclude=[],
            op_types_to_quantize=_PRODUCTS,
            extra_options={
                "DefaultTensorType": onnx.TensorProto.FLOAT,
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": _PRODUCTS,
            },
        )
        quantizer.quantize_model()
    _round_for_products_alone(quantizer.model.model)
    onnx.save(quantizer.model.model, str(target))
    return named


def quantize_4bit(source: Path, target: Path, keep_fp32: Sequence[str], embeddings: bool) -> list[str]:
    """Write `source` with 4-bit weights (symmetric, a scale for each block of a column); see `quantize_int8`."""
    model, named = _prepared(source, keep_fp32, embeddings)
    whole = ONNXModel(model)
    whole.replace_gemm_with_matmul()
    with _quiet():
        quantizer = MatMulNBitsQuantizer(
            whole.model,
            bits=4,
            block_size=BLOCK,
            is_symmetric=True,
            accuracy_level=_INT8_COMPUTE,
            nodes_to_exclude=[name for kept in keep_fp32 for name in (kept, f"{kept}_MatMul")],
        )
        quantizer.process()
    onnx.save(quantizer.model.model, str(target))
    return named


def to_fp16(source: Path, target: Path, keep_fp32: Sequence[str]) -> list[str]:
    """Write `source` in half precision, logits and the named products in single; returns the products in half."""
    model, named = _prepared(source, keep_fp32, embeddings=False)
    with _quiet():
        halved = convert_float_to_float16(model, keep_io_types=["logits"], node_block_list=list(keep_fp32))
    made = ONNXModel(halved)
    made.topological_sort()
    onnx.checker.check_model(made.model)
    onnx.save(made.model, str(target))
    return named


def products_in_fewer_bits(path: Path) -> int:
    """Matrix products of a written graph whose constant side has fewer than 32 bits."""
    model = onnx.load(str(path))
    short = {i.name for i in model.graph.initializer if i.data_type in _SHORT}
    # Fixed ranges: an 8-bit constant reaches its product by way of a dequantizer.
    short |= {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in short}
    return sum(n.op_type in _ALL_PRODUCTS and n.input[1] in short for n in model.graph.node)


def calibrate(
    source: Path, encoded: Encoded, batches: Sequence[Sequence[int]], pad: int, percentile: bool
) -> dict[str, tuple[float, float]]:
    """Range of the left side of every product with a constant right side, over some batches of texts.

    All values that were seen, or without the farthest `_FAR_SHARE` at either end.
    """
    model = onnx.load(str(source))
    names = sorted({node.input[0] for node in matmuls(model)})
    made = activations(model, names, encoded, batches, pad)
    shares = (_FAR_SHARE, 1 - _FAR_SHARE) if percentile else (0.0, 1.0)
    return {name: (float(low), float(high)) for name in names for low, high in [np.quantile(made[name], shares)]}


def head_nodes(source: Path) -> list[str]:
    """Names of the products that make the logits: the head is tiny, and its errors are the answer's."""
    model = onnx.load(str(source), load_external_data=False)
    makers = {output: node for node in model.graph.node for output in node.output}
    node = makers.get("logits")
    while node is not None and node.op_type not in _PRODUCTS:
        node = makers.get(node.input[0])
    return [] if node is None else [node.name]


def by_sensitivity(
    source: Path, encoded: Encoded, rows: Sequence[int], pad: int, weight_only_4bit: bool = False
) -> list[tuple[str, float]]:
    """Matrix products with a constant side, the most sensitive first, with their relative error in int8 (or 4 bits).

    See `rounding_error`; the activations are those that the given rows cause.
    """
    model = onnx.load(str(source))
    weights = {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}
    nodes = matmuls(model)
    made = activations(model, sorted({node.input[0] for node in nodes}), encoded, [rows], pad)
    ranked = []
    for node in nodes:
        weight: Floats = weights[node.input[1]].T if _transposed(node) else weights[node.input[1]]
        ranked.append((node.name, rounding_error(made[node.input[0]], [weight], weight_only_4bit=weight_only_4bit)))
    return sorted(ranked, key=lambda item: (-item[1], item[0]))


def _prepared(source: Path, keep_fp32: Sequence[str], embeddings: bool) -> tuple[onnx.ModelProto, list[str]]:
    """The graph, ready to be quantized, and the names of the products that will be."""
    model = onnx.load(str(source))
    # Shapes that the exporter recorded go stale as nodes are replaced, and the quantizers trust them.
    del model.graph.value_info[:]
    named = [node.name for node in matmuls(model) if node.name not in keep_fp32]
    if embeddings:
        quantize_tables(model)
    return model, named


def _round_for_products_alone(model: onnx.ModelProto) -> None:
    """The quantizer rounds a tensor for all who read it: norms and the residual stream get the exact one back."""
    del model.graph.value_info[:]
    rounded = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    restored = {
        node.output[0]: rounded[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded
    }
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS:
            for at, name in enumerate(node.input):
                node.input[at] = restored.get(name, name)


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
