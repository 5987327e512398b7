"""What the start took is taken once, when the first replica is there."""

from __future__ import annotations

import os

import pytest

from server.node.proctree import ServingTree
from server.node.startup import RESTARTED_AFTER_S, StartUp


@pytest.fixture
def tree() -> ServingTree:
    """This process, which has spent some CPU time by now."""
    tree = ServingTree((os.getpid(),))
    tree.sample(0)
    return tree


def test_nothing_is_said_before_a_replica_is_there(tree: ServingTree) -> None:
    startup = StartUp(0.0)
    startup.look(0, tree, 2.0)
    assert (startup.cpu_seconds, startup.joules) == (None, None)


def test_the_figures_are_those_of_the_first_replica_and_stay(tree: ServingTree) -> None:
    startup = StartUp(0.0)
    startup.look(1, tree, 2.0)
    assert startup.cpu_seconds is not None
    assert startup.cpu_seconds == pytest.approx(sum(os.times()[:4]), rel=0.5)
    assert startup.joules == 2.0 * startup.cpu_seconds
    before = (startup.cpu_seconds, startup.joules)
    startup.look(2, tree, 99.0)
    assert (startup.cpu_seconds, startup.joules) == before


def test_joules_wait_for_their_rate(tree: ServingTree) -> None:
    startup = StartUp(0.0)
    startup.look(1, tree, None)
    assert startup.joules is None
    startup.look(1, tree, 3.0)
    assert startup.cpu_seconds is not None
    assert startup.joules == 3.0 * startup.cpu_seconds


def test_a_node_process_restarted_in_the_middle_of_a_run_saw_no_start(tree: ServingTree) -> None:
    startup = StartUp(RESTARTED_AFTER_S)
    startup.look(1, tree, 2.0)
    assert startup.cpu_seconds is None
