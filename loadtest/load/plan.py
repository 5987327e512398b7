"""What is asked when, and what became of it. A plan is made before the run; its requests fall due whether or not the
server keeps up, and wait for a free client if none is."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gevent import Greenlet, sleep, spawn
from gevent.queue import Queue

from loadtest.client import Question


@dataclass(frozen=True, slots=True)
class Due:
    """A request whose time has come. `due_s` is a time of `time.perf_counter`."""

    number: int
    due_s: float
    question: Question


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. Times are seconds from the start of the plan."""

    number: int
    due_s: float
    sent_s: float
    ended_s: float
    status: int
    """HTTP status, or the one that a gRPC code stands for; 0: no reply came, or none that can be read."""
    quality: str
    point: str = ""
    variant: str = ""
    cache: str = ""
    correct: bool | None = None
    """None where the right label is not known."""

    @property
    def latency_s(self) -> float:
        """From the moment that it was due."""
        return self.ended_s - self.due_s

    def to_row(self) -> dict[str, Any]:
        """For a CSV."""
        return asdict(self)


class Plan:
    """Hands out requests as they fall due, to as many clients as ask, and keeps the outcomes. For one run at a time."""

    def __init__(self, times_s: Sequence[float], questions: Sequence[Question], clients: int) -> None:
        self.times_s = times_s
        self.questions = questions
        self.clients = clients
        self.outcomes: list[Outcome] = []
        self.began_s: float | None = None
        self._queue: Queue[Due] = Queue()
        self._pump: Greenlet | None = None

    @property
    def over(self) -> bool:
        """Whether every request has ended."""
        return len(self.outcomes) >= len(self.times_s)

    def fingerprint(self) -> str:
        """Equal for plans that ask the same at the same times."""
        digest = hashlib.sha256()
        for at, question in zip(self.times_s, self.questions, strict=True):
            digest.update(f"{at:.6f}\x00{question.quality}\x00{question.text}\x00".encode())
        return digest.hexdigest()[:16]

    def reset(self) -> None:
        """Forget what was; before the clients of another run ask for their first request."""
        self.stop()
        self.outcomes = []
        self.began_s = None
        self._queue = Queue()

    def begin(self) -> None:
        """Start the clock."""
        self.began_s = time.perf_counter()
        self._pump = spawn(self._release, self.began_s)

    def stop(self) -> None:
        """Release nothing more."""
        if self._pump is not None:
            self._pump.kill()
            self._pump = None

    def next(self) -> Due:
        """Wait for a request to fall due; for ever when there is none left, until locust ends its user."""
        due: Due = self._queue.get()
        return due

    def take(self, due: Due, sent_s: float, status: int, **answer: Any) -> None:
        """Keep what became of a request; `sent_s` is a time of `time.perf_counter`."""
        assert self.began_s is not None
        self.outcomes.append(
            Outcome(
                due.number,
                due.due_s - self.began_s,
                sent_s - self.began_s,
                time.perf_counter() - self.began_s,
                status,
                due.question.quality,
                **answer,
            )
        )

    def _release(self, began_s: float) -> None:
        for number, (at, question) in enumerate(zip(self.times_s, self.questions, strict=True)):
            wait_s = began_s + at - time.perf_counter()
            if wait_s > 0:
                sleep(wait_s)
            self._queue.put(Due(number, began_s + at, question))
