"""Reading a submission: in bounded memory, beside the event loop, and nothing that fits is refused."""

from __future__ import annotations

import contextlib
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api import job_routes
from server.api.job_requests import parse_submission
from server.engine.errors import EngineError, InputTooLarge
from server.engine.family import Family
from server.engine.tokenizer import Text
from tests.server.api.test_jobs import serving

MAX_TEXTS = 20
parts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text('\\"[],{}n ', max_size=30)
texts = st.lists(st.lists(parts, min_size=1, max_size=2), min_size=1, max_size=MAX_TEXTS)


@given(texts, st.sampled_from([None, 4]), st.booleans())
def test_whatever_its_texts_say_a_submission_is_read_as_it_was_sent(
    rows: list[list[str]], indent: int | None, escaped: bool
) -> None:
    document = {"inputs": rows, "within_s": 60, "raw_scores": True}
    body = json.dumps(document, indent=indent, ensure_ascii=escaped).encode()
    assert parse_submission(body, "application/json", {}, MAX_TEXTS).texts == [Text(*row) for row in rows]


@given(texts, st.booleans())
def test_whatever_its_rows_say_a_file_is_read_as_it_was_sent(rows: list[list[str]], escaped: bool) -> None:
    body = "\n\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows).encode()
    submission = parse_submission(body, "application/x-ndjson", {"within_s": "60"}, MAX_TEXTS)
    assert submission.texts == [Text(*row) for row in rows]


@given(texts, st.integers(1, 20_000))
def test_what_is_cut_into_pieces_to_be_looked_at_is_looked_at_as_a_whole(rows: list[list[str]], long: int) -> None:
    rows = [['\\"' * long], *rows][:MAX_TEXTS]
    body = orjson.dumps({"inputs": rows, "within_s": 60})
    assert parse_submission(body, "application/json", {}, MAX_TEXTS).texts == [Text(*row) for row in rows]


def many(item: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """Two megabytes of an item."""
    return before + item * (2_000_000 // len(item)) + after


JSON, ROWS, LINES = "application/json", "application/x-ndjson", "text/plain"
BOMBS: dict[str, tuple[bytes, str]] = {
    "lists of a text": (many(b'["a"],', b'{"within_s":60,"inputs":[', b'["a"]]}'), JSON),
    "empty lists": (many(b"[],", b'{"within_s":60,"inputs":[', b"[]]}"), JSON),
    "empty texts": (many(b'"",', b'{"within_s":60,"inputs":[', b'""]}'), JSON),
    "objects in a field": (many(b"{},", b'{"within_s":[', b'{}],"inputs":"a"}'), JSON),
    "numbers": (many(b"1.5,", b'{"inputs":"a","within_s":[', b"1]}"), JSON),
    "a row of lists": (many(b"[],", b"[", b"[]]\n"), ROWS),
    "empty rows": (many(b"\n"), ROWS),
    "empty lines": (many(b"\n"), LINES),
    "rows that end with a carriage return": (many(b"\r\n"), LINES),
    "short lines": (many(b"a\n"), LINES),
}


@pytest.mark.parametrize(("body", "kind"), BOMBS.values(), ids=BOMBS)
def test_what_is_too_much_is_refused_before_it_takes_much_memory(body: bytes, kind: str) -> None:
    query = {} if kind == JSON else {"within_s": "60"}
    tracemalloc.start()
    try:
        with pytest.raises(InputTooLarge):
            parse_submission(body, kind, query, MAX_TEXTS)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < len(body)


odd = st.binary(max_size=300) | st.text('\\"[],{}\n :1a', max_size=300).map(str.encode)


@given(odd, st.sampled_from([JSON, ROWS, LINES]))
def test_other_bytes_are_read_or_refused_in_words(body: bytes, kind: str) -> None:
    with contextlib.suppress(EngineError):
        parse_submission(body, kind, {} if kind == JSON else {"within_s": "60"}, MAX_TEXTS)


async def test_a_submission_is_read_beside_the_event_loop(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def noting(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return parse_submission(*arguments)

    monkeypatch.setattr(job_routes, "parse_submission", noting)
    async with serving(family, tmp_path) as (client, _):
        made = await client.post("/jobs", json={"inputs": "card", "within_s": 60})
    assert made.status_code == 201
    assert threads
    assert threading.current_thread() not in threads
