"""What the benchmark knows of a contestant. Standard library only: the peers' own processes import this too."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loadtest.peers.environment import PEERS_PYTHON
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


@dataclass(frozen=True)
class Peer:
    """Another server, in a process of the peers' environment."""

    name: str
    packages: tuple[str, ...]
    """Modules that must be there."""
    command: tuple[str, ...]
    """What follows the interpreter: `-m` and a module."""
    wire: Wire
    programs: tuple[str, ...] = ()
    """Other programs that must be there."""
    environment: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    sleeps: bool = True
    python: Path = PEERS_PYTHON

    def absent(self) -> str | None:
        """Why it cannot take part here; None if it can."""
        if not self.python.exists():
            return f"{self.python} is missing (`make peers`)"
        for program in self.programs:
            if shutil.which(program) is None:
                return f"the program `{program}` is not installed"
        code = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None for n in {self.packages!r}))"
        found = subprocess.run([self.python, "-c", code], timeout=60, check=False)
        return f"not all of {', '.join(self.packages)} are installed" if found.returncode else None

    def running(self, files: ModelFiles, folder: Path) -> AbstractContextManager[Running]:
        """Start, wait until it answers, stop at the end. Raises DidNotStart with the end of its log."""
        from loadtest.peers.process import run_peer

        return run_peer(self, files, folder)
