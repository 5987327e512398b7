"""A short load of bursts with locust against a real server, over HTTP and gRPC; the page and the verdict."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.http import HTTP
from loadtest.served import Served, free_port, serve
from models.store import Store
from tests.support.browser import PHONE, Tab, chromium
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

TEXTS = "text,label\n" + "".join(f"{label} w{n},{label}\n" for n in range(50) for label in ("card", "refund", "parcel"))
RATE, SECONDS = 30.0, 10.0
TICK_S = 0.2
"""Far below a part's second, so that every part in which something was answered has joules."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, int, Path]]:
    """A server, its gRPC port and a folder with texts."""
    folder = tmp_path_factory.mktemp("load")
    (folder / "texts.csv").write_text(TEXTS)
    store = Store(folder / "store")
    publish_tiny_family(store)
    grpc_port = free_port()
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "server.grpc_port": grpc_port,
        "energy.source": "estimated",
        "energy.tick_s": TICK_S,
    }
    with serve(folder, settings, edge=True) as served:
        yield served, grpc_port, folder


def command(edge: tuple[Served, int, Path], out: Path, *options: str) -> list[str]:
    served, _, folder = edge
    return [
        *(sys.executable, "-m", "loadtest.load", "run", "--arrivals", "bursty", "--texts", str(folder / "texts.csv")),
        *("--url", served.url, "--metrics-url", served.metrics_url, "--out", str(out), "--clients", "16"),
        *("--seconds", str(SECONDS), "--rate", str(RATE), "--slice", "1", *options),
    ]


def finished(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "encountered a user" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first(edge: tuple[Served, int, Path]) -> tuple[Path, str]:
    """A run over HTTP: its folder and what it said."""
    out = edge[2] / "first"
    return out, finished(command(edge, out))


def report(out: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((out / "run.json").read_text())
    return run


def test_a_run_over_http_reports_latency_joules_shares_and_quality(first: tuple[Path, str]) -> None:
    out, said = first
    run = report(out)
    figures = run["figures"]
    assert figures["answered"] == figures["sent"] == run["plan"]["requests"] > 100
    assert figures["latency_ms"]["p99"] >= figures["latency_ms"]["p50"] > 0
    assert figures["joules_per_answer"] > 0
    assert figures["joules"]["idle"] > 0
    assert figures["grams_per_answer"] > 0
    assert set(figures["by_class"]) == {"strict", "standard", "eco"}
    assert figures["by_class"]["strict"]["share_by_point"] == {"full": 1.0}
    assert figures["quality"] == {"judged": figures["sent"], "correct_share": 1.0}
    assert len(run["slices"]) >= 5
    assert "| correct labels | 100.0% of" in said
    assert (out / "report.md").read_text() in said
    curves = re.search(r'"history": (\[.*?\]), "host"', (out / "locust.html").read_text())
    assert curves is not None
    assert 16 in [point["user_count"][1] for point in json.loads(curves[1])]
    assert (out / "outcomes.csv.gz").stat().st_size > 0


def test_the_report_says_how_sure_the_joules_of_answers_are(first: tuple[Path, str]) -> None:
    assert "(estimated, ±80%, those of answers ±50%)" in first[1]


def test_locusts_report_is_whole_on_a_phone_and_misses_no_file(first: tuple[Path, str]) -> None:
    with chromium() as browser:
        tab = Tab(browser, (first[0] / "locust.html").as_uri(), viewport=PHONE)
        tab.wait("document.querySelectorAll('h2').length >= 4")
        assert tab.complaints == []
        assert tab.page.evaluate("[...document.querySelectorAll('h1,h2')].every((h) => h.scrollWidth <= h.clientWidth)")
        assert "bursty arrivals over HTTP" in tab.text("body")


def compared(*runs: Path) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "loadtest.load", "compare", *map(str, runs)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60)


def test_a_run_is_compared_with_another_of_the_same_plan(first: tuple[Path, str], tmp_path: Path) -> None:
    """The other is this one with cheaper and slower parts: what two real runs differ by is never known beforehand."""
    run = report(first[0])
    for part in run["slices"]:
        for name, factor in (("joules_per_answer", 0.8), ("p99_ms", 2.0)):
            part[name] = part[name] and part[name] * factor
    (tmp_path / "run.json").write_text(json.dumps(run))
    same, other = compared(first[0], first[0]), compared(first[0], tmp_path)
    assert (same.returncode, other.returncode) == (0, 1), same.stderr + other.stderr
    assert "joules an answer (requests): B no difference seen: +0.0%" in same.stdout
    assert "joules an answer (requests): B less: -20.0% (-20.0% to -20.0%" in other.stdout
    assert "joules an answer (with overhead): B no difference seen" in other.stdout
    assert "p99 latency: B more: +100.0%" in other.stdout


def test_the_same_over_grpc_is_another_run_that_is_not_compared(
    edge: tuple[Served, int, Path], first: tuple[Path, str], tmp_path: Path
) -> None:
    finished(command(edge, tmp_path, "--grpc", f"127.0.0.1:{edge[1]}"))
    run = report(tmp_path)
    assert run["figures"]["answered"] == run["figures"]["sent"]
    assert run["figures"]["quality"]["correct_share"] == 1.0
    assert run["plan"]["fingerprint"] == report(first[0])["plan"]["fingerprint"]
    refused = compared(first[0], tmp_path)
    assert refused.returncode == 2
    assert "protocol: the runs did not ask the same" in refused.stderr


def test_locusts_own_page_starts_a_run_that_is_reported(edge: tuple[Served, int, Path], tmp_path: Path) -> None:
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command(edge, tmp_path / "w", "--web", str(port)), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: HTTP.get(page).status_code == 200)
        assert HTTP.post(f"{page}/swarm", data={"user_count": 1, "spawn_rate": 1}).json()["success"] is True
        wait_until(lambda: (tmp_path / "w" / "report.md").exists())
        requests = HTTP.get(f"{page}/stats/requests").json()
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
    assert code == 0, (tmp_path / "log").read_text()
    assert requests["stats"][-1]["num_requests"] == report(tmp_path / "w")["figures"]["sent"]


def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.2)


def test_a_meter_that_is_none_is_named_before_the_load_begins(edge: tuple[Served, int, Path], tmp_path: Path) -> None:
    for address in (edge[0].url, "http://127.0.0.1:9"):
        words = command(edge, tmp_path)
        words[words.index("--metrics-url") + 1] = address
        refused = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1
        assert f"the load failed: --metrics-url: {address}" in refused.stderr


def test_a_mistake_is_named_before_anything_starts(tmp_path: Path) -> None:
    for options, says in (
        (["--url", "http://127.0.0.1:9"], "--texts: missing"),
        (["--mix", "cheap=1"], "--mix: 'cheap' is no class"),
        (["--arrivals", "nowhere.csv"], "nowhere.csv: does not exist"),
        (["--rows", "0:60"], "--rows: diurnal is made, not recorded"),
        (["--rate", "0.0001", "--seconds", "1"], "no request would be sent"),
        (["--rate", "inf"], "argument --rate"),
        (["--slice", "0"], "argument --slice"),
        (["--rate", "1e6", "--seconds", "1e6"], "more than 5,000,000 requests"),
        (["--clients", "0"], "--clients: give at least 1"),
    ):
        refused = subprocess.run(
            [sys.executable, "-m", "loadtest.load", "run", "--out", str(tmp_path), *options],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert refused.returncode == 2, refused.stderr
        assert says in refused.stderr
