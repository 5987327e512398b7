from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy.domains import Domain, Reading
from energy.meter import Meter
from energy.sources.fake import FakeSource
from tests.energy.trees import Clock

PACKAGE = Domain("package", "package-0", "fake", wraps_at_uj=1_000_000_000, max_watts=100.0)
ENDLESS = Domain("gpu", "gpu-0", "fake", max_watts=700.0, on_cpu=False)


def metered(domain: Domain) -> tuple[FakeSource, Meter, Clock]:
    clock = Clock()
    source = FakeSource([domain], clock_ns=clock)
    return source, Meter([source]), clock


def test_the_first_reading_is_only_a_baseline() -> None:
    source, meter, _ = metered(PACKAGE)
    source.set_counter(PACKAGE, 900_000_000)
    tick = meter.tick()
    assert tick.deltas == tick.missing == ()
    assert meter.total_uj == {}


def test_a_wrap_adds_the_rest_of_the_range() -> None:
    source, meter, clock = metered(PACKAGE)
    source.set_counter(PACKAGE, 999_999_990)
    meter.tick()
    clock.pass_seconds(1)
    source.set_counter(PACKAGE, 25)
    assert [d.energy_uj for d in meter.tick().deltas] == [35]


# Powers within a factor of ten: what a single larger step means is another test's question.
@given(st.lists(st.integers(10_000_000, 99_000_000), min_size=1, max_size=60))
def test_any_number_of_wraps_loses_nothing(steps_uj: list[int]) -> None:
    source, meter, clock = metered(PACKAGE)
    meter.tick()
    counter = 0
    for step_uj in steps_uj:
        counter = (counter + step_uj) % PACKAGE.wraps_at_uj if PACKAGE.wraps_at_uj else 0
        source.set_counter(PACKAGE, counter)
        clock.pass_seconds(1)
        meter.tick()
    assert meter.total_uj[PACKAGE] == sum(steps_uj)


def test_a_gap_longer_than_half_the_range_at_full_power_starts_over_and_is_missing() -> None:
    source, meter, clock = metered(PACKAGE)
    meter.tick()
    clock.pass_seconds(5.1)
    source.add(PACKAGE, 300)
    tick = meter.tick()
    assert tick.deltas == ()
    assert [m.reason for m in tick.missing] == ["gap"]
    clock.pass_seconds(1)
    source.add(PACKAGE, 7)
    assert [d.energy_uj for d in meter.tick().deltas] == [7_000_000]


def test_a_counter_without_a_range_that_goes_back_was_reset() -> None:
    source, meter, clock = metered(ENDLESS)
    source.set_counter(ENDLESS, 5_000_000)
    meter.tick()
    clock.pass_seconds(1)
    source.set_counter(ENDLESS, 1_000_000)
    assert [m.reason for m in meter.tick().missing] == ["reset"]
    clock.pass_seconds(1)
    source.add(ENDLESS, 3)
    assert [d.energy_uj for d in meter.tick().deltas] == [3_000_000]


def test_a_jump_beyond_full_power_is_missing_and_not_counted() -> None:
    source, meter, clock = metered(PACKAGE)
    meter.tick()
    clock.pass_seconds(1)
    source.add(PACKAGE, 500)
    assert [m.reason for m in meter.tick().missing] == ["implausible"]
    assert meter.total_uj == {}
    assert meter.missing_ticks == {(PACKAGE, "implausible"): 1}


def test_totals_are_read_off_the_counter_without_what_was_not_believed() -> None:
    source, meter, clock = metered(PACKAGE)
    source.set_counter(PACKAGE, 950_000_000)
    meter.tick()
    clock.pass_seconds(1)
    source.set_counter(PACKAGE, 10_000_000)
    assert meter.tick().total_uj == {PACKAGE: 60_000_000}
    clock.pass_seconds(1)
    source.add(PACKAGE, 500)
    assert meter.tick().total_uj == {PACKAGE: 60_000_000}
    clock.pass_seconds(6)
    source.add(PACKAGE, 70)
    meter.tick()
    clock.pass_seconds(1)
    source.add(PACKAGE, 3)
    assert meter.tick().total_uj == {PACKAGE: 63_000_000}
    assert meter.unmetered_uj == {(PACKAGE, "implausible"): 500_000_000, (PACKAGE, "gap"): 70_000_000}


