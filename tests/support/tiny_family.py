"""A family that adds up one row of a table per token: real ONNX, real tokenizer, answers that can be foretold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from models.manifest import Cascade, CostModel, Evidence, Manifest, OperatingPoint, TargetCpu, Variant
from models.store import Store, Version, file_ref

Table = NDArray[np.float32]
LABELS = ("card", "refund", "parcel")
WORDS = ("[PAD]", "[UNK]", *LABELS, "please", "my", "where", "poison", *(f"w{i}" for i in range(50)))
MAX_TOKENS = 64
CHEAPER = {"full": 2.0, "lite": 1.0, "nano": 0.5}
ACCURACY = {"full": 0.97, "lite": 0.95, "nano": 0.90}
CASCADE = "full-nano"
NUMBERS = {"card": 1.0, "refund": -2.0, "parcel": 400.0}
"""What each word adds to the answer of a regression."""


def publish_tiny_family(
    store: Store,
    family: str = "tiny",
    scale: float = 1.0,
    pair: bool = False,
    threshold: float | None = None,
    regression: bool = False,
) -> Version:
    """Publish a version. `lite` and `nano` score half and a quarter of what `full` does, so that one can tell which
    answered; `scale` tells versions apart. The word `poison` gives not-a-number. With a `threshold`, the second point
    is a cascade that asks `nano` and, where its largest probability is below that, `full`. A `regression` adds up
    `NUMBERS` instead."""
    columns = _one_column() if regression else _a_column_each()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_tokenizer(folder / "tokenizer.json")
        variants, points = [], []
        for rank, variant in enumerate(CHEAPER):
            _write_graph(folder / f"{variant}.onnx", columns * (scale / 2**rank))
            variants.append(_variant(folder, variant))
            points.append(_point(variant))
        if threshold is not None:
            points.insert(1, _cascade(threshold))
        manifest = Manifest(
            family=family,
            created_utc="2026-01-01T00:00:00Z",
            task="text-regression" if regression else "text-classification",
            pair=pair,
            labels=("score",) if regression else LABELS,
            max_tokens=MAX_TOKENS,
            tokenizer=file_ref(folder, "tokenizer.json"),
            variants=tuple(variants),
            points=tuple(points),
            teacher_accuracy=1.0,
            target_cpu=TargetCpu(model="any", vnni=False, reduce_range=False),
            dataset_sha256="0" * 64,
        )
        return store.publish(manifest, folder)


def _write_tokenizer(path: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(path))


def _a_column_each() -> Table:
    table = np.zeros((len(WORDS), len(LABELS)), dtype=np.float32)
    for column, label in enumerate(LABELS):
        table[WORDS.index(label), column] = 1
    return table


def _one_column() -> Table:
    table = np.zeros((len(WORDS), 1), dtype=np.float32)
    for word, number in NUMBERS.items():
        table[WORDS.index(word)] = number
    return table


def _write_graph(path: Path, table: Table) -> None:
    table[WORDS.index("poison")] = np.nan
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["rows", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "second"], ["logits"], keepdims=0),
    ]
    shape = ["rows", "tokens"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", table.shape[1]])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "second"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def _variant(folder: Path, name: str) -> Variant:
    accuracy = ACCURACY[name]
    return Variant(
        name=name,
        precision="fp32",
        layers=1,
        graph_form="table",
        model=file_ref(folder, f"{name}.onnx"),
        cost=CostModel(fixed_ns=1e5, linear_ns=1e4, quadratic_ns=10),
        evidence=Evidence(
            accuracy=accuracy,
            accuracy_lower=accuracy - 0.01,
            relative_accuracy=accuracy,
            test_rows=100,
            parameters=len(WORDS) * len(LABELS),
            size_bytes=1000,
            cpu_seconds_per_1k=CHEAPER[name],
        ),
    )


def _point(name: str) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        variant=name,
        accuracy=ACCURACY[name],
        accuracy_lower=ACCURACY[name] - 0.01,
        relative_accuracy=ACCURACY[name],
        cpu_seconds_per_1k=CHEAPER[name],
    )


def _cascade(threshold: float) -> OperatingPoint:
    return OperatingPoint(
        name=CASCADE,
        variant="full",
        cascade=Cascade(first="nano", temperature=1.0, threshold=threshold, escalated_share=0.5),
        accuracy=0.96,
        accuracy_lower=0.95,
        relative_accuracy=0.96,
        cpu_seconds_per_1k=1.5,
    )
