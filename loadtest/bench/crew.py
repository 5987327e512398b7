"""The contestants at work: all at once where memory allows it, else each only while it is measured."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from loadtest.peers.contestant import Contestant, DidNotStart, Running
from loadtest.peers.model import ModelFiles
from loadtest.served import interruptible
from loadtest.wire_client import run_closed_loop

BYTES_EACH = 1_200_000_000
"""The largest contestants take about this much."""
WARM_CLIENTS = 8
WARM_TIMEOUT_S = 120.0


class Crew:
    """Starts and stops contestants. Those that do not come up are in `absent`, with the reason; ours must."""

    def __init__(
        self,
        contestants: Sequence[Contestant],
        files: ModelFiles,
        folder: Path,
        warm_up: Callable[[Running], None],
        say: Callable[[str], None],
        available_bytes: int | None = None,
    ) -> None:
        self._files, self._folder, self._warm_up, self._say = files, folder, warm_up, say
        self.absent: dict[str, str] = {}
        self.members: list[Contestant] = []
        for one in contestants:
            why = one.absent()
            if why is None:
                self.members.append(one)
            else:
                self.absent[one.name] = why
        available = psutil.virtual_memory().available if available_bytes is None else available_bytes
        self.together = available > BYTES_EACH * len(self.members)
        self._running: dict[str, Running] = {}
        self._hushed = False

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Within it everybody runs, if memory allows."""
        with interruptible(), contextlib.ExitStack() as stack:
            if self.together:
                for one in list(self.members):
                    with self._may_be_absent(one):
                        running = self._running[one.name] = stack.enter_context(self._started(one))
                        if one.sleeps:
                            stack.callback(wake, running.pid)
            try:
                yield
            finally:
                self._running.clear()

    def hush(self) -> None:
        """From here on, who bears it sleeps while others are measured: some wait by spinning on a third of a core."""
        self._hushed = True
        for one in self.members:
            if one.sleeps and one.name in self._running:
                sleep(self._running[one.name].pid)

    @contextlib.contextmanager
    def visit(self, one: Contestant) -> Iterator[Running]:
        """The contestant, running; started for this visit if not everybody is at work."""
        if one.name in self._running:
            running = self._running[one.name]
            with self._awake(running.pid) if one.sleeps and self._hushed else contextlib.nullcontext():
                yield running
        else:
            with self._started(one) as running:
                yield running

    def drop(self, one: Contestant, why: str) -> None:
        """Leave a peer out of the rest of the run."""
        self._say(f"{one.name} is left out: {why}")
        self.absent[one.name] = why
        self.members = [other for other in self.members if other.name != one.name]

    @contextlib.contextmanager
    def _may_be_absent(self, one: Contestant) -> Iterator[None]:
        try:
            yield
        except (DidNotStart, TimeoutError, psutil.Error) as error:
            if one.ours:
                raise
            self.drop(one, str(error) or type(error).__name__)

    @contextlib.contextmanager
    def _awake(self, pid: int) -> Iterator[None]:
        wake(pid)
        try:
            yield
        finally:
            sleep(pid)

    @contextlib.contextmanager
    def _started(self, one: Contestant) -> Iterator[Running]:
        self._say(f"starting {one.name}")
        with one.running(self._files, self._folder) as running:
            self._warm_up(running)
            yield running

    def each(self, members: Sequence[Contestant], measure: Callable[[Contestant, Running], None]) -> None:
        """Visit each member; a peer that fails is left out from then on, one of ours ends the run."""
        for one in members:
            with self._may_be_absent(one), self.visit(one) as running:
                measure(one, running)


def sleep(pid: int) -> None:
    """Stop the processes of a tree where they are (SIGSTOP)."""
    _each_process(pid, psutil.Process.suspend)


def wake(pid: int) -> None:
    """Let the processes of a tree go on."""
    _each_process(pid, psutil.Process.resume)


def _each_process(pid: int, act: Callable[[psutil.Process], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)


def warm_up(running: Running, texts: Sequence[str], seconds: float, clock: Callable[[], float]) -> None:
    """Ask for a while and forget the answers."""
    requests = until((running.request(text) for text in itertools.cycle(texts)), seconds, clock)
    run_closed_loop("127.0.0.1", running.port, requests, WARM_CLIENTS, WARM_TIMEOUT_S)


def until(requests: Iterator[bytes], seconds: float, clock: Callable[[], float]) -> Iterator[bytes]:
    """The requests that are taken within `seconds` of the first."""
    end = clock() + seconds
    for request in requests:
        yield request
        if clock() >= end:
            return
