"""Runs passes and keeps what they made: `<work>/cache/<pass>-<key>/`, finished when `done.json` is there.

A folder without `done.json` belongs to a run that was killed; the next run goes on from its checkpoint (`checkpoint*`)
and throws the rest away, so that what is kept is what an unbroken run keeps. Or to a pass that missed a gate: what it
made can be measured until the pass runs again, and is never taken for finished. An artifact whose files do not match
the digests in `done.json`, or that other library versions made, is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from compile.artifact import Artifact, Spent
from compile.device import GpuUse, gpu_use
from compile.errors import Busy, GateFailed, Miss
from compile.passes.base import Context, Gate, Inputs, Pass
from compile.versions import library_versions
from energy.span import Span, measure_process
from models.store import sha256_file, write_atomic

DONE, SPENT = "done.json", "spent.json"
CHECKPOINTS = "checkpoint"
"""Files whose names begin like this outlive a kill; a pass removes its own when it is done."""

ON_GPU = "work was done on a GPU, whose joules are not counted"
NO_COUNTER = "the energy counter gave no figure for a whole pass"


class Reporter(Protocol):
    """Where the progress of a run goes."""

    def planned(self, works: Sequence[tuple[str, str]], past: Mapping[tuple[str, str], float]) -> None:
        """The run will do these (label, pass name), and passes took so many seconds before."""

    def started(self, label: str, pass_name: str) -> None:
        """A pass begins."""

    def moved(self, share: float, note: str) -> None:
        """The running pass did `share` of its work."""

    def finished(self, label: str, pass_name: str, seconds: float, cached: bool) -> None:
        """The pass is done, or was found in the cache."""

    def dropped(self, label: str, reason: str) -> None:
        """A variant met no gate; nothing more is done for it."""


class Silent:
    """A reporter that reports nothing."""

    def planned(self, works: Sequence[tuple[str, str]], past: Mapping[tuple[str, str], float]) -> None:
        """Nothing."""

    def started(self, label: str, pass_name: str) -> None:
        """Nothing."""

    def moved(self, share: float, note: str) -> None:
        """Nothing."""

    def finished(self, label: str, pass_name: str, seconds: float, cached: bool) -> None:
        """Nothing."""

    def dropped(self, label: str, reason: str) -> None:
        """Nothing."""


@contextmanager
def exclusive(work: Path) -> Iterator[None]:
    """Hold the work folder; raises Busy if another run does."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"{work}: another run is using this work folder. Remedy: wait, or give --work.") from error
        yield


