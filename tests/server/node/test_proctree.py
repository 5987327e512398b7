from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.node.proctree import UNCHANGED_SAMPLES, ServingTree
from tests.energy.trees import FakeProc

MS = 1_000_000


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    found = FakeProc(tmp_path)
    found.process(1, 0)
    found.process(10, 1, session=10, own=100)
    found.process(11, 10, session=10, own=50)
    found.process(12, 11, session=10)
    found.process(90, 1, session=90, own=500)
    return found


def tree_of(proc: FakeProc, *roots: int) -> ServingTree:
    tree = ServingTree(roots, proc.root, discover_samples=1)
    assert tree.sample(proc.forks) == 0
    return tree


def test_the_tree_is_the_root_and_its_descendants_and_starts_at_nothing(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    assert len(tree) == 3
    proc.process(12, 11, session=10, own=7)
    proc.process(90, 1, session=90, own=900)
    assert tree.sample(proc.forks) == 70 * MS
    assert (tree.spent_ns(12), tree.spent_ns(11), tree.spent_ns(90)) == (70 * MS, 0, None)
    assert tree.sample(proc.forks) == 0


def test_a_new_process_counts_with_all_it_spent_since_it_started(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    proc.process(13, 12, session=10, own=4)
    proc.process(14, 13, session=10, own=5)
    assert tree.sample(proc.forks) == 90 * MS
    assert len(tree) == 5


def test_the_last_moments_of_a_process_come_back_through_its_parent(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    proc.process(12, 11, session=10, own=20)
    assert tree.sample(proc.forks) == 200 * MS
    proc.end(12)
    proc.process(11, 10, session=10, own=50, reaped=23)
    assert tree.sample(proc.forks) == 30 * MS
    assert len(tree) == 2


def test_a_child_that_came_and_went_between_two_samples_is_counted(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    proc.process(11, 10, session=10, own=50, reaped=9)
    assert tree.sample(proc.forks) == 90 * MS


def test_a_parent_that_never_waits_makes_nothing_negative(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    proc.process(12, 11, session=10, own=20)
    tree.sample(proc.forks)
    proc.end(12)
    assert tree.sample(proc.forks) == 0


def test_a_process_stays_in_the_tree_whoever_adopts_it(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    proc.end(11)
    proc.process(12, 1, session=10, own=6)
    assert tree.sample(proc.forks) == 60 * MS


def test_an_orphan_of_a_session_that_the_tree_opened_belongs_to_it(proc: FakeProc) -> None:
    proc.process(20, 10, session=20)
    tree = tree_of(proc, 10)
    proc.process(21, 1, session=20, own=8)
    proc.process(91, 1, session=90, own=8)
    assert tree.sample(proc.forks) == 80 * MS


def test_a_process_that_names_itself_is_taken_in_without_its_past(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    tree.add_root(90)
    assert tree.sample(proc.forks) == 0
    proc.process(90, 1, session=90, own=501)
    assert tree.sample(proc.forks) == 10 * MS


def test_a_process_id_used_again_is_not_taken_for_the_old_process(proc: FakeProc) -> None:
    tree = tree_of(proc, 10, 12)
    assert tree.is_alive(12, 7) is True
    assert tree.is_alive(12, 8) is False
    proc.end(12)
    tree.sample(proc.forks)
    assert tree.is_alive(12, 7) is False
    assert tree.is_alive(4242, 7) is None


def test_the_end_of_a_member_that_named_itself_is_seen(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    tree.add_root(12)
    assert tree.is_alive(12, 7) is True
    proc.end(12)
    tree.sample(proc.forks)
    assert tree.is_alive(12, 7) is False


def test_new_processes_are_looked_for_every_few_samples_and_count_in_full(proc: FakeProc) -> None:
    tree = ServingTree((10,), proc.root, discover_samples=3)
    tree.sample(proc.forks)
    spent = []
    for own in (4, 5, 6):
        proc.process(13, 12, session=10, own=own)
        spent.append(tree.sample(proc.forks))
    assert spent == [0, 0, 60 * MS]
    proc.process(13, 12, session=10, own=7)
    assert tree.sample(proc.forks) == 10 * MS


def test_a_sample_of_the_roots_leaves_the_others_time_to_the_next_one(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    proc.process(10, 1, session=10, own=101)
    proc.process(11, 10, session=10, own=52)
    assert tree.sample(proc.forks, everybody=False) == 10 * MS
    proc.process(11, 10, session=10, own=53)
    assert tree.sample(proc.forks) == 30 * MS
    assert tree.cpu_ns == 40 * MS


def test_what_a_sample_left_out_can_be_caught_up_with_once(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    proc.process(10, 1, session=10, own=101)
    proc.process(11, 10, session=10, own=52)
    assert tree.sample(proc.forks, everybody=False) == 10 * MS
    assert tree.catch_up() == 20 * MS
    proc.process(11, 10, session=10, own=53)
    assert tree.catch_up() == 0
    assert tree.sample(proc.forks) == 10 * MS
    assert tree.catch_up() == 0


@pytest.mark.parametrize("samples_before", range(4))
@pytest.mark.parametrize("catching_up", [True, False])
def test_the_end_of_a_process_that_was_left_out_is_not_counted_twice(
    proc: FakeProc, samples_before: int, catching_up: bool
) -> None:
    proc.process(12, 11, session=10, own=20)
    tree = tree_of(proc, 10)
    for _ in range(samples_before):
        tree.sample(proc.forks, everybody=False)
    proc.end(12)
    proc.process(11, 10, session=10, own=50, reaped=23)
    spent_ns = 0
    for number in range(5):
        spent_ns += tree.sample(proc.forks, everybody=number == 4)
        spent_ns += tree.catch_up() if catching_up else 0
    assert spent_ns == 30 * MS
    assert len(tree) == 2


def test_the_end_of_a_root_is_seen_at_once_with_the_time_of_its_children(proc: FakeProc) -> None:
    tree = tree_of(proc, 10)
    proc.process(11, 10, session=10, own=52)
    proc.end(10)
    assert tree.sample(proc.forks, everybody=False) == 20 * MS
    assert tree.spent_ns(10) is None


def test_while_as_many_processes_come_as_go_new_ones_are_looked_for_rarely(proc: FakeProc) -> None:
    if proc.root.stat().st_nlink <= 2:
        pytest.skip("this file system does not count a folder's folders, as /proc does")
    tree = tree_of(proc, 10)
    proc.end(90)
    proc.process(13, 12, session=10, own=4)
    found = [tree.sample(proc.forks) for _ in range(UNCHANGED_SAMPLES)]
    assert found == [0] * (UNCHANGED_SAMPLES - 1) + [40 * MS]
    proc.process(14, 12, session=10, own=5)
    assert tree.sample(proc.forks) == 50 * MS


def test_the_real_proc_shows_a_child_and_its_end() -> None:
    tree = ServingTree((os.getpid(),), discover_samples=1)
    tree.sample(0)
    code = "import time\nwhile time.process_time() < 0.2: pass\nprint('x', flush=True)\ninput()"
    # The kernel hands CPU time out in steps of 10 ms, rounded down for user and system apart.
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert tree.sample(1) >= 150 * MS
    assert tree.spent_ns(child.pid) is not None
    child.communicate(b"\n")
    tree.sample(2)
    assert tree.spent_ns(child.pid) is None
    tree.close()
