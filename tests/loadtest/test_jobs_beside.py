"""What clients notice of jobs, from slices with and without them."""

from __future__ import annotations

import pytest

from loadtest.jobs_beside import figures_of

ALONE = [float(n % 100 + 1) for n in range(1000)]
BESIDE = [1.5 * value for value in ALONE]


def test_pairs_in_which_no_job_ran_are_named_and_left_out() -> None:
    figures = figures_of([(BESIDE, ALONE), (ALONE, ALONE), (BESIDE, ALONE)], [20, 0, 10], 10.0)
    assert figures["job_texts_by_pair"] == [20, 0, 10]
    assert figures["pairs_without_jobs_left_out"] == 1
    assert figures["job_texts_per_s_beside"] == 1.5
    assert figures["p99_ratio"] == 1.5
    assert figures["p99_ratio_interval"] == [1.5, 1.5]


def test_without_a_text_of_a_job_nothing_is_claimed() -> None:
    with pytest.raises(RuntimeError, match="nothing is shown; lower --share"):
        figures_of([(ALONE, ALONE)], [0], 10.0)
