"""The same hours out of a real Prometheus server, whose blocks are made from the counters' values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from server.report.command import Inputs, run
from server.report.errors import ReportError
from server.report.rows import hour_at
from tests.server.report.hourly import counters, line, write_hours
from tests.support.prometheus import needs_prometheus, prometheus_of

KWH = 3.6e6
STEP_S = 60
HOURS = ((10, KWH, 100.0), (11, 3 * KWH, 300.0))
GAUGES = (
    ("jouleserve_power_usage_effectiveness_ratio", {}, 1.5),
    ("jouleserve_energy_relative_uncertainty_ratio", {"source": "rapl"}, 0.05),
    ("jouleserve_dynamic_relative_uncertainty_ratio", {"source": "rapl"}, 0.04),
    ("jouleserve_compile_joules", {"model": "intents", "variant": "lite"}, 7200.0),
)
ANOTHER_FAMILY = ("jouleserve_compile_joules", {"model": "reviews", "variant": "lite"}, 3600.0)

pytestmark = needs_prometheus


def exposition() -> str:
    """Counters that grow evenly over each hour, scraped once a minute, from the hour before to the end: of one machine,
    and the day after of two, the second of which is there in the first hour only. On the third day both are there for
    half an hour, and their last five minutes go by a cached reading of four times the grams."""
    seen: dict[str, list[str]] = {}
    scrape(seen, "2026-11-28T10:00:00+00:00", "a:9400", len(HOURS))
    scrape(seen, "2026-11-29T10:00:00+00:00", "a:9400", len(HOURS))
    scrape(seen, "2026-11-29T10:00:00+00:00", "b:9400", 1)
    for instance in ("a:9400", "b:9400"):
        scrape(seen, "2026-11-30T10:00:00+00:00", instance, 1, until_s=1800, cached_from_s=1500)
    out = []
    for name, samples in seen.items():
        family, kind = (name.removesuffix("_total"), "counter") if name.endswith("_total") else (name, "gauge")
        by_series = sorted(samples, key=lambda text: text.rpartition("}")[0])
        out += [f"# TYPE {family} {kind}", *by_series]
    return "\n".join([*out, "# EOF", ""])


def scrape(
    seen: dict[str, list[str]], since: str, instance: str, hours: int, until_s: int = 3600, cached_from_s: int = 3600
) -> None:
    start = int(datetime.fromisoformat(since).timestamp())

    def put(name: str, labels: dict[str, str], value: float, time_s: int) -> None:
        inner = ",".join(f'{key}="{word}"' for key, word in {**labels, "job": "node", "instance": instance}.items())
        seen.setdefault(name, []).append(f"{name}{{{inner}}} {value} {time_s}")

    before = {(name, tuple(labels.items())): 0.0 for name, labels, _ in counters(1.0, 1.0)}
    for number, (_, joules, grams) in enumerate(HOURS[:hours]):
        grown = {(name, tuple(labels.items())): value for name, labels, value in counters(joules, grams)}
        for second in range(0, until_s + (STEP_S if number == hours - 1 else 0), STEP_S):
            time_s = start + number * 3600 + second
            for key, value in grown.items():
                put(key[0], dict(key[1]), before[key] + value * second / 3600, time_s)
            for name, labels, value in (*GAUGES, *([ANOTHER_FAMILY] if instance == "b:9400" else [])):
                put(name, labels, value, time_s)
            cached = cached_from_s <= second < 3600
            zone = {"zone": "DE", "provider": "replay", "kind": "cached" if cached else "live"}
            put("jouleserve_grid_intensity_grams_per_kwh", zone, 4 * grams if cached else grams, time_s)
        before = {key: before[key] + value for key, value in grown.items()}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prometheus_of(tmp_path_factory.mktemp("prometheus"), exposition()) as url:
        yield url


def test_prometheus_gives_the_report_that_the_hourly_totals_give(prometheus: str, tmp_path: Path) -> None:
    folder = write_hours(tmp_path / "hours", *(line(n, hour, j, g) for n, (hour, j, g) in enumerate(HOURS)))
    inputs = Inputs(0.5, "EUR", embodied_kg=1200.0)
    period = ("2026-11-28T10:00", "2026-11-28T12:00")
    ours = run(folder, None, *period, inputs, tmp_path / "ours")
    theirs = run(folder, prometheus, *period, inputs, tmp_path / "theirs")
    for part in ("energy", "requests", "carbon", "sci", "returns"):
        found = {(one.name, one.unit): one.value for one in getattr(theirs, part)}
        for figure in getattr(ours, part):
            # increase() extrapolates to the ends of the hour.
            wanted = pytest.approx(figure.value, rel=0.04, abs=1e-6)
            assert found[figure.name, figure.unit] == wanted, figure.name


def test_every_machines_manufacture_counts_for_the_hours_that_it_was_there(prometheus: str, tmp_path: Path) -> None:
    def sci(day: int) -> dict[str, float]:
        period = (f"2026-11-{day}T10:00", f"2026-11-{day}T12:00")
        report = run(tmp_path, prometheus, *period, Inputs(0.5, "EUR"), tmp_path / f"{day}")
        assert report.hours == 2
        (source,) = (one.source for one in report.sci if one.name.startswith("TE"))
        assert "--embodied-kg" in source
        return {one.name.partition(":")[0]: one.value for one in report.sci}

    one, two = sci(28), sci(29)
    # The second machine was there for an hour, and for the five minutes after it for which Prometheus holds on to it.
    assert two["M"] / one["M"] == pytest.approx(1.5, abs=0.06)
    assert two["TE"] == one["TE"]


def test_an_hour_counts_as_long_as_a_machine_was_there_and_readings_by_how_long_they_held(
    prometheus: str, tmp_path: Path
) -> None:
    report = run(tmp_path, prometheus, "2026-11-30T10:00", "2026-11-30T11:00", Inputs(0.5, "EUR"), tmp_path / "out")
    # Prometheus holds on for five minutes to what is scraped no more: 35 minutes, 30 of them live and 10 cached.
    assert report.hours == pytest.approx(35 / 60, abs=0.02)
    (intensity,) = (one.value for one in report.carbon if one.name.startswith("grid intensity"))
    assert intensity == pytest.approx((30 * 100 + 10 * 400) / 40, rel=0.04)
    (life,) = (one.source for one in report.sci if one.name.startswith("TS"))
    assert life.startswith("1.2 metered hours of machines")


def test_variants_of_the_same_name_of_two_families_each_have_their_compile_cost(
    prometheus: str, tmp_path: Path
) -> None:
    report = run(tmp_path, prometheus, "2026-11-30T10:00", "2026-11-30T11:00", Inputs(0.5, "EUR"), tmp_path / "out")
    (compiling,) = (one for one in report.returns if one.name.startswith("compiling"))
    assert compiling.value == pytest.approx((7200 + 3600) / KWH)


def test_a_password_in_the_address_stands_nowhere(prometheus: str, tmp_path: Path) -> None:
    address = prometheus.replace("http://", "http://me:secret@")
    report = run(tmp_path, address, "2026-11-28T10:00", "2026-11-28T11:00", Inputs(0.5, "EUR"), tmp_path / "out")
    assert report.origin == f"Prometheus ({prometheus})"
    for host in (address, "http://me:secret@127.0.0.1:9"):
        with pytest.raises(ReportError) as refused:
            run(tmp_path, host, "2025-01-01", "2025-01-02", Inputs(0.5, "EUR"), tmp_path / "out")
        assert "secret" not in str(refused.value)


def test_a_period_that_prometheus_knows_nothing_of_is_said(prometheus: str, tmp_path: Path) -> None:
    inputs = Inputs(0.5, "EUR")
    with pytest.raises(ReportError, match="no jouleserve figures"):
        run(tmp_path, prometheus, "2025-01-01", "2025-01-02", inputs, tmp_path / "out")
    with pytest.raises(ReportError, match="give one hour to"):
        run(tmp_path, prometheus, "2020-01-01", "2026-01-02", inputs, tmp_path / "out")
    with pytest.raises(ReportError, match="check the URL"):
        run(tmp_path, "http://127.0.0.1:9", hour_at("2025-01-01"), "2025-01-02", inputs, tmp_path / "out")
