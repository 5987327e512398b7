from __future__ import annotations

import pytest

from energy.coefficients import CpuCoefficients
from energy.domains import Domain
from energy.idle import IdleModel
from energy.meter import Delta

PACKAGE = Domain("package", "package-0", "rapl")
GPU = Domain("gpu", "gpu-0", "nvml", on_cpu=False)
CPU = CpuCoefficients("test", 1.0, 4.0, "none")
SECOND = 1_000_000_000


def delta(joules: float, domain: Domain = PACKAGE, idle_joules: float | None = None) -> Delta:
    idle_uj = None if idle_joules is None else round(idle_joules * 1e6)
    return Delta(domain, round(joules * 1e6), SECOND, idle_uj)


def test_idle_that_the_source_knows_is_taken_as_it_is() -> None:
    assert IdleModel.fresh(CPU).idle_uj(delta(10, idle_joules=3), 0.9) == 3_000_000


def test_before_a_quiet_tick_the_idle_share_follows_from_the_cpu_family() -> None:
    # At half load the family draws 1 W idle and 1.5 W above.
    assert IdleModel.fresh(CPU).idle_uj(delta(50), 0.5) == pytest.approx(20_000_000, abs=1)


def test_quiet_ticks_teach_the_idle_power_and_busy_ones_do_not() -> None:
    model = IdleModel.fresh(CPU)
    for _ in range(60):
        model.idle_uj(delta(10), 0.0)
    for _ in range(60):
        assert model.idle_uj(delta(60), 1.0) == pytest.approx(10_000_000, abs=2)


def test_idle_power_adapts_slowly() -> None:
    model = IdleModel.fresh(CPU)
    model.idle_uj(delta(10), 0.0)
    model.idle_uj(delta(20), 0.0)
    assert 10 < model.watts[PACKAGE] < 12


def test_idle_is_never_more_than_was_drawn() -> None:
    model = IdleModel.fresh(CPU)
    model.idle_uj(delta(10), 0.0)
    assert model.idle_uj(delta(4), 0.5) == 4_000_000


def test_a_gpu_idles_at_the_lowest_power_it_showed() -> None:
    model = IdleModel.fresh(CPU)
    assert model.idle_uj(delta(80, GPU), 0.5) == 80_000_000
    assert model.idle_uj(delta(70, GPU), 0.5) == 70_000_000
    assert model.idle_uj(delta(300, GPU), 0.5) == 70_000_000


def test_a_gpu_whose_counter_was_not_refreshed_yet_does_not_seem_to_draw_nothing_at_rest() -> None:
    """A late tick is followed by an early one: a tenth of a second, over which the counter may stand still."""
    model = IdleModel.fresh(CPU)
    for _ in range(4):
        model.idle_uj(Delta(GPU, 70_000_000, 9 * SECOND // 10), 0.0)
        assert model.idle_uj(Delta(GPU, 0, SECOND // 10), 0.0) == 0
    assert model.idle_uj(delta(300, GPU), 0.5) == 70_000_000


def test_ticks_that_are_short_always_teach_what_a_gpu_draws_at_rest_too() -> None:
    model = IdleModel.fresh(CPU)
    for tick in range(20):
        model.idle_uj(Delta(GPU, 14_000_000 * (tick % 2), SECOND // 10), 0.0)
    assert model.lowest_watts[GPU] == pytest.approx(56)
    assert model.idle_uj(delta(300, GPU), 0.5) == pytest.approx(56_000_000)


def test_what_was_learned_survives_a_restart() -> None:
    model = IdleModel.fresh(CPU)
    model.idle_uj(delta(10), 0.0)
    model.idle_uj(delta(70, GPU), 0.0)
    later = IdleModel.fresh(CPU)
    later.restore({**model.to_json(), "rapl/gone/package": 3.0, "junk": "x"}, (PACKAGE, GPU))
    assert later.watts == model.watts
    assert later.lowest_watts == model.lowest_watts
