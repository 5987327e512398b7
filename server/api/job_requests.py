"""`POST /jobs`: reading a submission, as JSON or as a file, no I/O."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

import orjson

from energy.grid.signal import parse_utc
from server.api.errors import MalformedRequest
from server.api.predict import parse_flag, parse_inputs, parse_side, parse_text
from server.engine.errors import EmptyInput, InputTooLarge, InvalidInput
from server.engine.family import Family
from server.engine.tokenizer import Text, Truncation
from server.jobs.job import Wanted

FIELDS = {"inputs", "deadline", "within_s", "raw_scores", "truncate", "truncation_direction"}
PARAMETERS = FIELDS - {"inputs"}
LINES, ROWS = "text/plain", "application/x-ndjson"
FILES = (LINES, ROWS)
MAX_KEY_CHARS = 255
BOM = b"\xef\xbb\xbf"
SCANNED_BYTES = 16_384
PAIR_BYTES = len('["",""],')
"""Of a pair of texts in JSON, beside what it says and spaces: the most that a text has of them."""
OTHER_BYTES = 2048
"""More than all other fields have of them."""
BLANK_LINES = 2048
"""So many a file may have beside one a text."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A parsed submission. Of `deadline_s` (seconds since the epoch) and `within_s` (from now on) one is given."""

    texts: list[Text]
    deadline_s: float | None
    within_s: float | None
    raw_scores: bool
    truncate: Truncation | None

    def wanted(self, owner: str, now_s: float, key: str | None, digest: bytes) -> Wanted:
        """The job that it asks for, now."""
        deadline_s = now_s + (self.within_s or 0.0) if self.deadline_s is None else self.deadline_s
        return Wanted(owner, self.texts, deadline_s, self.truncate, self.raw_scores, key, digest)


