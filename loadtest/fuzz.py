"""`make fuzz`: whatever is sent, the server answers as its OpenAPI document says, and lives.

Half of the cases are made by schemathesis from the document: requests that obey it and requests that do not, for every
operation. The other half are made by hypothesis for `/predict`: bodies that nearly fit, bytes that do not, and HTTP
that is broken in its framing. An answer 5xx is a failure unless the document lists it; so is an answer of another shape
than the document's, and a server that is not the same process at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup

from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.served import serve

TIMEOUT_S = 30.0
MOST_FAILURES_KEPT = 20
DOCUMENTED_5XX = {503, 504}
CHECK_NAMES = (
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
)

console = Console()


@dataclass
class Tally:
    """Answers by kind of case and status (0: the connection was closed without one), and what was wrong."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    failed: int = 0

    @property
    def cases(self) -> int:
        """All cases that were sent."""
        return self.answers.total()

    def fail(self, what: str) -> None:
        """Count a failure and keep what it was, unless there are many already."""
        self.failed += 1
        if len(self.failures) < MOST_FAILURES_KEPT:
            self.failures.append(what)

    def add(self, kind: str, status: int, request: object) -> None:
        """Count an answer; an undocumented 5xx is a failure."""
        self.answers[kind, status] += 1
        if status >= 500 and status not in DOCUMENTED_5XX:
            self.fail(f"{kind}: {status} for {request!r:.2000}")


