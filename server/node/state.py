"""What the node process keeps on disk: totals, the replicas' last settled snapshots, learned idle powers, one file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from energy.domains import Domain
from energy.ledger import Ledger, LedgerError
from server.node.hours import HourBook
from server.node.totals import ServingTotals, TotalsError
from server.node.wire import Snapshot, WireError, decode_snapshot, encode_snapshot

log = logging.getLogger(__name__)

VERSION = 1


@dataclass
class NodeState:
    """Everything that survives a restart."""

    ledger: Ledger = field(default_factory=Ledger)
    totals: ServingTotals = field(default_factory=ServingTotals)
    settled: dict[str, Snapshot] = field(default_factory=dict)
    """Last settled snapshot of each replica that was alive, so that none of it is counted again."""
    idle_watts: Mapping[str, Any] = field(default_factory=dict)
    meter_cpu_seconds: float = 0.0
    """CPU time of earlier node processes."""
    hours: HourBook = field(default_factory=HourBook)
    name: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)
    """Of these totals, wherever they are shown: what goes on where they left off is told from what begins anew."""
    pending_uj: Mapping[str, int] = field(default_factory=dict)
    """By domain: in the ledger's metered energy already, and in a window that was open when this was written."""
    missing_ticks: Mapping[tuple[Domain, str], int] = field(default_factory=dict)
    """How often a domain gave no figure, by reason."""
    unmetered_uj: Mapping[tuple[Domain, str], int] = field(default_factory=dict)
    """What counters showed and nobody can vouch for, by reason."""

    def encode(self) -> bytes:
        """The file's content."""
        tree = {
            "version": VERSION,
            "ledger": self.ledger.to_json(),
            "totals": self.totals.to_json(),
            "settled": {name: encode_snapshot(snap).hex() for name, snap in self.settled.items()},
            "idle_watts": dict(self.idle_watts),
            "meter_cpu_seconds": self.meter_cpu_seconds,
            "pending_uj": dict(self.pending_uj),
            "hours": self.hours.to_json(),
            "name": self.name,
            "missing_ticks": _rows(self.missing_ticks),
            "unmetered_uj": _rows(self.unmetered_uj),
        }
        try:
            # Every ten seconds and before every scrape: here a fast encoder pays.
            return orjson.dumps(tree)
        except TypeError:  # a whole number beyond its 64 bits
            return json.dumps(tree).encode()

    @classmethod
    def decode(cls, data: bytes) -> NodeState:
        """Turn `encode` back. Raises ValueError."""
        try:
            tree = json.loads(data)
            if tree["version"] != VERSION:
                raise ValueError(f"version: {tree['version']!r}, not {VERSION}")
            named = {"name": str(tree["name"])} if "name" in tree else {}
            return cls(
                ledger=Ledger.from_json(tree["ledger"]),
                totals=ServingTotals.from_json(tree["totals"]),
                settled={str(name): decode_snapshot(bytes.fromhex(snap)) for name, snap in tree["settled"].items()},
                idle_watts=dict(tree["idle_watts"]),
                meter_cpu_seconds=float(tree["meter_cpu_seconds"]),
                hours=HourBook.from_json(tree["hours"]) if "hours" in tree else HourBook(),
                pending_uj={str(label): _amount(uj, "pending_uj") for label, uj in tree.get("pending_uj", {}).items()},
                # Absent in files of releases that did not keep them.
                missing_ticks=_by_reason(tree.get("missing_ticks", []), "missing_ticks"),
                unmetered_uj=_by_reason(tree.get("unmetered_uj", []), "unmetered_uj"),
                **named,
            )
        except (LedgerError, TotalsError, WireError) as error:
            raise ValueError(str(error)) from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{error!r}") from None


def _rows(by_reason: Mapping[tuple[Domain, str], int]) -> list[list[Any]]:
    return [[one.name, one.device, one.source, reason, amount] for (one, reason), amount in by_reason.items()]


def _by_reason(rows: Any, where: str) -> dict[tuple[Domain, str], int]:
    return {
        (Domain(str(name), str(device), str(source)), str(reason)): _amount(amount, where)
        for name, device, source, reason, amount in rows
    }


def _amount(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: {value!r} is no amount")
    return value


def write_atomic(path: Path, data: bytes, *, durable: bool) -> None:
    """Replace `path` by `data` so that a reader sees the old or the new content, never a part.

    One writer at a time: the lock of the run folder sees to that.

    `durable` also waits until the disk has it, for a power cut; a crash of the process loses nothing either way.
    `models.store.write_atomic` always waits, which a write before every scrape cannot afford in the tick's loop, and
    importing it would bring pydantic into a process that has no other use for it.
    """
    part = path.with_name(f".{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb", 0) as stream:
            while data:
                data = data[stream.write(data) :]
            if durable:
                os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def load(path: Path) -> NodeState:
    """Read the state; a fresh one if there is none. A file that is not ours is kept aside under another name.

    Joules of a window that was open when the file was written are booked to nobody: its records died with it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return NodeState()
    try:
        state = NodeState.decode(data)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.unreadable-{int(time.time())}")
        os.replace(path, aside)
        log.error("%s cannot be read (%s): totals begin anew, the file is kept as %s", path, error, aside.name)
        return NodeState()
    state.ledger.lose(sum(state.pending_uj.values()))
    state.pending_uj = {}
    return state
