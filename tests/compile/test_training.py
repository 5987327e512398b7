"""The gate that every trained model must meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")

from compile.passes.probe_forms import ranked
from compile.training import better_than_constant, quality


def context(labels: Any) -> Any:
    validation = type("Split", (), {"labels": labels})
    return type("Context", (), {"dataset": type("Dataset", (), {"validation": validation})})


def test_a_model_that_always_answers_the_commonest_label_fails_and_one_text_more_passes() -> None:
    labels = np.array([0] * 275 + [1] * 133)
    always = np.tile(np.array([1.0, 0.0], dtype=np.float32), (408, 1))
    assert not better_than_constant(quality(always, labels), context(labels)).holds
    always[-1] = (0.0, 1.0)
    assert better_than_constant(quality(always, labels), context(labels)).holds


def test_a_model_that_always_answers_the_mean_fails() -> None:
    labels = np.array([1.0, 2.0, 3.0, 6.0], dtype=np.float32)
    always = np.full((4, 1), labels.mean(), dtype=np.float32)
    assert not better_than_constant(quality(always, labels), context(labels)).holds


def test_of_forms_that_cost_as_good_as_the_same_the_first_named_is_taken() -> None:
    assert ranked({"ragged": 1.02, "torchscript": 1.0, "mha": 1.5}) == ["ragged", "torchscript", "mha"]
    assert ranked({"ragged": 1.1, "torchscript": 1.0, "mha": 1.5}) == ["torchscript", "ragged", "mha"]
