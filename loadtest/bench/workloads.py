"""Texts of a run, and the files that the contestants and the floor read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from loadtest.bench.plan import REALISTIC, UNIFORM, uniform_texts
from loadtest.peers.model import Encoder, ModelFiles
from loadtest.texts import read_questions
from models.store import Store, Version, write_atomic

SEED = 20


def mixes(questions: Path, tokenizer_file: Path) -> dict[str, list[str]]:
    """The texts as they are (distinct, shuffled) and as many of uniform lengths made of their words."""
    distinct = list(dict.fromkeys(" ".join(one.text.split()) for one in read_questions(questions)))
    random.Random(SEED).shuffle(distinct)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()

    def tokens_of(word: str) -> int:
        return len(tokenizer.encode(word, add_special_tokens=False).ids)

    return {REALISTIC: distinct, UNIFORM: list(uniform_texts(distinct, len(distinct), tokens_of, SEED))}


def write_texts(folder: Path, texts: dict[str, list[str]]) -> dict[str, Path]:
    """One file a mix, one text a line, for the floor's process."""
    files = {mix: folder / f"texts-{mix}.txt" for mix in texts}
    for mix, path in files.items():
        write_atomic(path, "".join(f"{text}\n" for text in texts[mix]).encode())
    return files


def popularity(path: Path) -> list[float]:
    """Counts of a recorded log: one number a line, or a .parquet of one request a row with a column `path`.

    Raises ValueError naming the file if it holds neither.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        table = parquet.read_table(path)
        if "path" not in table.column_names:
            raise ValueError(f"{path}: has no column `path`; give a log of one request a row, or one count a line")
        return [float(count) for count in Counter(table["path"].to_pylist()).values()]
    try:
        counts = [float(line) for line in path.read_text().split()]
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give one count a line") from error
    if not counts or min(counts) < 0 or max(counts) <= 0:
        raise ValueError(f"{path}: holds no positive counts; give one count a line")
    return counts


def zipf(exponent: float, ranks: int) -> list[float]:
    """Weights of the ranks 1 to `ranks`: `rank ** -exponent`."""
    return [(rank + 1) ** -exponent for rank in range(ranks)]


def model_files(version: Version, point: str) -> ModelFiles:
    """What the peers serve: the same file and tokenizer. Raises KeyError for an unknown point."""
    manifest = version.manifest
    variant = manifest.variant({one.name: one.variant for one in manifest.points}[point])
    return ModelFiles(
        onnx=str(version.file(variant.model).absolute()),
        tokenizer=str(version.file(manifest.tokenizer).absolute()),
        labels=tuple(manifest.labels),
        pad_id=manifest.pad_id,
        max_tokens=manifest.max_tokens,
        encoder=_encoder(version, variant.layers),
    )


def _encoder(version: Version, layers: int | None) -> Encoder | None:
    """Sizes of the fp32 graph's BERT, by its parameters' names; None if there is no such graph."""
    import onnx

    fp32 = next((one for one in version.manifest.variants if one.precision == "fp32"), None)
    if fp32 is None or layers is None:
        return None
    graph = onnx.load(version.file(fp32.model), load_external_data=False).graph
    shapes = {one.name: list(one.dims) for one in graph.initializer}

    def shape(suffix: str) -> Sequence[int] | None:
        return next((dims for name, dims in shapes.items() if name.endswith(suffix)), None)

    words, positions = shape("word_embeddings.weight"), shape("position_embeddings.weight")
    inner = shape("layer.0.intermediate.dense.bias")
    if words is None or positions is None or inner is None:
        return None
    return Encoder(words[0], positions[0], words[1], inner[0], layers)


def open_version(store: Path, family: str) -> Version:
    """The family's current version."""
    return Store(store).open(family)