def test_what_a_counter_shows_after_a_reset_is_known_to_be_unmetered() -> None:
    source, meter, clock = metered(ENDLESS)
    source.set_counter(ENDLESS, 5_000_000)
    meter.tick()
    clock.pass_seconds(1)
    source.set_counter(ENDLESS, 1_000_000)
    meter.tick()
    assert meter.unmetered_uj == {(ENDLESS, "reset"): 1_000_000}
    assert meter.total_uj == {}


def test_a_counter_with_a_range_that_was_reset_shows_what_it_counted_since_and_not_the_rest_of_its_range() -> None:
    source, meter, clock = metered(PACKAGE)
    source.set_counter(PACKAGE, 500_000_000)
    meter.tick()
    clock.pass_seconds(1)
    source.set_counter(PACKAGE, 1_000_000)
    meter.tick()
    assert meter.unmetered_uj == {(PACKAGE, "implausible"): 1_000_000}


def test_a_counter_that_was_away_brings_what_it_counted_meanwhile() -> None:
    source, meter, clock = metered(PACKAGE)
    meter.tick()
    source.hide(PACKAGE)
    for _ in range(3):
        clock.pass_seconds(1)
        source.add(PACKAGE, 20)
        tick = meter.tick()
        assert tick.deltas == ()
        assert [m.reason for m in tick.missing] == ["unreadable"]
    source.show(PACKAGE)
    clock.pass_seconds(1)
    (delta,) = meter.tick().deltas
    assert (delta.energy_uj, delta.duration_ns) == (60_000_000, 4_000_000_000)


def test_two_readings_in_one_step_of_the_clock_count_once() -> None:
    source, meter, clock = metered(PACKAGE)
    meter.tick()
    source.add(PACKAGE, 1)
    assert meter.tick().deltas == ()
    clock.pass_seconds(1)
    assert [d.energy_uj for d in meter.tick().deltas] == [1_000_000]


def test_idle_known_by_the_source_goes_along_and_never_exceeds_the_energy() -> None:
    source, meter, clock = metered(PACKAGE)
    source.add(PACKAGE, 1, idle_joules=1)
    meter.tick()
    clock.pass_seconds(1)
    source.add(PACKAGE, 10, idle_joules=4)
    assert [d.idle_uj for d in meter.tick().deltas] == [4_000_000]
    clock.pass_seconds(1)
    source.add(PACKAGE, 1, idle_joules=4)
    assert [d.idle_uj for d in meter.tick().deltas] == [1_000_000]


class Broken(FakeSource):
    def __init__(self) -> None:
        super().__init__([ENDLESS])
        self.broken = True

    def read(self) -> list[Reading]:
        if self.broken:
            raise RuntimeError("bus error")
        return super().read()


def test_a_source_that_fails_does_not_break_the_others_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    good, bad = FakeSource([PACKAGE], clock_ns=clock), Broken()
    meter = Meter([bad, good])
    meter.tick()
    clock.pass_seconds(1)
    good.add(PACKAGE, 2)
    tick = meter.tick()
    assert [d.domain for d in tick.deltas] == [PACKAGE]
    assert [m.domain for m in tick.missing] == [ENDLESS]
    assert caplog.text.count("bus error") >= 1
    bad.broken = False
    assert meter.tick().missing == ()


STEADY = Domain("package", "package-0", "fake", wraps_at_uj=10**12, max_watts=1500.0, never_rests=True)


def drawn(*joules: float, domain: Domain = STEADY) -> tuple[Meter, list[tuple[str | int, ...]]]:
    """A meter after seconds in which the counter advanced by so much, and what each second gave."""
    source, meter, clock = metered(domain)
    meter.tick()
    seen: list[tuple[str | int, ...]] = []
    for amount in joules:
        source.set_counter(domain, source.read()[0].energy_uj + round(amount * 1e6))
        clock.pass_seconds(1)
        tick = meter.tick()
        seen.append((*(d.energy_uj for d in tick.deltas), *(m.reason for m in tick.missing)))
    return meter, seen


def test_a_frozen_counter_is_missing_and_never_zero_and_nothing_is_lost_when_it_thaws() -> None:
    meter, seen = drawn(30, 0, 0, 90, 30)
    assert seen == [(30_000_000,), ("frozen",), ("frozen",), (90_000_000,), (30_000_000,)]
    assert meter.total_uj[STEADY] == 150_000_000
    assert meter.missing_ticks == {(STEADY, "frozen"): 2}


