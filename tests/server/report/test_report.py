from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.report.command import NAMES, Inputs, run
from server.report.errors import ReportError
from server.report.figures import Figure, Report
from server.report.rows import hour_at
from tests.server.report.hourly import COMPILED, line, write_hours

KWH = 3.6e6
INPUTS = Inputs(tariff_per_kwh=0.5, currency="EUR", resource_share=0.5)


def two_hours(folder: Path) -> Path:
    """1 kWh in a clean hour and 3 kWh in a dirty one."""
    return write_hours(folder / "hours", line(0, 10, KWH, 100.0), line(1, 11, 3 * KWH, 300.0))


def reported(folder: Path, out: str = "out", inputs: Inputs = INPUTS) -> Report:
    return run(two_hours(folder), None, "2026-11-28", "2026-11-29", inputs, folder / out)


def named(figures: tuple[Figure, ...], name: str, unit: str | None = None) -> Figure:
    (found,) = (one for one in figures if one.name == name and unit in (None, one.unit))
    return found


def test_the_energy_is_split_by_who_owes_it_and_overlapping_domains_count_once(tmp_path: Path) -> None:
    energy = reported(tmp_path).energy
    values = {one.name: one.value for one in energy}
    assert values == {
        "drawn by the machine": pytest.approx(4.0),
        "owed by requests (dynamic)": pytest.approx(1.2),
        "idling": pytest.approx(1.6),
        "overhead of serving": pytest.approx(0.8),
        "requests whose record came late": 0.0,
        "other: not the service's": pytest.approx(0.4),
        "the service: requests, idling, overhead": pytest.approx(3.6),
        "the service at the building's meter": pytest.approx(5.4),
    }
    assert named(energy, "idling").low == pytest.approx(1.6 * 0.95)
    assert named(energy, "owed by requests (dynamic)").high == pytest.approx(1.2 * 1.04)
    assert all("rapl" in one.source for one in energy)


def test_an_answer_costs_its_dynamic_and_its_fully_loaded_joules(tmp_path: Path) -> None:
    requests = reported(tmp_path).requests
    answered = named(requests, "answered").value
    assert answered == 2 * (200 + 90)
    assert named(requests, "dynamic joules an answer").value == pytest.approx(1.2 * KWH / answered)
    assert named(requests, "fully loaded joules an answer").value == pytest.approx(1.5 * 3 * 1.2 * KWH / answered)


def test_the_sci_score_names_its_inputs_and_adds_up(tmp_path: Path) -> None:
    sci = reported(tmp_path).sci
    operational, embodied = named(sci, "O: operational").value, named(sci, "M: embodied").value
    # 0.9 of 1 kWh at 100 g and of 3 kWh at 300 g, PUE 1.5.
    assert operational == pytest.approx(0.9 * 1.5 * (100 + 900))
    assert embodied == pytest.approx((1000 + 139) * 1000 * 2 / (4 * 8766) * 0.5)
    assert named(sci, "SCI").value == pytest.approx((operational + embodied) / 580 * 1000)
    assert "Davy" in named(sci, "TE: a server's manufacture").source
    assert "--resource-share" in named(sci, "RS: share of it reserved").source


def test_the_return_is_split_and_timing_is_apart(tmp_path: Path) -> None:
    returns = reported(tmp_path).returns
    assert named(returns, "cost of the service's energy").value == pytest.approx(5.4 * 0.5)
    assert named(returns, "saved by fallback", "kWh").value == pytest.approx(0.4 * 1.5)
    assert named(returns, "saved by fallback", "EUR").value == pytest.approx(0.4 * 1.5 * 0.5)
    assert named(returns, "saved by fallback", "gCO2e").value == pytest.approx(1.5 * (0.1 * 100 + 0.3 * 300))
    (timing,) = (one for one in returns if "timing" in one.name)
    assert timing.value == pytest.approx(1.5 * (0.1 * -100 + 0.3 * 100))
    assert named(returns, "saved by batching", "kWh").value == 0