def parse_submission(body: bytes, content_type: str, query: Mapping[str, str], max_texts: int) -> Submission:
    """Read a submission: a JSON object, or a file of one text a line (`text/plain`) or one JSON text or pair a line
    (`application/x-ndjson`) with the other fields in the query. What holds more than `max_texts` is not read to its
    end, so that the time and the memory it takes are bounded; for a thread of its own all the same.

    Raises MalformedRequest, EmptyInput, InputTooLarge or InvalidInput, naming the field and the remedy.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in FILES:
        document: dict[str, Any] = dict(query)
        _check_known(document, PARAMETERS)
        texts = _lines(body, kind, max_texts)
        for name in ("raw_scores", "truncate"):
            if name in document:
                document[name] = _query_flag(name, document[name])
        if "within_s" in document:
            document["within_s"] = _query_number("within_s", document["within_s"])
    else:
        _check_amount(body, max_texts)
        document = _object(body)
        _check_known(document, FIELDS)
        if query:
            raise MalformedRequest(f"{min(query)[:40]}: in the query; with a JSON body all fields belong there")
        if "inputs" not in document:
            raise MalformedRequest("inputs: missing; give a text, a pair of texts or a list of [text] or [text, text]")
        texts, _ = parse_inputs(document["inputs"], max_texts)
    side = parse_side(document.get("truncation_direction", "right"))
    truncate = side if parse_flag(document, "truncate") else None
    deadline_s, within_s = _when(document)
    return Submission(texts, deadline_s, within_s, parse_flag(document, "raw_scores"), truncate)


def parse_key(value: bytes | None) -> str | None:
    """The `Idempotency-Key`; None without one. Raises MalformedRequest."""
    if value is None:
        return None
    key = value.decode("latin-1").strip()
    if not 1 <= len(key) <= MAX_KEY_CHARS or not key.isprintable():
        raise MalformedRequest(f"Idempotency-Key: give 1 to {MAX_KEY_CHARS} printable characters")
    return key


def digest_of(body: bytes, content_type: str, query: Mapping[str, str]) -> bytes:
    """Tells submissions with the same idempotency key apart."""
    described = orjson.dumps([content_type, sorted(query.items())])
    return hashlib.sha256(described + b"\0" + body).digest()


def check_texts(texts: list[Text], family: Family, max_chars: int) -> None:
    """What would fail for certain is refused at once. Raises InputTooLarge, InvalidInput or EmptyInput."""
    for number, text in enumerate(texts):
        for part in (text.first, text.second or ""):
            if len(part) > max_chars:
                raise InputTooLarge(f"inputs[{number}]: {len(part)} characters; the limit is {max_chars}")
            try:
                part.encode()
            except UnicodeEncodeError:
                raise InvalidInput(f"inputs[{number}]: half of a surrogate pair; send whole characters") from None
        try:
            family.tokenizer.check(text)
        except (InvalidInput, EmptyInput) as error:
            raise type(error)(str(error).replace("inputs:", f"inputs[{number}]:", 1)) from None


def _object(body: bytes) -> dict[str, Any]:
    if not body:
        raise EmptyInput('body: empty; send {"inputs": [["a text"]], "within_s": 86400}, or a file')
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"body: not JSON ({error}); a file comes as {' or '.join(FILES)}") from None
    if not isinstance(document, dict):
        raise MalformedRequest('body: not a JSON object; send {"inputs": [["a text"]], "within_s": 86400}')
    return document


def _check_known(document: Mapping[str, Any], known: set[str]) -> None:
    unknown = document.keys() - known
    if unknown:
        raise MalformedRequest(f"{min(unknown)[:40]}: unknown field; known are {', '.join(sorted(known))}")


def _check_amount(body: bytes, max_texts: int) -> None:
    """Refuse JSON of more values than so many texts have before any is made: each takes a byte outside of strings or a
    quote, and 50 bytes of memory and more. Raises InputTooLarge."""
    most = PAIR_BYTES * max_texts + OTHER_BYTES
    found = within = 0
    cut = b""
    for start in range(0, len(body), SCANNED_BYTES):
        piece = cut + body[start : start + SCANNED_BYTES]
        piece = piece.replace(rb"\\", b"").replace(rb"\"", b"")
        cut = piece[-1:] if piece.endswith(b"\\") else b""
        parts = piece.split(b'"')
        found += len(parts) - 1 + len(b"".join(parts[within::2]).translate(None, b" \t\r\n"))
        if found > most:
            raise InputTooLarge(f"body: more values than {max_texts} texts have; send them as several jobs")
        within = (within + len(parts) - 1) % 2


def _lines(body: bytes, kind: str, max_texts: int) -> list[Text]:
    if kind == ROWS:
        _check_amount(body, max_texts)
    texts: list[Text] = []
    for number, line in enumerate(io.BytesIO(body.removeprefix(BOM)), 1):
        if number > 2 * max_texts + BLANK_LINES:
            raise InputTooLarge(f"body: more than {number - 1} lines; send them as several jobs, without blank lines")
        text = _decoded(line, number).rstrip("\r\n")
        if not text.strip():
            continue
        if len(texts) == max_texts:
            raise InputTooLarge(f"body: more than {max_texts} texts; send them as several jobs")
        texts.append(Text(text) if kind == LINES else _row(text, number))
    if not texts:
        raise EmptyInput("body: the file holds no text; write one a line")
    return texts


def _decoded(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequest(
            f"line {number}: not UTF-8 ({error.reason} at byte {error.start}); send a UTF-8 file"
        ) from None


def _row(line: str, number: int) -> Text:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"line {number}: not JSON ({error})") from None
    return Text(row) if isinstance(row, str) else parse_text(row, f"line {number}")


def _when(document: Mapping[str, Any]) -> tuple[float | None, float | None]:
    deadline, within_s = document.get("deadline"), document.get("within_s")
    if (deadline is None) == (within_s is None):
        raise MalformedRequest("deadline: give either it, as an ISO 8601 time, or within_s, seconds from now")
    if deadline is None:
        if isinstance(within_s, bool) or not isinstance(within_s, int | float):
            raise MalformedRequest("within_s: must be a number of seconds")
        if not isfinite(within_s) or not 0 < within_s <= 1e9:
            raise InvalidInput("within_s: give a positive number of seconds")
        return None, float(within_s)
    try:
        time = parse_utc(deadline)
        return (time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds(), None
    except (ValueError, TypeError, OverflowError):
        raise MalformedRequest("deadline: not an ISO 8601 time, such as 2026-12-01T06:00:00Z") from None


def _query_flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise MalformedRequest(f"{name}: must be true or false")
    return value == "true"


def _query_number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise MalformedRequest(f"{name}: must be a number of seconds") from None
