"""Accuracy of classes and of real numbers (R2), with bounds that hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile import bootstrap
from compile.bootstrap import clipped_r2s, r2_lower, relative_accuracy_lower, relative_r2_lower
from compile.judging import judge
from compile.measure.accuracy import wilson_lower
from compile.measure.scores import Floats, r2

RESAMPLES = 200
seeds = st.integers(0, 2**32 - 1)
noises = st.floats(0, 3)


def drawn(seed: int, rows: int, *noise: float) -> list[Floats]:
    """Targets of variance 1, then answers that are off by so much each."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=rows)
    return [targets, *(targets + one * rng.normal(size=rows) for one in noise)]


@given(seeds, st.integers(1, 60), noises, noises)
def test_the_bounds_of_numbers_lie_between_0_and_the_figure_and_are_the_same_each_time(
    seed: int, rows: int, noise: float, teacher_noise: float
) -> None:
    targets, answers, teachers = (one.astype(np.float32) for one in drawn(seed, rows, noise, teacher_noise))
    judged = judge(targets, answers[:, None], teachers[:, None], seed)
    assert 0 <= judged.accuracy_lower <= judged.accuracy <= 1
    assert judged.relative_accuracy_lower >= 0
    assert judged == judge(targets, answers[:, None], teachers[:, None], seed)
    alone = judge(targets, teachers[:, None], teachers[:, None], seed)
    assert alone.relative_accuracy == (1 if alone.accuracy else 0)
    assert alone.relative_accuracy_lower in (0, 1)


@given(seeds, noises, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_the_unit_of_the_labels_changes_no_figure(seed: int, noise: float, scale: float, shift: float) -> None:
    targets, answers = drawn(seed, 50, noise)
    moved = [scale * one + shift for one in (targets, answers)]
    assert r2(*moved) == pytest.approx(r2(targets, answers), abs=1e-6)
    assert r2_lower(*moved, seed, RESAMPLES) == pytest.approx(r2_lower(targets, answers, seed, RESAMPLES), abs=1e-6)


@given(seeds, st.integers(2, 40), st.integers(1, 50))
def test_resampled_figures_are_those_of_the_resampled_rows_however_many_are_drawn_at_once(
    seed: int, rows: int, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "_PICKS_AT_ONCE", at_once * rows)
        targets, answers, others = drawn(seed, rows, 0.5, 1.5)
        made = clipped_r2s(targets, [answers, others], 20, seed)
        picks = np.random.default_rng(seed).integers(0, rows, (20, rows))
    for row, one in zip(made, (answers, others), strict=True):
        expected = [np.clip(r2(targets[p], one[p]), 0, 1) if np.ptp(targets[p]) else 0 for p in picks]
        assert row == pytest.approx(np.array(expected), abs=1e-9)


def test_the_lower_bound_of_r2_is_below_the_truth_about_as_often_as_it_says() -> None:
    # Noise of half the targets' deviation leaves an R2 of 0.75; of the teacher's 0.8 that is 0.9375.
    below = relative_below = 0
    for seed in range(300):
        targets, answers, teachers = drawn(seed, 200, 0.5, np.sqrt(0.2))
        below += r2_lower(targets, answers, seed, RESAMPLES) <= 0.75
        relative_below += relative_r2_lower(targets, answers, teachers, seed, RESAMPLES) <= 0.75 / 0.8
    assert 0.9 <= below / 300 <= 0.99
    assert 0.9 <= relative_below / 300 <= 0.99


def test_pairing_makes_a_relative_figure_surer_than_either() -> None:
    targets, teachers = drawn(1, 200, 0.5)
    answers = teachers + 0.05 * np.random.default_rng(2).normal(size=200)
    relative = relative_r2_lower(targets, answers, teachers, seed=3)
    assert relative > r2_lower(targets, answers, seed=3) / r2(targets, teachers)
    assert relative > 0.98


def test_r2_of_known_cases() -> None:
    targets = np.array([1.0, 2.0, 3.0, 4.0])
    assert r2(targets, targets) == 1
    assert r2(targets, np.full(4, 2.5)) == 0
    assert r2(targets, targets + 0.5) == pytest.approx(1 - 0.25 / 1.25)
    assert r2(np.full(4, 2.0), targets) == -np.inf


def test_answers_worse_than_the_mean_count_as_0_and_so_does_what_is_relative_to_them() -> None:
    targets, good = (one.astype(np.float32) for one in drawn(1, 50, 0.1))
    poor = (-targets)[:, None]
    judged = judge(targets, poor, good[:, None], 1)
    assert (judged.accuracy, judged.accuracy_lower, judged.relative_accuracy) == (0, 0, 0)
    beside_poor = judge(targets, good[:, None], poor, 1)
    assert beside_poor.accuracy > 0.9
    assert (beside_poor.relative_accuracy, beside_poor.relative_accuracy_lower) == (0, 0)


def test_classes_are_judged_by_the_share_of_right_ones() -> None:
    labels = np.array([0, 1, 1, 0, 1], dtype=np.int64)
    logits = np.array([[2, 1], [1, 2], [2, 1], [2, 1], [1, 2]], dtype=np.float32)
    teacher = np.array([[2, 1], [1, 2], [1, 2], [2, 1], [1, 2]], dtype=np.float32)
    judged = judge(labels, logits, teacher, 3)
    assert (judged.accuracy, judged.accuracy_lower, judged.relative_accuracy) == (0.8, wilson_lower(4, 5), 0.8)
    right = np.array([True, True, False, True, True])
    assert judged.relative_accuracy_lower == relative_accuracy_lower(right, np.ones(5, dtype=bool), 3)


@pytest.mark.parametrize(("mine", "targets"), [(3, 4), (0, 0)])
def test_answers_to_other_rows_than_the_targets_are_refused(mine: int, targets: int) -> None:
    with pytest.raises(ValueError, match="one row a target"):
        clipped_r2s(np.zeros(targets), [np.zeros(mine)], 10, 1)
