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


@given(st.lists(st.integers(0, 99_000_000), min_size=1, max_size=60))
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
