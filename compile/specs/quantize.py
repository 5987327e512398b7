"""What a recipe may say about fewer bits: the file's numbers, and training that expects them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compile.specs.base import Precision, Share, Strict

Method = Literal["dynamic", "static", "weight_only_4bit", "fp16", "none"]
Calibration = Literal["minmax", "percentile"]


class QuantizeSpec(Strict):
    """Which numbers the file computes with, and what that may cost in answers."""

    method: Method = "dynamic"
    """`dynamic`: int8 weights a column, activations rounded by each batch's own range. `static`: int8 with ranges fixed
    on training texts; no ranges to find at run time, but texts unlike those are cut off. `weight_only_4bit`: weights in
    4 bits by blocks of 32, for size. `fp16`: half precision, for CUDA (a CPU only emulates it). `none`: the fp32 graph
    as it is."""
    calibration: Calibration = "minmax"
    """How `static` finds a range: all of what was seen, or all but the farthest thousandth of a percent."""
    calibration_texts: int = Field(default=192, ge=16, le=65536)
    """Training texts on which ranges are found (by `static`, and where activations are smoothed)."""
    min_agreement: Share = 0.99
    """Share of texts on which the file must choose the fp32 graph's label, in served batches; with real labels: answer
    within a twentieth of the standard deviation of that graph's answers."""
    target_agreement: Share = 0.994
    """Remedies go on until validation texts agree this well, so that unseen texts keep `min_agreement`."""
    max_fp32_matmuls: int = Field(default=6, ge=0)
    """At most so many sensitive matrix products stay in fp32."""
    embeddings: bool = True
    """Quantize large embedding tables too: a quarter of the size, no saving in time. No effect on `fp16`."""


class QatSpec(Strict):
    """Fine-tuning with int8's rounding in place, so that the weights settle where rounding hurts little."""

    steps: int = Field(default=300, ge=1, le=100_000)
    batch_rows: int = Field(default=32, ge=1, le=1024)
    learning_rate: float = Field(default=2e-5, gt=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: Share = 0.1
    temperature: float = Field(default=2.0, gt=0)
    hard_weight: float = Field(default=0.2, ge=0)
    """Weight of the loss against the true labels, beside the teacher's softened answers (weight 1)."""
    freeze_embeddings: bool = True
    precision: Precision = "float32"
