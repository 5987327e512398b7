"""Another server, as the benchmark starts it. Standard library only: the peers' own processes import this too."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.peers.contestant import Running, Wire
from loadtest.peers.environment import PEERS_PYTHON
from loadtest.peers.model import ModelFiles


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

        command = [str(self.python.absolute()), *self.command]
        return run_peer(self.name, command, self.environment, self.wire, files, folder)
