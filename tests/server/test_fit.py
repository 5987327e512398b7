"""Which mode fits, by what the node process says of the busiest minute."""

from __future__ import annotations

import pytest

from server.fit import RAY_IDLE_CPU_S_PER_MINUTE, FitWatch, Minute, advice, ray_extra, startup_line
from server.node.figures import Figures


def figures(requests: int, cpu_seconds: float) -> Figures:
    return Figures(startup_cpu_seconds=9.0, startup_joules=31.0, requests=requests, cpu_seconds=cpu_seconds)


def test_at_a_low_rate_edge_mode_is_said_to_fit_with_what_it_would_save() -> None:
    line = advice(Minute(2.0, 4.0), edge=False, cores=2)
    assert "served at most 2.0 requests/s" in line
    assert f"{ray_extra(Minute(2.0, 4.0)):.1f} CPU-seconds a minute less" in line
    assert "--edge" in line


def test_where_ray_is_a_small_part_it_is_said_to_fit() -> None:
    assert "Ray Serve fits" in advice(Minute(100.0, 60.0), edge=False, cores=2)


def test_a_full_machine_is_no_case_for_edge_mode() -> None:
    for edge in (False, True):
        assert "the machine is full" in advice(Minute(500.0, 118.0), edge=edge, cores=2)


def test_in_edge_mode_it_says_what_ray_would_have_cost() -> None:
    assert "edge mode fits; Ray Serve would have spent" in advice(Minute(20.0, 10.0), edge=True, cores=2)


def test_what_ray_adds_grows_with_the_rate_from_what_it_idles_with() -> None:
    assert ray_extra(Minute(0.0, 0.0)) == RAY_IDLE_CPU_S_PER_MINUTE
    assert ray_extra(Minute(200.0, 50.0)) > ray_extra(Minute(100.0, 50.0)) > RAY_IDLE_CPU_S_PER_MINUTE


def test_the_line_about_the_start_is_absent_where_nobody_saw_it() -> None:
    assert startup_line(None) is None
    assert startup_line(Figures(None, None, 0, 0.0)) is None
    assert startup_line(Figures(9.04, None, 0, 0.0)) == "the start took 9.0 CPU-seconds"
    assert startup_line(Figures(9.04, 31.4, 0, 0.0)) == "the start took 9.0 CPU-seconds, 31 J above idling"


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_busiest_stretch_counts_and_a_restarted_node_is_no_stretch(restarted: bool) -> None:
    said: list[str] = []
    readings = iter([figures(0, 0.0), figures(1000, 5.0), None, figures(0 if restarted else 1001, 5.1)])

    async def ask() -> Figures | None:
        return next(readings)

    watch = FitWatch(ask, said.append, edge=False)
    watch.conclude()
    assert said == []
    for _ in range(4):
        await watch.look()
    watch.conclude()
    assert len(said) == 1
    assert "served at most" in said[0]