def test_compiling_pays_back_against_always_full_quality(tmp_path: Path) -> None:
    returns = reported(tmp_path).returns
    saved_joules = 0.4 * KWH  # at the machine, as those of compiling
    assert named(returns, "the service, always at full quality").value == pytest.approx(5.4 + 0.6)
    assert named(returns, "break-even").value == -(-7200 // (saved_joules / 580))
    assert named(returns, "payback at this load").value == pytest.approx(7200 / saved_joules * 2)


def test_what_compiling_took_has_the_band_of_its_own_meter_or_none(tmp_path: Path) -> None:
    def compiling(*costs: dict[str, Any]) -> tuple[Figure, set[str]]:
        row = line(0, 10, KWH, 100.0) | {"compiled": list(costs)}
        folder = write_hours(tmp_path / "hours", row)
        returns = run(folder, None, "2026-11-28", "2026-11-29", INPUTS, tmp_path / "out").returns
        return named(returns, "compiling the variants, once"), {one.name for one in returns}

    known, full = COMPILED[0], {"variant": "full", "joules": None, "source": None, "relative_uncertainty": None}
    figure, names = compiling(known)
    assert (figure.value, figure.low, figure.high) == (0.002, 0.001, 0.003)
    assert figure.source == "compile_joules of the manifest (estimated)"
    assert "break-even" in names
    figure, names = compiling(known, full)
    assert figure.source.endswith("of 1 of 2 variants")
    assert not {"break-even", "payback at this load"} & names
    figure, _ = compiling(known | {"relative_uncertainty": None})
    assert (figure.low, figure.high) == (None, None)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    for out in ("one", "two"):
        reported(tmp_path, out)
    for name in NAMES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert (tmp_path / "one" / name).stat().st_size > 2000


def test_every_number_names_its_source_in_every_form(tmp_path: Path) -> None:
    report = reported(tmp_path)
    page, text = ((tmp_path / "out" / name).read_text() for name in NAMES[:2])
    tree = json.loads((tmp_path / "out" / "report.json").read_text())
    for part in ("energy", "requests", "carbon", "sci", "returns"):
        assert len(tree[part]) == len(getattr(report, part)) > 0
        for figure in tree[part]:
            assert figure["source"]
            assert figure["name"] in text
            assert figure["name"].replace("'", "&#x27;") in page
    assert {row["source"] for row in (*tree["by_account"], *tree["hourly"])} == {"rapl"}
    assert {row["intensity_source"] for row in tree["hourly"]} == {"live"}
    assert "joules by |" in text
    assert "joules by</th>" in page


def test_the_page_is_well_formed_has_plots_and_fetches_nothing(tmp_path: Path) -> None:
    reported(tmp_path)
    page = (tmp_path / "out" / "report.html").read_text()
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "rect", "path"):
                seen.append(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("rect", "path"):
                assert seen.pop() == tag

    Reader().feed(page)
    assert seen == []
    assert page.count("<svg") == 2


def test_hours_without_an_intensity_have_no_grams_and_the_report_says_so(tmp_path: Path) -> None:
    folder = write_hours(tmp_path / "hours", line(0, 10, KWH, None))
    report = run(folder, None, "2026-11-28T10:00", "2026-11-28T11:00", INPUTS, tmp_path / "out")
    assert report.sci == ()
    assert not [one for one in report.returns if one.unit == "gCO2e"]
    assert "known for 0.0%" in report.notes[1]


def test_hours_without_an_intensity_make_no_score_look_better(tmp_path: Path) -> None:
    known, unknown = line(0, 10, KWH, 100.0), line(1, 11, KWH, None)
    half = line(2, 12, KWH, 100.0)
    half["grid"] = {"seconds": 1800.0, "gram_seconds": 1800.0 * 100.0, "kinds": {"live": 1800.0}}
    half["counters"] = [
        [name, labels, value / 2 if name == "jouleserve_carbon_grams_total" else value]
        for name, labels, value in half["counters"]
    ]
    scores = []
    for number, lines in enumerate([(known,), (known, unknown), (half,)]):
        folder = write_hours(tmp_path / str(number), *lines)
        report = run(folder, None, "2026-11-28", "2026-11-29", INPUTS, tmp_path / "out")
        scores.append({one.name: one for one in report.sci})
    for name in ("SCI", "M: embodied", "R: functional units", "O: operational"):
        assert scores[1][name].value == scores[2][name].value == pytest.approx(scores[0][name].value)
    assert "without 1 of 2 hours" in scores[1]["O: operational"].source


def test_an_hour_whose_intensity_was_known_while_nobody_asked_counts_all_its_joules(tmp_path: Path) -> None:
    row = line(0, 10, KWH, 100.0)
    row["grid"] = {"seconds": 36.0, "gram_seconds": 3600.0, "kinds": {"live": 36.0}}
    row["counters"] = [
        [name, labels, value / 1000 if name == "jouleserve_carbon_grams_total" else value]
        for name, labels, value in row["counters"]
    ]
    folder = write_hours(tmp_path / "hours", row)
    sci = run(folder, None, "2026-11-28", "2026-11-29", INPUTS, tmp_path / "out").sci
    assert named(sci, "O: operational").value == pytest.approx(0.9 * 1.5 * 100)


def test_only_the_hours_of_the_period_count_and_the_open_one_is_among_them(tmp_path: Path) -> None:
    folder = two_hours(tmp_path)
    (folder / "open.json").write_text(json.dumps(line(2, 12, KWH, 100.0)))
    whole = run(folder, None, "2026-11-28", "2026-11-29", INPUTS, tmp_path / "out")
    part = run(folder, None, "2026-11-28T10:30", "2026-11-28T11:59", INPUTS, tmp_path / "out")
    assert (whole.hours, part.hours) == (3.0, 1.0)
    (folder / "open.json").write_text(json.dumps(line(1, 11, KWH, 100.0)))
    assert run(folder, None, "2026-11-28", "2026-11-29", INPUTS, tmp_path / "out").hours == 2.0


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        ("yesterday", "2026-11-29", "no date"),
        ("2026-11-29", "2026-11-28", "earlier --from"),
        ("2027-01-01", "2027-02-01", "there are those of 2026-11-28T10"),
    ],
)
def test_what_cannot_be_reported_is_said_with_a_remedy(tmp_path: Path, begin: str, end: str, said: str) -> None:
    folder = two_hours(tmp_path)
    with pytest.raises(ReportError, match=said):
        run(folder, None, begin, end, INPUTS, tmp_path / "out")


def test_a_local_time_is_taken_to_utc() -> None:
    assert hour_at("2026-11-28T13:59:00+02:00") == "2026-11-28T11:00:00Z"


def test_the_command_says_what_it_found_and_where_it_is(tmp_path: Path) -> None:
    arguments = ["report", "--from", "2026-11-28", "--to", "2026-11-29", "--hours", str(two_hours(tmp_path))]
    found = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")], env={"COLUMNS": "300"})
    assert found.exit_code == 0, found.output
    assert "SCI:" in found.output
    assert str(tmp_path / "out" / "report.html") in found.output
