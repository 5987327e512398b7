"""How many cores there are, and how many workers pay on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.cores import usable_cores
from server.engine.family import Family
from server.engine.worker_profile import (
    ENOUGH,
    FILE,
    WorkerProfile,
    choose,
    default_workers,
    load_profile,
    machine_of,
    measure_workers,
    save_profile,
    trials,
)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "1600000 100000"}, 8),
        ({"sys/fs/cgroup/cpu.max": "garbage"}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 1", "sys/fs/cgroup/a/cpu.max": "3 1"}, 3),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "4 1", "sys/fs/cgroup/cpu.max": "2 1"}, 2),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        (
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            8,
        ),
    ],
)
def test_a_quota_counts_where_it_is_tighter_than_the_affinity(
    tmp_path: Path, files: dict[str, str], cores: float
) -> None:
    assert usable_cores(tree(tmp_path, files), affinity=8) == cores


def test_on_this_machine_there_is_something_to_run_on() -> None:
    assert usable_cores() > 0


@given(st.floats(0.1, 512))
def test_what_is_tried_is_few_and_ends_with_all_cores(cores: float) -> None:
    tried = trials(cores)
    assert 1 <= len(tried) <= 4
    assert tried == sorted(set(tried))
    assert cores <= tried[-1] < cores + 1
    assert 1 <= default_workers(cores) <= tried[-1]


@given(st.dictionaries(st.integers(1, 64), st.floats(0.1, 1e6), min_size=1, max_size=4))
def test_the_fewest_workers_near_the_best_throughput_are_chosen(rates: dict[int, float]) -> None:
    chosen = choose(rates)
    assert rates[chosen] >= ENOUGH * max(rates.values())
    assert all(rates[workers] < ENOUGH * max(rates.values()) for workers in rates if workers < chosen)


def test_a_profile_says_what_was_measured(family: Family) -> None:
    profile = measure_workers(family, 2, "machine", least_share=0.0)
    assert profile is not None
    assert profile.texts_per_second.keys() == {1, 2}
    assert all(rate > 0 for rate in profile.texts_per_second.values())
    assert profile.workers in (1, 2)


def test_a_profile_of_a_busy_machine_is_thrown_away(family: Family) -> None:
    assert measure_workers(family, 1, "machine", lambda: True, least_share=0.0) is None
    # No process gets twice the CPU time that there is.
    assert measure_workers(family, 1, "machine", least_share=2.0) is None


def test_a_kept_profile_is_found_again_only_on_its_machine(tmp_path: Path) -> None:
    profile = WorkerProfile(2, {1: 10.0, 2: 19.0}, "this")
    save_profile(tmp_path, profile)
    assert load_profile(tmp_path, "this") == profile
    assert load_profile(tmp_path, "other") is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"workers": "x"}', json.dumps({"workers": 9, "texts_per_second": {"1": 2}, "machine": "this"})],
)
def test_a_broken_profile_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert load_profile(tmp_path, "this") is None


def test_a_profile_holds_for_one_processor_one_number_of_cores_and_one_model(family: Family, tenfold: Family) -> None:
    names = {
        machine_of(family, 2, "cpu"),
        machine_of(family, 1.5, "cpu"),
        machine_of(family, 2, "another"),
        machine_of(tenfold, 2, "cpu"),
    }
    assert len(names) == 4
    assert machine_of(replace(family), 2, "cpu") in names
