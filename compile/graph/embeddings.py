"""Embedding tables in int8, with a scale for every row.

One scale for a whole table (what the general quantizer does) is set by its farthest row; the error that this puts into
every token is larger than that of all matrix products together. A scale a row costs four bytes a row.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MIN_ELEMENTS = 100_000
"""Smaller tables are left alone: they weigh nothing."""


def quantize_tables(model: onnx.ModelProto, min_elements: int = MIN_ELEMENTS) -> list[str]:
    """Replace, in place, every large float table that only `Gather` reads by int8 rows and scales; returns names."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    done = []
    for table in list(model.graph.initializer):
        nodes = readers.get(table.name, [])
        looked_up = bool(nodes) and all(n.op_type == "Gather" and n.input[0] == table.name for n in nodes)
        large = len(table.dims) == 2 and table.data_type == TensorProto.FLOAT and np.prod(table.dims) >= min_elements
        if looked_up and large and all(_axis(node) == 0 for node in nodes):
            _replace(model, table, nodes)
            done.append(table.name)
    return done


def _replace(model: onnx.ModelProto, table: onnx.TensorProto, nodes: list[onnx.NodeProto]) -> None:
    values = numpy_helper.to_array(table)
    scales = np.abs(values).max(axis=1, keepdims=True) / 127
    scales[scales == 0] = 1.0
    rows = np.round(values / scales).astype(np.int8)
    row_name, scale_name = f"{table.name}_rows", f"{table.name}_scales"
    model.graph.initializer.remove(table)
    model.graph.initializer.append(numpy_helper.from_array(rows, row_name))
    model.graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32), scale_name))
    for node in nodes:
        indices, output, stem = node.input[1], node.output[0], node.output[0]
        at = next(i for i, one in enumerate(model.graph.node) if one == node)
        made = [
            helper.make_node("Gather", [row_name, indices], [f"{stem}_row"], name=f"{stem}_row", axis=0),
            helper.make_node("Cast", [f"{stem}_row"], [f"{stem}_float"], name=f"{stem}_float", to=TensorProto.FLOAT),
            helper.make_node("Gather", [scale_name, indices], [f"{stem}_scale"], name=f"{stem}_scale", axis=0),
            helper.make_node("Mul", [f"{stem}_float", f"{stem}_scale"], [output], name=f"{stem}_restored"),
        ]
        model.graph.node.remove(node)
        for offset, one in enumerate(made):
            model.graph.node.insert(at + offset, one)


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)
