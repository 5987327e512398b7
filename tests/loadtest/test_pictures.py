"""Pictures: panels of a dashboard from what a Prometheus answers, small enough for a page."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from loadtest.board_picture import Span, ask, draw, legend, shown
from loadtest.pictures import MOST_BYTES, small

SPAN = Span(1000.0, 1060.0, 2.0, "16s")


@contextmanager
def answering(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """What answers as a Prometheus does, and the expressions that it was asked."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(parse_qs(urlsplit(self.path).query)["query"][0])
            body = json.dumps({"data": {"result": rows}}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def panel(kind: str, y: int, unit: str = "watt") -> dict[str, Any]:
    target = {"expr": 'rate(a{job=~"$job"}[$__rate_interval])', "legendFormat": "{{domain}} W"}
    place = {"x": 0, "y": y, "w": 24, "h": 8}
    return {
        "type": kind,
        "title": "A",
        "gridPos": place,
        "targets": [target],
        "fieldConfig": {"defaults": {"unit": unit}},
    }


ROW = {"metric": {"domain": "package"}, "values": [[1000 + 2 * n, str(n)] for n in range(30)] + [[1060, "NaN"]]}


def test_a_legend_is_filled_in_and_an_unknown_label_is_empty() -> None:
    assert legend("{{domain}} of {{ device }}", {"domain": "package"}) == "package of"
    assert legend("", {}) == "value"


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("watt", 0.0123, "12.3 mW"),
        ("percentunit", 0.5, "50%"),
        ("s", 0, "0 s"),
        ("bytes", 2e9, "2 GB"),
        ("massg", 2e-3, "2 mg"),
        ("suffix:gCO2e/kWh", 1234, "1234 gCO2e/kWh"),
    ],
)
def test_values_are_written_in_the_panels_unit(unit: str, value: float, text: str) -> None:
    assert shown(unit)(value) == text


def test_what_is_no_number_is_left_out_and_the_interval_is_filled_in() -> None:
    with answering([ROW]) as (url, asked):
        (series,) = ask(url, panel("timeseries", 0), SPAN)
    assert asked == ['rate(a{job=~".*"}[16s])']
    assert series.name == "package W"
    assert len(series.values) == 30


def test_a_dashboard_is_drawn_as_far_as_was_asked_for(tmp_path: Path) -> None:
    board = {"title": "B", "panels": [panel("timeseries", 0), panel("stat", 8), panel("timeseries", 16)]}
    (tmp_path / "b.json").write_text(json.dumps(board))
    with answering([ROW]) as (url, asked):
        draw(tmp_path / "b.json", url, SPAN, tmp_path / "b.png", rows=16)
    assert len(asked) == 2
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB")).astype(int)
    green = (abs(pixels - (0x0B, 0x7A, 0x4F)).sum(axis=2) < 30).sum()
    assert green > 100  # the line is there, not hidden behind its card


def test_bars_stand_in_the_order_of_their_numbers_with_the_latest_value(tmp_path: Path) -> None:
    bars = panel("barchart", 0, "joule")
    bars["transformations"] = [{"id": "groupingToMatrix", "options": {"rowField": "rows", "columnField": "domain"}}]
    (tmp_path / "b.json").write_text(json.dumps({"title": "B", "panels": [bars]}))
    heights = {"16": 1, "2": 9, "1": 5}
    rows = [{"metric": {"domain": "a", "rows": n}, "values": [[1000, "0"], [1060, str(h)]]} for n, h in heights.items()]
    with answering(rows) as (url, _):
        draw(tmp_path / "b.json", url, SPAN, tmp_path / "b.png")
    pixels = np.asarray(Image.open(tmp_path / "b.png").convert("RGB")).astype(int)
    green = abs(pixels - (0x0B, 0x7A, 0x4F)).sum(axis=2) < 30
    third = green.shape[1] // 3
    tall = [int(green[:, n * third : (n + 1) * third].sum(axis=0).max()) for n in range(3)]
    assert tall[1] > tall[0] > tall[2] > 0


def test_without_data_the_picture_says_so_instead_of_failing(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps({"title": "B", "panels": [panel("timeseries", 0), panel("stat", 8)]}))
    with answering([]) as (url, _):
        draw(tmp_path / "b.json", url, SPAN, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_a_large_picture_becomes_small_and_a_small_one_stays() -> None:
    noise = np.random.default_rng(1).integers(0, 9, (400, 400, 3)).astype(np.uint8) * 9
    large, little = (_png(pixels) for pixels in (noise, noise[:50, :50]))
    assert len(large) > MOST_BYTES
    assert len(small(large)) <= MOST_BYTES
    assert small(little) == little


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