def _cases(strategy: st.SearchStrategy[Any], count: int, number: int, check: Callable[[Any], None]) -> None:
    """Call `check` with `count` examples; `number` makes them repeatable. `check` tallies and does not raise."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Any) -> None:
        check(case)

    run()


def fuzz_document(url: str, cases: int, number: int, tally: Tally) -> None:
    """Send about `cases` requests that schemathesis makes of the server's document, spread over its operations."""
    load_all_checks()
    checks: list[Any] = [CHECKS.get_one(name) for name in CHECK_NAMES]
    # A wrong request may be wrong in its size first: any refusal will do.
    config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}}})
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    info = httpx.get(f"{url}/info").json()
    served = {"name": info["model_id"], "version": info["model_sha"]}
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    # An operation without a body or parameters has one request to make; the rest is for those that have more.
    rich = [operation for operation in operations if operation.body]
    share = max(1, (cases - 2 * (len(operations) - len(rich))) // (2 * max(1, len(rich))))
    with requests.Session() as session:

        def check(case: Case[Any]) -> None:
            kind = f"{case.operation.method.upper()} {case.operation.path}"
            try:
                reply = case.call(session=session, timeout=TIMEOUT_S)
            except requests.RequestException as error:
                tally.add(kind, 0, case)
                tally.fail(f"{kind}: no answer ({error}) for {case!r:.2000}")
                return
            tally.add(kind, reply.status_code, case)
            try:
                case.validate_response(reply, checks=checks)
            except (AssertionError, FailureGroup) as error:
                why = "; ".join(map(str, error.exceptions)) if isinstance(error, FailureGroup) else str(error)
                tally.fail(f"{kind}: {reply.status_code}: {why:.1000} for {case.body!r:.500}")

        for operation in operations:
            for mode, known in itertools.product(GenerationMode, (True, False)):
                if known and not operation.path_parameters:
                    continue
                if mode == GenerationMode.NEGATIVE and not operation.body:
                    continue  # a path is any text, and there is nothing else to get wrong
                # Of a made-up model nobody has ever heard: most are for the one that is served.
                count = (share * 3 // 4 if known else share // 4) if operation.path_parameters else share
                # A job's number is known to nobody before there is a job.
                known = known and all(one.name in served for one in operation.path_parameters)
                where = {one.name: served[one.name] for one in operation.path_parameters} if known else None
                strategy = operation.as_strategy(generation_mode=mode, path_parameters=where)
                _cases(strategy, count if operation.body else 1, number, check)


TEXTS = st.text(max_size=60) | st.sampled_from(
    ["", " ", "\x00", "[SEP]", "[PAD]" * 50, "\u202e\u0301", "\U0001f600" * 9, "a" * 30_000, "word " * 3000, "\ufffe"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
INPUTS = TEXTS | st.lists(TEXTS, max_size=3) | st.lists(st.lists(TEXTS, max_size=3), max_size=70) | ANYTHING
FIELDS = {
    "raw_scores": st.booleans() | ANYTHING,
    "truncate": st.booleans() | ANYTHING,
    "truncation_direction": st.sampled_from(["left", "right", "Left", "up"]) | ANYTHING,
}
NEAR = st.builds(
    lambda inputs, rest: json.dumps({"inputs": inputs, **rest}).encode(),
    INPUTS,
    st.fixed_dictionaries({}, optional=FIELDS),
)
NESTED = st.builds(
    lambda opening, depth: b'{"inputs": ' + opening * depth,
    st.sampled_from([b"[", b'{"a":', b'[["a"],', b'"\\']),
    st.integers(0, 20_000),
)
GOOD_TEXTS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1, max_size=40).map("my {}".format)
GOOD = st.builds(
    lambda inputs, rest: json.dumps({"inputs": inputs, **rest}).encode(),
    GOOD_TEXTS | st.lists(st.lists(GOOD_TEXTS, min_size=1, max_size=1), min_size=1, max_size=5),
    st.fixed_dictionaries({"truncate": st.just(True)}, optional={"raw_scores": st.booleans()}),
)
BODIES = GOOD | NEAR | NESTED | st.binary(max_size=300) | ANYTHING.map(lambda value: json.dumps(value).encode())
HEADER_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)
HEADERS = st.dictionaries(
    st.sampled_from(["x-quality", "authorization", "traceparent", "content-type", "expect", "x-other"]),
    st.sampled_from(["strict", "eco", "100-continue", "text/plain", "00-" + "0" * 32]) | HEADER_VALUES,
    max_size=3,
)
PATHS = st.sampled_from(["/predict", "/predict?long=1"])


def fuzz_predict(url: str, cases: int, number: int, tally: Tally) -> None:
    """Send bodies and headers to `/predict`, over both ways into the server."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:

        def check(case: tuple[str, bytes, dict[str, str]]) -> None:
            path, body, headers = case
            try:
                reply = client.post(path, content=body, headers=headers)
            except httpx.HTTPError as error:
                tally.add("bodies", 0, case)
                tally.fail(f"bodies: no answer ({error!r}) for {case!r:.2000}")
                return
            tally.add("bodies", reply.status_code, case)
            document = reply.json()
            if isinstance(document, list) != (reply.status_code == 200):
                tally.fail(f"bodies: {reply.status_code} with {document!r:.500} for {case!r:.2000}")

        _cases(st.tuples(PATHS, BODIES, HEADERS), cases, number, check)


WORDS = [b"POST", b"GET", b" ", b"/predict", b"/info", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"\r\n"]
WORDS += [
    b"host: x\r\n",
    b"content-length: 5\r\n",
    b"content-length: -1\r\n",
    b"content-length: 99999999999999999999\r\n",
]
WORDS += [
    b"transfer-encoding: chunked\r\n",
    b"5\r\n",
    b"0\r\n\r\n",
    b"fffffffff\r\n",
    b"connection: close\r\n",
    b"\x00",
]
WORDS += [b"upgrade: websocket\r\n", b"connection: upgrade\r\n", b"expect: 100-continue\r\n", b'{"inputs": "a"}', b": "]
WIRE = st.lists(st.sampled_from(WORDS) | st.binary(max_size=20), max_size=14).map(b"".join) | st.builds(
    lambda rest: b"POST /predict HTTP/1.1\r\nhost: x\r\n" + b"".join(rest), st.lists(st.sampled_from(WORDS), max_size=9)
)


def fuzz_wire(port: int, cases: int, number: int, tally: Tally) -> None:
    """Send bytes that are nearly HTTP, or not at all; the end of what is sent is told by closing our direction."""

    def check(sent: bytes) -> None:
        received = b""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    received += part
        except ConnectionError:
            pass
        except TimeoutError:
            tally.fail(f"wire: neither an answer nor an end for {sent!r:.2000}")
        status = received[9:12]
        tally.add("wire", int(status) if status.isdigit() else 0, sent)

    _cases(WIRE, cases, number, check)


def fuzz(port: int, cases: int, number: int = 0) -> Tally:
    """Send about `cases` cases to the server on this machine; what came back. `number` makes them repeatable."""
    url, tally = f"http://127.0.0.1:{port}", Tally()
    before = httpx.get(f"{url}/info").json()["pid"]
    fuzz_document(url, cases // 2, number, tally)
    fuzz_wire(port, cases // 10, number, tally)
    fuzz_predict(url, cases - tally.cases, number, tally)
    try:
        after = httpx.get(f"{url}/info", timeout=TIMEOUT_S).json()["pid"]
        if after != before:
            tally.fail("the server is another process than before")
        if httpx.post(f"{url}/predict", json={"inputs": "hello"}, timeout=TIMEOUT_S).status_code != 200:
            tally.fail("an ordinary request is not answered any more")
    except httpx.HTTPError as error:
        tally.fail(f"the server does not answer any more ({error!r})")
    return tally


def show(tally: Tally) -> None:
    """Print the tally."""
    statuses = sorted({status for _, status in tally.answers})
    table = Table("cases", *(str(status or "closed") for status in statuses), title="answers by status")
    for kind in dict.fromkeys(kind for kind, _ in tally.answers):
        table.add_row(kind, *(f"{tally.answers[kind, status]:,}" for status in statuses))
    console.print(table)
    for failure in tally.failures:
        console.print(failure, highlight=False, markup=False)
    console.print(f"{tally.cases:,} cases, {tally.failed:,} failures")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--family", default=FAMILY)
    parser.add_argument("--folder", type=Path, default=Path("var/fuzz"))
    options = parser.parse_args()
    if options.family == FAMILY:
        options.folder.mkdir(parents=True, exist_ok=True)
        compile_demo_family(options.store, options.folder / "questions.csv")
    place = {"model.store": options.store, "model.family": options.family}
    with serve(options.folder, place, edge=True) as served:
        tally = fuzz(served.port, options.cases, options.seed)
    show(tally)
    raise SystemExit(1 if tally.failed or served.process.returncode else 0)


if __name__ == "__main__":
    main()
