"""The report: what its tables and plots say, that equal input gives equal bytes, that a browser opens the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compile.measure.predictor import Measured
from compile.report import PAGE, build, figures, main_table, to_html, to_markdown, write_report
from compile.report.figures import Way, cheapest_keeping, compact, pareto_front, pass_costs, size_bytes
from compile.report.predictions import comparable, indicator, manifests
from models.manifest import Manifest
from models.store import Store, Version
from tests.support.tiny_family import publish_tiny_family

HOSTILE = "<script>alert(1)</script> a|b ``` & <img src=x>"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")


def _evidence(name: str, accuracy: float, cost: float, **more: Any) -> dict[str, Any]:
    return {
        "accuracy": accuracy, "accuracy_lower": accuracy - 0.01, "relative_accuracy": accuracy / 0.95, "test_rows": 500,
        "parameters": 20_000_000, "macs_per_text": round(cost * 1e7), "size_bytes": round(cost * 4e6),
        "cpu_seconds_per_1k": cost, "joules_per_1k": cost * 3, "energy_source": "rapl",
        "energy_relative_uncertainty": 0.05, "compile_cpu_seconds": 100.0, "compile_joules": 300.0,
        "latency": [{"rows": r, "tokens": t, "cpu_ms_per_text": cost * t / r**0.1} for r in (1, 16) for t in (8, 64)],
        **more,
    }  # fmt: skip


def _variant(name: str, accuracy: float, cost: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "precision": "fp32" if name == "fp32" else "int8", "layers": 6, "graph_form": "ragged",
        "model": {"path": f"{name}.onnx", "sha256": "0" * 64, "size_bytes": 10},
        "cost": {"fixed_ns": 1, "linear_ns": 1, "quadratic_ns": 1}, "reference": name == "fp32",
        "lineage": ["finetune", "export"], "evidence": _evidence(name, accuracy, cost, **more),
    }  # fmt: skip


def _point(name: str, variant: str, accuracy: float, cost: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "variant": variant, "accuracy": accuracy, "accuracy_lower": accuracy - 0.01,
        "relative_accuracy": accuracy / 0.95, "cpu_seconds_per_1k": cost, "joules_per_1k": cost * 3, **more,
    }  # fmt: skip


def _pass(name: str, key: str, cpu_seconds: float) -> dict[str, Any]:
    return {"pass": name, "key": key, "cpu_seconds": cpu_seconds, "joules": cpu_seconds * 3}


def make(**changes: Any) -> Manifest:
    """A manifest with three served variants, a cascade, a candidate that failed, and one cascade left out."""
    shared = [_pass("finetune", "aaa", 50.0), _pass("measure", "mmm", 4.0)]
    content: dict[str, Any] = {
        "family": "shown",
        "created_utc": "2026-01-01T00:00:00Z",
        "labels": ["no", "yes"],
        "max_tokens": 64,
        "tokenizer": {"path": "tokenizer.json", "sha256": "0" * 64, "size_bytes": 10},
        "variants": [
            _variant("fp32", 0.95, 8.0),
            _variant("full", 0.94, 4.0, matthews={"value": 0.88, "lower": 0.85, "upper": 0.91}),
            _variant("lite", 0.90, 2.0),
            _variant("nano", 0.85, 1.0),
        ],
        "points": [
            _point("full", "full", 0.94, 4.0),
            _point("full-nano-70", "full", 0.93, 2.2, cascade={
                "first": "nano", "temperature": 1.3, "threshold": 0.61, "escalated_share": 0.3
            }),
            _point("lite", "lite", 0.90, 2.0),
            _point("nano", "nano", 0.85, 1.0),
        ],
        "teacher_accuracy": 0.95,
        "target_cpu": {"model": "Some CPU", "vnni": True, "reduce_range": False, "flags": ["avx2"]},
        "dataset_sha256": "abc123",
        "recipe": {"settings": {"family": "shown", "note": HOSTILE}, "data_notes": [HOSTILE]},
        "libraries": {"torch": "2"},
        "candidates": [
            {"name": "full", "published": True, "lineage": ["finetune:aaa"],
             "passes": [*shared, _pass("export", "e1", 2.0)]},
            {"name": "lite", "published": True, "passes": [*shared, _pass("export", "e2", 1.0)]},
            {"name": "poor", "published": False, "reason": f"accuracy too low {HOSTILE}", "known": {"parameters": 7}},
            {"name": "full-lite-50", "kind": "cascade", "published": False, "reason": "beaten", "accuracy": 0.5,
             "escalated_share": 0.5, "test": {}},
        ],
    }  # fmt: skip
    return Manifest.model_validate({**content, **changes})


@pytest.fixture(scope="module")
def shown() -> tuple[str, str]:
    """Page and Markdown of one report."""
    pytest.importorskip("matplotlib")
    document = build(make(), "0001-aaaaaaaaaaaa", [make(family=f"peer{at}") for at in range(3)])
    return to_html(document), to_markdown(document)


class _Page(HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(shown: tuple[str, str]) -> None:
    page = _Page(shown[0])
    assert not {"script", "iframe", "object", "embed", "img"} & set(page.tags)
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    assert "@import" not in shown[0]
    assert not re.search(r"url\((?!#)", shown[0])


def test_every_id_of_the_page_is_unique_and_every_reference_has_its_target(shown: tuple[str, str]) -> None:
    page = _Page(shown[0])
    assert len(page.ids) == len(set(page.ids))
    used = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", shown[0]))
    assert used
    assert used <= set(page.ids)


def test_names_from_outside_are_text_and_never_markup(shown: tuple[str, str]) -> None:
    page, markdown = shown
    assert "&lt;script&gt;" in page
    assert "<script" not in markdown.split("```", 1)[0]
    assert "<img" not in markdown.split("````", 1)[0]
    rows = [line for line in markdown.splitlines() if line.startswith("| poor |")]
    # The pipe inside the reason is escaped: the row keeps its three cells.
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 4


def test_plots_follow_the_page_from_light_to_dark(shown: tuple[str, str]) -> None:
    page = shown[0]
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        assert "var(--ink)" in drawing
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) <= {"#000000"}
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_the_tables_give_shares_of_the_teacher(shown: tuple[str, str]) -> None:
    assert "| lite | 6 | int8 | 94.7 | 25.0 | 25.0 | 25.0 | 0.9000 (0.8900) | 8.0 | 2.000 | 6.00 |" in shown[1]
    # A cascade needs both files: 16 + 4 of the teacher's 32 MB.
    assert "| full-nano-70 | 6 + 6 | int8 | 97.9 | 62.5 | 27.5 | 27.5 |" in shown[1]
    assert main_table(make()) in shown[1]
    assert "At least 95% of the teacher's accuracy: full-nano-70, 97.9% at 27.5% of its CPU time" in shown[1]


def test_what_failed_and_what_was_rated_is_told_with_the_reason(shown: tuple[str, str]) -> None:
    assert "left out: accuracy too low" in shown[1]
    assert "- Known of poor: parameters 7." in shown[1]
    assert "| full-lite-50 | left out: beaten | 50.0% | 0.5000 |" in shown[1]
    assert "nano first, full below confidence 0.610 (temperature 1.30; 30.0% escalate)" in shown[1]


def test_evidence_that_nobody_measured_is_no_row_and_no_zero(shown: tuple[str, str]) -> None:
    assert "| Matthews correlation | – | 0.8800 [0.8500, 0.9100] | – | – |" in shown[1]
    assert "| Spearman correlation" not in shown[1]
    assert "macro F1 |" not in shown[1]


def test_shared_work_counts_once_among_the_passes() -> None:
    costs = {cost.pass_name: cost for cost in pass_costs(make())}
    assert costs["finetune"].cpu_seconds == 50.0
    assert (costs["export"].runs, costs["export"].cpu_seconds, costs["export"].joules) == (2, 3.0, 9.0)
    assert list(costs) == ["finetune", "measure", "export"]
    unmeasured = [{"name": "x", "passes": [{**_pass("a", "k", 1.0), "joules": None}, _pass("a", "l", 1.0)]}]
    assert pass_costs(make(candidates=unmeasured))[0].joules is None


def test_the_report_shows_the_evidence_of_what_was_left_out_and_why_joules_are_not_known() -> None:
    pytest.importorskip("matplotlib")
    evidence = _evidence("near", 0.80, 1.5, compile_joules=None, energy_relative_uncertainty=None)
    kept = {name: value for name, value in evidence.items() if value is not None}
    near = {
        "name": "near", "published": False, "reason": "near: pass 'evaluate' misses its gate", "layers": 3,
        "precision": "int8", "graph_form": "mha", "evidence": kept, "compile_joules_unknown": "work on a GPU",
        "passes": [{**_pass("distil", "d1", 9.0), "joules": None, "unmeasured": "work on a GPU"}],
    }  # fmt: skip
    manifest = make(candidates=[near])
    markdown = to_markdown(build(manifest, "v", [manifest]))
    assert "|  | fp32 | full | lite | nano | near (left out) |" in markdown
    assert "0.8000 (0.7900) |" in markdown
    assert "near: compile joules are not known: work on a GPU." in markdown
    assert "Joules that are not known: work on a GPU." in markdown
    assert figures(manifest)["failed_evidence"]["near"]["accuracy"] == 0.80


def test_the_front_leaves_out_what_another_way_beats_and_the_teacher() -> None:
    ways = [
        Way("teacher", "reference", 0.99, 0.98, 0.1), Way("good", "variant", 0.95, 0.9, 4.0),
        Way("dear", "variant", 0.94, 0.9, 5.0), Way("cheap", "cascade", 0.90, 0.9, 1.0),
    ]  # fmt: skip
    assert [way.name for way in pareto_front(ways)] == ["cheap", "good"]


def test_the_cheapest_point_that_keeps_a_share_is_found_or_none_is() -> None:
    manifest = make()
    found = cheapest_keeping(0.95, manifest)
    assert found is not None
    assert found.name == "full-nano-70"
    assert size_bytes(manifest, found) == 20_000_000
    assert cheapest_keeping(1.01, manifest) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(7, "7"), (5259.4, "5,259"), (22_595_021, "22,595,021"), (0.59312, "0.593")]
)
def test_large_figures_are_written_out(value: float, shown: str) -> None:
    assert compact(value) == shown


def test_joules_that_are_unmeasured_make_cpu_time_the_cost() -> None:
    pytest.importorskip("matplotlib")
    variants = [_variant("full", 0.9, 2.0, joules_per_1k=None, energy_source=None)]
    points = [{**_point("full", "full", 0.9, 2.0), "joules_per_1k": None}]
    manifest = make(variants=variants, points=points, candidates=[])
    markdown = to_markdown(build(manifest, "v", [manifest]))
    assert "CPU-seconds per 1,000 texts" in markdown
    assert "Joules were not measured" in markdown
    assert "Too few comparable variants" in markdown
    assert "does not say what its passes cost" in markdown


def test_only_variants_of_the_same_cpu_source_and_precision_are_compared() -> None:
    other = make(target_cpu={"model": "Other CPU", "vnni": False, "reduce_range": True})
    groups = comparable([make(), make(), other])
    sizes = {(setting.cpu, setting.precision): len(rows) for setting, rows in groups.items()}
    assert sizes == {
        ("Some CPU", "int8"): 6,
        ("Some CPU", "fp32"): 2,
        ("Other CPU", "int8"): 3,
        ("Other CPU", "fp32"): 1,
    }


def test_the_indicator_says_how_well_macs_per_parameter_orders_joules() -> None:
    rows = [Measured("a", macs, 1e6, joules) for macs, joules in ((1e6, 1.0), (2e6, 2.0), (3e6, 9.0))]
    assert indicator(rows) == pytest.approx(1.0)
    assert indicator([*rows, Measured("a", 4e6, 1e6, 0.5)]) == pytest.approx(-0.2)
    assert indicator(rows[:1]) is None


def test_a_version_that_cannot_be_read_does_not_hinder_the_others(tiny_version: Version) -> None:
    store = Store(tiny_version.path.parent.parent)
    second = publish_tiny_family(store, scale=3.0)
    (second.path / "manifest.json").write_text("{")
    assert manifests(store, make()) == [tiny_version.manifest]


def test_the_predictor_learns_from_one_version_of_a_family_its_newest_or_the_one_that_is_shown(
    tiny_version: Version,
) -> None:
    store = Store(tiny_version.path.parent.parent)
    second = publish_tiny_family(store, scale=3.0)
    other = publish_tiny_family(store, family="other")
    assert manifests(store, tiny_version.manifest) == [other.manifest, tiny_version.manifest]
    assert manifests(store, other.manifest) == [other.manifest, second.manifest]


def test_the_figures_kept_as_json_have_the_points_and_the_reasons() -> None:
    kept = figures(make())
    assert kept["points"][1]["cascade"]["first"] == "nano"
    assert kept["variants"]["full"]["macs_per_parameter"] == pytest.approx(2.0)
    assert kept["variants"]["full"]["matthews"]["lower"] == 0.85
    # Cascades that were rated only are no failures.
    assert list(kept["failed"]) == ["poor"]


def test_equal_stores_give_equal_bytes_whatever_the_user_configured(
    tiny_version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    write_report(tiny_version, tmp_path / "one" / "report.md")
    configured = tmp_path / "matplotlibrc"
    configured.write_text("axes.grid: False\nfont.size: 30\nsvg.hashsalt: other\n")
    monkeypatch.setenv("MATPLOTLIBRC", str(configured))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    code = (
        "import sys; from pathlib import Path; from models.store import Store; from compile.report import write_report;"
        "write_report(Store(sys.argv[1]).open('tiny'), Path(sys.argv[2]))"
    )
    where = [str(tiny_version.path.parent.parent), str(tmp_path / "two" / "report.md")]
    subprocess.run([sys.executable, "-c", code, *where], check=True, timeout=120)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"report.html", "report.md", "accuracy-against-joules.png"} <= set(names)
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def _report(monkeypatch: pytest.MonkeyPatch, *options: str) -> int | str | None:
    from compile import cli

    monkeypatch.setattr(sys, "argv", ["jouleserve-compile", "report", *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_command_writes_every_family_where_none_is_named(
    tiny_version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    store = tiny_version.path.parent.parent
    other = publish_tiny_family(Store(store), family="other")
    assert not _report(monkeypatch, "--store", str(store), "--out", str(tmp_path / "out"))
    printed = capsys.readouterr().out
    for version in (tiny_version, other):
        page = tmp_path / "out" / version.family / version.name / PAGE
        assert page.is_file()
        assert str(page) in printed
    assert "| nano | 1 | fp32 |" in printed


@pytest.mark.parametrize("options", [["--version", "0001-000000000000"], ["--json", "figures.json"]])
def test_a_version_or_figures_without_a_family_are_refused(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _report(monkeypatch, "--store", str(tmp_path), *options) == 2
    assert "give --family" in capsys.readouterr().err


def test_an_empty_store_is_said_to_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _report(monkeypatch, "--store", str(tmp_path / "none")) == 1
    assert "nothing is published" in capsys.readouterr().err


def _opened(page: Path) -> tuple[str, list[str]]:
    """What a browser makes of a page, and what it complains of; skips where there is no browser."""
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(_BROWSERS)}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    profile = f"--user-data-dir={page.with_suffix('.profile')}"
    done = subprocess.run(
        [browser, *options, profile, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_opens_the_page_without_a_complaint(shown: tuple[str, str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(shown[0])
    made, complaints = _opened(page)
    assert "Where the compile" in made
    assert complaints == []
    # The check can fail: the page's own policy forbids what is added here.
    page.write_text(shown[0].replace("</body>", "<script>1</script></body>"))
    assert _opened(page)[1]


def test_the_page_is_no_wider_than_a_phone_or_a_desk_screen(shown: tuple[str, str], tmp_path: Path) -> None:
    # The last frame shows that the check can fail: its tables do not scroll by themselves.
    frames = [(390, shown[0]), (1280, shown[0]), (390, shown[0].replace("overflow-x: auto", ""))]
    shapes = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{escape(page)}"></iframe>' for width, page in frames
    )
    measure = (
        "onload = () => { document.title = [...document.querySelectorAll('iframe')]"
        ".map(f => f.contentDocument.documentElement).map(e => e.scrollWidth - e.clientWidth).join(' ') }"
    )
    page = tmp_path / "frames.html"
    page.write_text(f"<!DOCTYPE html><title>none</title>{shapes}<script>{measure}</script>")
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", _opened(page)[0])
    assert found is not None
    assert (found[1], found[2]) == ("0", "0")
    assert int(found[3]) > 0