def test_a_counter_that_may_rest_shows_zero_when_it_does() -> None:
    _, seen = drawn(30, 0, domain=ENDLESS)
    assert seen == [(30_000_000,), (0,)]


def test_a_jump_that_lasts_was_a_load_and_all_of_it_is_counted() -> None:
    meter, seen = drawn(30, 400, 380, 400)
    assert seen == [(30_000_000,), ("jump",), (780_000_000,), (400_000_000,)]
    assert meter.total_uj[STEADY] == 1_210_000_000
    assert meter.unmetered_uj == {}


def test_a_jump_by_a_factor_of_ten_that_does_not_last_is_nonsense_and_not_counted() -> None:
    meter, seen = drawn(30, 400, 31, 30)
    assert seen == [(30_000_000,), ("jump",), (31_000_000,), (30_000_000,)]
    assert meter.total_uj[STEADY] == 91_000_000
    assert meter.unmetered_uj == {(STEADY, "jump"): 400_000_000}


BOARD = Domain("gpu", "gpu-0", "fake", max_watts=1400.0, limit_watts=700.0, never_rests=True, on_cpu=False)


def test_bursts_of_a_second_within_the_stated_power_limit_are_counted_from_the_first() -> None:
    meter, seen = drawn(*[25, 25, 325, 25, 25] * 20, domain=BOARD)
    assert meter.total_uj[BOARD] == 20 * 425_000_000
    assert ("jump",) not in seen
    assert meter.unmetered_uj == {}


def test_a_jump_beyond_the_stated_power_limit_that_does_not_last_is_nonsense() -> None:
    meter, seen = drawn(30, 900, 31, domain=BOARD)
    assert seen == [(30_000_000,), ("jump",), (31_000_000,)]
    assert meter.unmetered_uj == {(BOARD, "jump"): 900_000_000}


def test_a_burst_of_what_may_rest_is_a_load_however_little_it_drew_before() -> None:
    cores = Domain("core", "package-0", "fake", wraps_at_uj=10**12, max_watts=1500.0, overlaps=True)
    meter, seen = drawn(0.2, 40, 0.3, domain=cores)
    assert seen == [(200_000,), (40_000_000,), (300_000,)]
    assert meter.unmetered_uj == {}


def test_a_reading_that_was_garbled_once_leaves_no_trace() -> None:
    meter, seen = drawn(30, 400, -340, 30)
    assert seen == [(30_000_000,), ("jump",), (60_000_000,), (30_000_000,)]
    assert meter.total_uj[STEADY] == 120_000_000
    assert meter.unmetered_uj == {}


def test_a_counter_that_runs_backwards_gives_no_negative_joules() -> None:
    meter, seen = drawn(30, -20, 30)
    assert seen == [(30_000_000,), ("implausible",), (30_000_000,)]
    assert meter.total_uj[STEADY] == 60_000_000


def test_a_domain_is_marked_as_missing_until_it_gives_a_figure_again() -> None:
    source, meter, clock = metered(STEADY)
    meter.tick()
    for hidden, missing in ((False, False), (True, True), (False, False)):
        (source.hide if hidden else source.show)(STEADY)
        source.add(STEADY, 30)
        clock.pass_seconds(1)
        meter.tick()
        assert meter.missing_now == {STEADY: missing}


# Whatever a counter shows, the meter stands by its own books: totals are the differences it gave, and none is negative.
@given(st.lists(st.integers(-(10**9), 2 * 10**9), min_size=1, max_size=40))
def test_no_nonsense_makes_a_negative_figure_or_a_total_that_was_never_given(steps_uj: list[int]) -> None:
    source, meter, clock = metered(STEADY)
    meter.tick()
    given_uj, shown = 0, 0
    for step_uj in steps_uj:
        shown = max(shown + step_uj, 0)
        source.set_counter(STEADY, shown)
        clock.pass_seconds(1)
        before = meter.total_uj.get(STEADY, 0)
        deltas = [delta.energy_uj for delta in meter.tick().deltas]
        assert all(delta > 0 for delta in deltas)
        given_uj += sum(deltas)
        assert meter.total_uj.get(STEADY, 0) == given_uj >= before
