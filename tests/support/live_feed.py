"""The UK API on loopback, told what to say of now, for whole servers that ask it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from datetime import UTC, datetime, timedelta

from tests.support.feed_stub import Stub, listening, reply


class Feed:
    """The API in a thread of its own; `grams` is what it tells of now, `answer` replaces it; `asked` counts."""

    def __init__(self) -> None:
        self.grams = 100
        self.answer: bytes | None = None
        self.flapping = False
        self.asked = 0
        self.url = ""
        self._listening = threading.Event()
        self._done = threading.Event()

    def __enter__(self) -> Feed:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(10)

    async def _run(self) -> None:
        async with listening(_Live(self)) as stub:
            self.url = stub.url
            self._listening.set()
            while not self._done.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.05)

    def next_reply(self) -> bytes:
        """What the API says now."""
        self.asked += 1
        if self.answer is not None:
            return self.answer
        grams = 400 if self.flapping and self.asked % 2 else self.grams
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}"
        period = {"from": now, "to": now, "intensity": {"forecast": grams, "actual": grams, "index": "low"}}
        return reply(200, {"data": [period]})


def past_day() -> bytes:
    """24 half hours of 150 g."""
    now = datetime.now(UTC)
    rows = []
    for half in range(1, 25):
        time = f"{now - timedelta(minutes=30 * half):%Y-%m-%dT%H:%MZ}"
        rows.append({"from": time, "to": time, "intensity": {"forecast": 150, "actual": 150, "index": "low"}})
    return reply(200, {"data": rows})


class _Live(Stub):
    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            if path.endswith("pt24h"):
                writer.write(past_day())
            else:
                writer.write(reply(503, b"") if path.endswith("fw24h") else self._feed.next_reply())
            await writer.drain()
        writer.close()
