"""`jouleserve jobs`: files of texts, time spans, keys, and servers that are none. Its way over HTTP is in
`tests/served/test_jobs.py`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.jobs.command import read_texts, seconds_of
from server.start_error import StartError


def refused(*words: str) -> str:
    """What the command says of it."""
    told = CliRunner().invoke(app, ["jobs", *words]).exception
    assert isinstance(told, StartError), told
    return str(told)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that is no JouleServe."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_a_table_is_sent_as_rows_and_other_files_as_they_are(tmp_path: Path) -> None:
    table, lines, rows = tmp_path / "a.csv", tmp_path / "a.txt", tmp_path / "a.ndjson"
    table.write_bytes(b'\xef\xbb\xbfid,text,text_b\r\n1,"one, two",\r\n2,three,four\r\n')
    lines.write_text("one\n")
    rows.write_text('"one"\n')
    assert read_texts(table) == (b'["one, two"]\n["three", "four"]\n', "application/x-ndjson")
    assert read_texts(lines) == (b"one\n", "text/plain")
    assert read_texts(rows) == (b'"one"\n', "application/x-ndjson")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"id,words\n1,one\n", "has no column `text`"),
        (b"id,text\n1\n", "or a row without one"),
        (b"id,text\n1,\xff\n", "cannot be read"),
        (b"id,text\n1," + b"x" * 200_000, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartError, match=said):
        read_texts(path)


def test_time_spans_have_a_unit() -> None:
    assert [seconds_of(text) for text in ("90m", "12h", "3d", "45s", "0.5h")] == [5400, 43_200, 259_200, 45, 1800]
    for text in ("", "12", "h", "twelve hours"):
        with pytest.raises(StartError, match="no time span"):
            seconds_of(text)


@pytest.mark.parametrize("content", ["s3cr3t-key\nmore\n", "s3cr3t-k\u00e9y", "s3cr3t-key more", "", None])
def test_a_file_that_is_no_key_is_refused_and_nothing_of_it_is_shown(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    said = refused("list", "--url", "http://127.0.0.1:9", "--key-file", str(path))
    assert said.startswith(f"--key-file: {path}")
    assert "s3cr3t" not in said


@pytest.mark.parametrize("key", ["cl\u00e9", "a\nb", " ", ""])
def test_an_idempotency_key_that_no_header_can_carry_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("my card\n")
    said = refused("submit", str(path), "--within", "1h", "--idempotency-key", key, "--url", "http://127.0.0.1:9")
    assert said.startswith("--idempotency-key:")


def test_a_server_that_does_not_answer_or_is_another_is_named(elsewhere: str) -> None:
    assert "start it with `jouleserve up`" in refused("list", "--url", "http://127.0.0.1:9")
    assert "does not answer" in refused("list", "--url", "http://127.0.0.1:port")
    assert "is no JouleServe: it answers 200" in refused("list", "--url", elsewhere)
