"""Write a torch model as an fp32 ONNX graph, in the cheapest form that answers as torch does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from compile.checkpoint import load
from compile.errors import of_the_machine
from compile.graph.forms import export_form
from compile.graph.sessions import fresh_process_difference, open_session
from compile.measure.size import macs, parameters
from compile.model import Classifier
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.passes.versions import VERSIONS
from compile.text import Ints

FILE = "model.onnx"
MAX_DIFFERENCE = 1e-4
_SHAPES = ((1, 3), (2, 9), (5, 16), (16, 27), (3, 64), (1, 1))


class Export(Pass):
    """model, forms (see `ProbeForms`) -> model.onnx.

    Gates: logits as torch's within 1e-4 (of `Context.answer_unit`) over several shapes with padding, finite logits even
    for a row without a single token, and the same answers in a fresh process that has onnxruntime alone.
    """

    name = "export"
    version = VERSIONS["export"]

    def __init__(self, opset: int) -> None:
        self.opset = opset

    def config(self) -> Mapping[str, Any]:
        """See `Pass.config`."""
        return {"opset": self.opset}

    def call(self, inputs: Inputs, out: Path, context: Context) -> dict[str, Any]:
        """Export in the best-ranked form; fall back to the next where one fails or differs."""
        model = load(inputs["model"].path)
        _calm_padding(model, context)
        tried: dict[str, str] = {}
        for form in inputs["forms"].meta["ranking"]:
            try:
                export_form(model, form, context.dataset.pair, self.opset, out / FILE)
                difference = largest_difference(model, out / FILE, context)
            except Exception as error:  # an exporter may fail in any way; the gate names what is left
                if of_the_machine(error):
                    raise
                tried[form] = f"{type(error).__name__}: {error}"[:300]
                continue
            tried[form] = f"differs from torch by {difference:.3g}"
            if difference <= MAX_DIFFERENCE * context.answer_unit:
                break
        (out / "model.onnx.data").unlink(missing_ok=True)
        return {
            "form": form,
            "tried": tried,
            "layers": model.layer_count,
            "parameters": parameters(model),
            "macs_per_text": macs(model, float(context.test.lengths.mean())),
        }

    def ensures(self, inputs: Inputs, out: Path, meta: Mapping[str, Any], context: Context) -> list[Gate]:
        """Compare the file with torch and with itself elsewhere."""
        if not (out / FILE).is_file():
            return [Gate("graph forms that export", 0, 1, detail=str(meta["tried"]))]
        model = load(inputs["model"].path)
        sample = sample_inputs(5, 16, context, np.random.default_rng(1))
        differs, unit = largest_difference(model, out / FILE, context), context.answer_unit
        return [
            Gate("largest difference from torch", differs, MAX_DIFFERENCE * unit, True),
            Gate("logits that are not finite", masked_row_infinities(out / FILE, context), 0, True),
            Gate("difference in a fresh process", fresh_process_difference(out / FILE, sample, out), 1e-5 * unit, True),
        ]


def _calm_padding(model: Classifier, context: Context) -> None:
    """Give the padding token the vector of the commonest ordinary token.

    Padding is masked, so no answer changes; but its own vector is unlike all others, and in int8 it would set the
    8-bit range of every batch that has any.
    """
    if any(context.pad in row for row in context.train.ids):
        return  # the vocabulary has no padding token, and the one in its place is a word
    counts = Counter(token for row in context.train.ids for token in row[1:-1])
    commonest = counts.most_common(1)[0][0] if counts else context.pad
    words = cast(nn.Embedding, cast(Any, model.encoder).get_input_embeddings())
    with torch.no_grad():
        words.weight[context.pad] = words.weight[commonest]


def sample_inputs(rows: int, tokens: int, context: Context, rng: np.random.Generator) -> dict[str, Ints]:
    """Random tokens with ragged padding; at least one row is full and each has a token."""
    vocabulary = 1 + max(max(row) for row in context.train.ids)
    ids = rng.integers(0, vocabulary, (rows, tokens), dtype=np.int64)
    ids[ids == context.pad] = (context.pad + 1) % vocabulary  # a text holds no padding token
    lengths = rng.integers(1, tokens + 1, rows)
    lengths[0] = tokens
    mask = (np.arange(tokens)[None, :] < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, ids, context.pad)
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (np.arange(tokens) > tokens // 2) * mask}
    return {name: made[name] for name in context.input_names}


def largest_difference(model: Classifier, path: Path, context: Context) -> float:
    """Largest |logit difference| between torch and the graph over all sample shapes; NaN counts as infinite."""
    session = open_session(path)
    model.attend_with("sdpa")
    rng, worst = np.random.default_rng(0), 0.0
    limit = model.family.position_limit(model.config.to_dict())
    for rows, tokens in _SHAPES:
        arrays = sample_inputs(rows, min(tokens, limit), context, rng)
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(a) for name, a in arrays.items()})[0].numpy()
        difference = np.abs(session.run(["logits"], arrays)[0] - expected).max()
        worst = max(worst, float("inf") if np.isnan(difference) else float(difference))
    return worst


def masked_row_infinities(path: Path, context: Context) -> int:
    """How many logits are not finite when one row of a batch has no token at all."""
    arrays = sample_inputs(4, 12, context, np.random.default_rng(2))
    arrays["attention_mask"][1] = 0
    logits = open_session(path).run(["logits"], arrays)[0]
    return int((~np.isfinite(logits)).sum())
