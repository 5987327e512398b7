"""Where a replay's grid and load come from, beside files: the provider's past, the server's cache, Prometheus."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from energy.grid.memory import Memory
from energy.grid.signal import Intensity
from server.cli import app
from server.replay.errors import ReplayError
from server.replay.sources import read_grid, read_load
from server.settings import Settings
from tests.support.prometheus import needs_prometheus, prometheus_of

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


class Api:
    """An HTTP server on loopback that answers every path with `body`."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"{}"
        self.paths: list[str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.paths.append(self.path)
                self.send_response(api.status)
                self.send_header("Content-Length", str(len(api.body)))
                self.end_headers()
                self.wfile.write(api.body)

            def log_message(self, *_: Any) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def says(self, body: Any, status: int = 200) -> None:
        self.status, self.body = status, json.dumps(body).encode()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    api = Api()
    thread = threading.Thread(target=api.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield api
    api.server.shutdown()
    thread.join(10)
    api.server.server_close()


def uk(folder: Path, api: Api) -> Settings:
    return Settings.model_validate(
        {
            "grid": {"provider": "uk", "base_url": api.url, "max_attempts": 1},
            "server": {"run_dir": folder},
        }
    )


def half(time: datetime, grams: int) -> dict[str, Any]:
    return {"from": f"{time:%Y-%m-%dT%H:%MZ}", "intensity": {"forecast": grams, "actual": grams}}


def cached(folder: Path, hours: int) -> None:
    memory = Memory("uk", "GB")
    for back in range(hours, 0, -1):
        memory.accept(Intensity("GB", "uk", NOW - HOUR * (24 + back), 300.0, "live"), 28)
    memory.save(folder / "grid-cache.json")


def test_a_provider_s_past_and_what_the_server_kept_make_one_recording_with_gaps(tmp_path: Path, api: Api) -> None:
    cached(tmp_path, 10)
    api.says({"data": [half(NOW - HOUR * 3, 100), half(NOW - HOUR * 2, 200)]})
    zone, recording = read_grid("uk", uk(tmp_path, api))
    assert zone == "GB"
    assert recording.grams_per_kwh[:10] == (300.0,) * 10
    assert recording.grams_per_kwh[-2:] == (100.0, 200.0)
    assert None in recording.grams_per_kwh
    assert (recording.times[-1], recording.step) == (NOW - HOUR * 2, HOUR)


def test_the_server_s_cache_is_not_written_by_a_replay(tmp_path: Path, api: Api) -> None:
    cached(tmp_path, 10)
    before = (tmp_path / "grid-cache.json").read_bytes()
    api.says({"data": [half(NOW, 100)]})
    read_grid("uk", uk(tmp_path, api))
    assert (tmp_path / "grid-cache.json").read_bytes() == before


def test_a_provider_that_fails_leaves_what_was_kept_and_without_that_says_why(tmp_path: Path, api: Api) -> None:
    api.says({"error": "down"}, 500)
    with pytest.raises(ReplayError, match="gives no history"):
        read_grid("uk", uk(tmp_path, api))
    cached(tmp_path, 5)
    assert len(read_grid("uk", uk(tmp_path, api))[1].times) == 5


def test_a_provider_that_is_not_the_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"set grid\.provider=watttime"):
        read_grid("watttime", Settings.model_validate({"server": {"run_dir": tmp_path}}))


def prometheus(values: list[tuple[float, float]]) -> dict[str, Any]:
    rows = [[moment, str(value)] for moment, value in values]
    return {"status": "success", "data": {"result": [{"metric": {}, "values": rows}] if values else []}}


def test_prometheus_gives_the_requests_a_second_of_each_hour(api: Api) -> None:
    end = int(time.time()) // 3600 * 3600
    api.says(prometheus([(end - 7200, 3600.0), (end - 3600, float("nan")), (end, 7200.0)]))
    load = read_load(api.url)
    assert load.grams_per_kwh == (1.0, 2.0)
    assert load.times[-1] == datetime.fromtimestamp(end, UTC) - HOUR
    assert "/api/v1/query_range?query=sum" in api.paths[0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"status": "error", "error": "bad query"}, "bad query"),
        (prometheus([]), "does it scrape"),
        ([], "no answer of Prometheus"),
        ({"status": "success"}, "no answer of Prometheus"),
    ],
)
def test_what_prometheus_cannot_tell_is_said(api: Api, body: Any, said: str) -> None:
    api.says(body)
    with pytest.raises(ReplayError, match=said):
        read_load(api.url)


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(ReplayError, match=r"--load: http://127\.0\.0\.1:port gives no answer"):
        read_load("http://127.0.0.1:port")


def test_the_command_takes_the_settings_provider(tmp_path: Path, api: Api) -> None:
    past = [half(NOW - HOUR * back, 100 + 10 * back) for back in range(24, 0, -1)]
    api.says({"data": past})
    chosen = ["--set", f"grid.base_url={api.url}", "--set", "grid.provider=uk", "--set", f"server.run_dir={tmp_path}"]
    told = CliRunner().invoke(app, ["replay", "--grid", "uk", "--small-share", "0.5", *chosen])
    assert told.exit_code == 0, told.output
    assert "GB, 1 days" in told.output


STEP_S = 300


def days_of_requests() -> str:
    """Two days of a counter scraped every five minutes: 4 requests a second by day (6 to 18 h UTC) and 1 by night, on
    two replicas, one of which starts anew halfway; and as much of the class `eco`, which the dial does not move."""
    begin = int((NOW - timedelta(days=2)).timestamp())
    standard, eco = [], []
    for instance in ("a:9400", "b:9400"):
        total = 0.0
        for second in range(0, 2 * 86_400 + 1, STEP_S):
            moment = begin + second
            if instance == "b:9400" and second == 86_400:
                total = 0.0
            labels = f'instance="{instance}",job="node",model="m",outcome="ok"'
            standard.append(f'jouleserve_requests_total{{{labels},class="standard"}} {total} {moment}')
            eco.append(f'jouleserve_requests_total{{{labels},class="eco"}} {total} {moment}')
            total += STEP_S * (2.0 if 6 <= datetime.fromtimestamp(moment, UTC).hour < 18 else 0.5)
    return "\n".join(["# TYPE jouleserve_requests counter", *standard, *eco, "# EOF", ""])


@needs_prometheus
def test_a_replay_reads_its_load_from_a_real_prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [f"{NOW - HOUR * back:%Y-%m-%dT%H:%M:%SZ},{300 + 100 * (back % 2)}" for back in range(48, 0, -1)]
    (tmp_path / "Z.csv").write_text("\n".join(["utc_time,ci_lifecycle", *rows]) + "\n")
    with prometheus_of(tmp_path, days_of_requests()) as url:
        load = read_load(url)
        chosen = ["--load", url, "--small-share", "0.5", "--out", str(tmp_path / "out.json")]
        told = CliRunner().invoke(app, ["replay", "--grid", str(tmp_path / "Z.csv"), *chosen])
    by_hour = {moment.hour: grams for moment, grams in zip(load.times, load.grams_per_kwh, strict=True)}
    assert by_hour[12] == pytest.approx(4, rel=0.02)
    assert by_hour[0] == pytest.approx(1, rel=0.02)
    assert told.exit_code == 0, told.output
    figures = {one["policy"]: one for one in json.loads((tmp_path / "out.json").read_text())["figures"]}
    # A joule an answer, two days at 2.5 answers a second.
    assert figures["always full"]["kwh"] == pytest.approx(2 * 86_400 * 2.5 / 3.6e6, rel=0.02)
