"""The conservation law, under everything that may happen to a node: attributed + idle + overhead + other = measured."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[3]
PROMISED_ERROR = 0.001


def a_hundred_thousand_requests() -> dict[str, float]:
    """What became of them; raises AssertionError where the law breaks."""
    from tests.support.energy_world import World

    world, seconds, worst = World(seed=2026), 0, 0.0
    while world.sent < 100_000:
        world.tick(requests=(0, 10, 60, 250)[seconds % 4])
        world.check_law()
        worst = max(worst, *world.window_errors())
        seconds += 1
    world.settle()
    world.check_law()
    assert world.counted() == world.sent - world.unreported
    law = world.state.ledger.conservation()
    return {
        "requests": world.sent,
        "seconds": seconds,
        "worst error of any 5 minutes": worst,
        "attributed share": law.attributed_uj / law.measured_uj,
        **world.misfortunes,
    }


def test_of_a_hundred_thousand_fuzzed_requests_no_joule_is_lost_or_counted_twice() -> None:
    found = a_hundred_thousand_requests()
    print(found)
    assert found["worst error of any 5 minutes"] <= PROMISED_ERROR
    assert found["attributed share"] > 0.05
    happened = {"late record", "lost record", "unreadable counter", "counter reset", "counter jump", "clock jump"}
    assert happened | {"node restart", "node killed", "replica killed", "replica left"} <= found.keys()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9), st.lists(st.sampled_from([0, 1, 7, 40, 200]), min_size=1, max_size=40))
def test_the_law_holds_in_every_world(seed: int, load: list[int]) -> None:
    from tests.support.energy_world import World

    world = World(seed)
    for requests in load:
        world.tick(requests)
        world.check_law()
    world.settle()
    world.check_law()
    assert world.counted() == world.sent - world.unreported


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9))
def test_without_broken_counters_all_that_was_drawn_is_measured(seed: int) -> None:
    from tests.support.energy_world import World

    world = World(seed, faults=False)
    for _ in range(15):
        world.tick(20)
    world.settle()
    assert world.state.ledger.conservation().measured_uj == world.drawn_uj


MUTATIONS = {
    "an hour's rounding is dropped": ("energy.attribution", "        shares[index] += 1\n", "        pass\n"),
    "overhead is forgotten": ("energy.attribution", "overhead_uj=overhead_uj,", "overhead_uj=0,"),
    "idle may exceed the energy": (
        "energy.attribution",
        "    if dynamic_uj == 0:\n",
        "    idle_uj += 1\n    if dynamic_uj == 0:\n",
    ),
    "overlapping domains count": (
        "energy.attribution",
        "        for entry in window.domains\n        if not entry.domain.overlaps\n",
        "        for entry in window.domains\n",
    ),
    "other joules are not booked": ("energy.ledger", "_add(self.other_uj, reason, amount_uj)", "pass"),
    "late joules vanish": ("energy.attribution", "((LATE_RECORD, late_uj), ", "("),
    "a window is settled twice": (
        "server.node.settle",
        "window, self._window = self._window, _OpenWindow()",
        "window = self._window",
    ),
    "a wrap is not counted": ("energy.meter", "self.wraps += counter_uj < self.last_uj", "pass"),
    "a jump is believed by the totals alone": (
        "energy.meter",
        "self.first_uj, self.last_uj, self.wraps = counter_uj, counter_uj, 0",
        "self.last_uj, self.wraps = counter_uj, 0",
    ),
    "what was settled is forgotten over a restart": (
        "server.node.settle",
        "settled=self.remembered.pop(instance, None)",
        "settled=None",
    ),
    "an older record counts again": (
        "server.node.settle",
        "if known is None or snapshot.revision >= known.revision:",
        "if True:",
    ),
    "idling is not laid on requests": (
        "energy.ledger",
        "shares = largest_remainder(own_uj + paid_uj,",
        "shares = largest_remainder(own_uj,",
    ),
}


@contextmanager
def mutated(module: str, old: str, new: str) -> Iterator[None]:
    """The node's code with one line changed; everything is as before afterwards."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    source = path.read_text()
    assert source.count(old) == 1, f"{module}: the line to change is not there once: {old!r}"
    ours = ("energy.", "server.node.", "server.usage", "tests.support.energy_world")
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(ours)}
    changed = types.ModuleType(module)
    changed.__file__, changed.__package__ = str(path), module.rpartition(".")[0]
    try:
        sys.modules[module] = changed
        exec(compile(source.replace(old, new), str(path), "exec"), changed.__dict__)
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith(ours)]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name, was in kept.items():
            package, _, leaf = name.rpartition(".")
            setattr(importlib.import_module(package), leaf, was)


def check_a_small_world() -> None:
    from tests.support.energy_world import World

    world = World(seed=20)
    for second in range(250):
        world.tick(10 * (second % 3))
        world.check_law()
    world.settle()
    world.check_law()
    assert world.counted() == world.sent - world.unreported
    assert {"node restart", "node killed", "replica killed", "counter reset"} <= world.misfortunes.keys()


def test_the_small_world_keeps_the_law() -> None:
    check_a_small_world()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_of_the_code_breaks_the_law(mutation: str) -> None:
    with mutated(*MUTATIONS[mutation]), pytest.raises((AssertionError, ValueError)):
        check_a_small_world()
