"""The cheap clients read what servers of different make send."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loadtest.paced_client import run_paced
from loadtest.peers.contestant import Wire, tei_body
from loadtest.wire_client import run_closed_loop, status_if_complete

WIRE = Wire("/predict", tei_body, {"x-quality": "strict"})


class Handler(BaseHTTPRequestHandler):
    """Answers by the text it is asked with."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if b"refuse" in body else 200)
        if b"chunk" in body:
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"4\r\n[{}]\r\n0\r\n\r\n")
            return
        if b"close" in body:
            self.send_header("connection", "close")
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"[{}]")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


TEXTS = ["plain", "in chunks", "then close", "refuse this"] * 5


def test_a_closed_loop_asks_everything_once_and_counts_by_status(port: int) -> None:
    tally = run_closed_loop("127.0.0.1", port, [WIRE.request(port, text) for text in TEXTS], 3, timeout_s=20)
    assert (len(tally.latencies_s), tally.failures, tally.replies) == (15, {503: 5}, 20)


def test_a_paced_run_asks_at_the_given_times_and_counts_by_status(port: int) -> None:
    requests = [WIRE.request(port, text) for text in TEXTS]
    tally = run_paced("127.0.0.1", port, requests, [number / 100 for number in range(20)])
    assert (len(tally.latencies_s), tally.failures) == (15, {503: 5})
    assert tally.wall_s >= 0.19


def test_nobody_there_is_status_0() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        free = gone.server_address[1]
    assert run_paced("127.0.0.1", free, [b"x"], [0.0]).failures == {0: 1}
    assert run_closed_loop("127.0.0.1", free, [b"x"], 1, timeout_s=20).failures == {0: 1}


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKS = b"HTTP/1.1 404 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize(("reply", "status"), [(LENGTH, 200), (CHUNKS, 404)])
def test_a_reply_is_complete_with_its_last_byte_and_not_before(reply: bytes, status: int) -> None:
    assert status_if_complete(reply) == status
    assert [status_if_complete(reply[:end]) for end in range(len(reply))] == [None] * len(reply)


def test_a_reply_without_a_length_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="content-length"):
        status_if_complete(b"HTTP/1.1 200 OK\r\n\r\n{}")


def test_a_request_names_its_length_in_bytes_and_its_own_headers() -> None:
    head, _, body = WIRE.request(80, "groß").partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert b"x-quality: strict" in head
    assert head.startswith(b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1:80\r\n")