def artifact_key(a_pass: Pass, inputs: Inputs) -> str:
    """The cache key: pass name and version, configuration, and the inputs' keys by role."""
    described = {
        "pass": a_pass.name,
        "version": a_pass.version,
        "config": a_pass.config(),
        "inputs": {role: artifact.key for role, artifact in inputs.items()},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _go_on() -> None:
    """Waits for nothing."""


@dataclass
class Runner:
    """Runs passes for one context, each at most once."""

    work: Path
    context: Context
    reporter: Reporter = field(default_factory=Silent)
    pause: Callable[[], None] = _go_on
    """Called before each pass that is not in the cache; may wait."""

    @property
    def cache(self) -> Path:
        """The folder of everything that passes made."""
        return self.work / "cache"

    def run(self, label: str, a_pass: Pass, inputs: Inputs, given: Inputs | None = None) -> Artifact:
        """Return the pass's artifact, from the cache or by doing the work.

        `inputs` decide the key; the pass is handed `given` where that is less than all of them.
        Raises what the pass raises, and GateFailed, with what was made, if a postcondition does not hold (it is done
        again the next time).
        """
        key = artifact_key(a_pass, inputs)
        handed = inputs if given is None else given
        folder = self.cache / f"{a_pass.name}-{key[:20]}"
        self.reporter.started(label, a_pass.name)
        found = _load(folder)
        if found is not None:
            self.reporter.finished(label, a_pass.name, 0.0, True)
            return Artifact(a_pass.name, label, key, folder, found["meta"], Spent(**found["spent"]))
        self.pause()
        began = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        before = _spent_before(folder)
        with measure_process() as span, gpu_use() as gpu:
            clock = _Clock(gpu)
            self.context.progress = self.reporter.moved
            self.context.note_spent = lambda: _write_spent(folder, before + clock.so_far())
            a_pass.requires(handed, self.context)
            meta = a_pass.call(handed, folder, self.context)
            self.reporter.moved(1.0, "checking")
            gates = a_pass.ensures(handed, folder, meta, self.context)
        spent = before + _spent(span, gpu)
        misses = [Miss(gate.describe(), gate.measured, gate.limit, gate.field) for gate in gates if not gate.holds]
        meta = {**meta, "gates": [_plain(gate) for gate in gates]}
        if misses:
            (folder / SPENT).unlink(missing_ok=True)
            raise GateFailed(a_pass.name, label, misses, Artifact(a_pass.name, label, key, folder, meta, spent))
        seconds = time.monotonic() - began
        _finish(folder, label, meta, spent, seconds)
        self.reporter.finished(label, a_pass.name, seconds, False)
        return Artifact(a_pass.name, label, key, folder, meta, spent)


class _Clock:
    """CPU time and joules since the span began, before it ends."""

    def __init__(self, gpu: GpuUse) -> None:
        self._began, self._gpu = time.process_time(), gpu

    def so_far(self) -> Spent:
        """Cost up to now; joules by the estimated model, since a span is final only at its end."""
        from energy.span import dynamic_joules_per_cpu_second

        cpu_seconds = time.process_time() - self._began
        joules = cpu_seconds * dynamic_joules_per_cpu_second()
        return Spent(cpu_seconds, None, ON_GPU) if self._gpu.used else Spent(cpu_seconds, joules)


def _spent(span: Span, gpu: GpuUse) -> Spent:
    """A pass's cost. The span meters the processors: with work on a GPU its joules would be a part of them all."""
    if gpu.used:
        return Spent(span.cpu_seconds, None, ON_GPU)
    return Spent(span.cpu_seconds, span.dynamic_joules, NO_COUNTER if span.dynamic_joules is None else None)


def _load(folder: Path) -> dict[str, Any] | None:
    try:
        done: dict[str, Any] = json.loads((folder / DONE).read_text(encoding="utf-8"))
        fresh = done.get("libraries", library_versions()) == library_versions()
        if fresh and all(sha256_file(folder / name) == digest for name, digest in done["files"].items()):
            return done
    except (OSError, ValueError, KeyError):
        pass
    if (folder / DONE).exists():
        shutil.rmtree(folder)
    return None


def _clear(folder: Path) -> None:
    """Leave only what a killed attempt of the pass can go on from."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != SPENT and not path.name.startswith(CHECKPOINTS):
            path.unlink()


def _finish(folder: Path, label: str, meta: Mapping[str, Any], spent: Spent, seconds: float) -> None:
    kept = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (DONE, SPENT))
    described = {
        "label": label,
        "seconds": seconds,
        "libraries": library_versions(),
        "meta": meta,
        "spent": asdict(spent),
        "files": {str(p.relative_to(folder)): sha256_file(p) for p in kept},
    }
    write_atomic(folder / DONE, json.dumps(described, indent=1).encode())
    (folder / SPENT).unlink(missing_ok=True)


def _spent_before(folder: Path) -> Spent:
    try:
        return Spent(**json.loads((folder / SPENT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Spent(0.0, 0.0)


def _write_spent(folder: Path, spent: Spent) -> None:
    write_atomic(folder / SPENT, json.dumps(asdict(spent)).encode())


def _plain(gate: Gate) -> dict[str, Any]:
    return {"name": gate.name, "measured": gate.measured, "limit": gate.limit, "at_most": gate.at_most}
