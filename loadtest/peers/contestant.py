"""What the benchmark knows of a contestant. Standard library only: the peers' own processes import this too."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loadtest.peers.model import ModelFiles


class DidNotStart(RuntimeError):
    """A contestant that could not be brought up; the words say why."""


@dataclass(frozen=True)
class Wire:
    """How a contestant is asked."""

    path: str
    body: Callable[[str], bytes]
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, port: int, text: str) -> bytes:
        """One HTTP/1.1 request as bytes."""
        body = self.body(text)
        headers = {
            "host": f"127.0.0.1:{port}",
            "content-type": "application/json",
            **self.headers,
            "content-length": str(len(body)),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def tei_body(text: str) -> bytes:
    """The body of `/predict` as text-embeddings-inference has it."""
    return json.dumps({"inputs": text, "truncate": True}, ensure_ascii=False).encode()


@dataclass(frozen=True)
class Running:
    """A contestant that answers."""

    pid: int
    port: int
    wire: Wire
    ready_s: float
    """From the start of the process to its first answer."""
    start_cpu_seconds: float
    metrics_url: str | None = None
    grpc_port: int | None = None

    def request(self, text: str) -> bytes:
        """One request as bytes."""
        return self.wire.request(self.port, text)


class Contestant(Protocol):
    """Somebody who answers."""

    @property
    def name(self) -> str:
        """As the table names it."""
        ...

    @property
    def ours(self) -> bool:
        """Whether it is this project's."""
        ...

    @property
    def sleeps(self) -> bool:
        """Whether its processes bear being stopped while others are measured."""
        ...

    def absent(self) -> str | None:
        """Why it cannot take part here; None if it can."""
        ...

    def running(self, files: ModelFiles, folder: Path) -> AbstractContextManager[Running]:
        """Start, wait until it answers, stop at the end. Raises DidNotStart."""
        ...
