"""CPU time of a process tree is a difference of two readings."""

from __future__ import annotations

import os

from loadtest.tree import TreeUse, read_tree


def test_what_a_tree_spent_is_the_difference_of_two_readings() -> None:
    names = {1: "a", 2: "b", 3: "b"}
    before = TreeUse({1: 5.0, 2: 1.0}, names, 0)
    after = TreeUse({1: 7.0, 2: 1.5, 3: 0.25}, names, 0)
    assert after.since(before) == 2.75
    assert after.by_name_since(before) == {"a": 2.0, "b": 0.75}
    assert list(after.by_name_since(before)) == ["a", "b"]


def test_the_own_process_is_in_its_tree_and_uses_memory() -> None:
    use = read_tree(os.getpid(), memory=True)
    assert use.cpu_seconds[os.getpid()] > 0
    assert use.pss_bytes > 1_000_000
