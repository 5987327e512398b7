"""What replicas and the node process say to each other: msgpack maps in UNIX datagrams.

All of a replica's figures are cumulative since its process started, so a datagram that is lost, late or
comes twice loses and doubles nothing: the node takes differences between the snapshots it has seen.

| message | from    | fields                                                                               |
|---------|---------|--------------------------------------------------------------------------------------|
| hello   | replica | id, pid, started (clock ticks since boot), parent (its parent is a root of the tree) |
| poll    | node    | n (tick number), seen [id, revision], joules (per CPU-second or nil),                |
|         |         | loaded (fully loaded joules a dynamic one, or nil), grams (per kWh or nil), sources  |
| report  | replica | id, n, and snap (a snapshot) or same (the revision that the node has seen already)   |
| bye     | replica | id, snap                                                                             |

Hello and bye go to NODE_SOCKET, where the node looks at once. Reports go to where the poll came from, ANSWERS_SOCKET,
where several may lie until the node looks: the newest says all that the ones before do.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

VERSION = 1
MAX_DATAGRAM_BYTES = 100_000
NODE_SOCKET = "node.sock"
ANSWERS_SOCKET = "answers.sock"
"""From where the node polls."""
PAGES_SOCKET = "pages.sock"
"""Where the node process answers what its port answers, for who shares its folder and not its network."""
# sockaddr_un holds 108 bytes, one of them the closing zero.
_MAX_PATH_BYTES = 107
REPLICA_SOCKETS = "r-*.sock"
_LONGEST_NAME = "r-0123456789ab.sock"

QUALITIES = ("strict", "standard", "eco")
OUTCOMES = ("ok", "cached", "error", "cancelled", "shed", "refused")
FAILURES = ("error", "cancelled", "shed")
"""Outcomes that any operating point may come to."""
AVOIDED = ("cache", "batching", "fallback", "quantized", "spike")
COUNTERS = (
    "batches",
    "rows",
    "tokens",
    "padded_tokens",
    "cache_hits",
    "cache_misses",
    "cache_l2_hits",
    "cache_l2_misses",
    "cache_l2_errors",
    "escalations",
    "spike_overrides",
    "latency_guarded",
)
GAUGES = ("queue_depth", "in_flight", "cache_bytes", "cache_entries", "version_refused")
PHASES = ("queue", "tokenize", "infer", "total")

_MS = 1_000_000
DURATION_BOUNDS_NS = tuple(
    round(value * _MS) for value in (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
HISTOGRAMS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(PHASES, DURATION_BOUNDS_NS),
    "batch_rows": BATCH_BOUNDS,
    "batch_tokens": BATCH_BOUNDS,
}
"""Name to upper bounds: durations in nanoseconds, batch sizes in rows and in tokens with padding."""

MAX_EXEMPLARS = len(DURATION_BOUNDS_NS) + 1
_TRACE_ID = re.compile(r"[0-9a-f]{32}")

MAX_COUNT = 2**63 - 1
"""More than any process counts: nanoseconds of 292 years."""

_MIN_BITS = 13
_MAX_BITS = 37
CPU_BUCKETS = (_MAX_BITS - _MIN_BITS) * 4 + 1


def cpu_bucket(cpu_ns: int) -> int:
    """The index of a CPU time in a histogram with four buckets an octave, from 8 microseconds to 137
    seconds.
    """
    bits = cpu_ns.bit_length()
    if bits <= _MIN_BITS:
        return 0
    if bits > _MAX_BITS:
        return CPU_BUCKETS - 1
    return 1 + ((bits - 1 - _MIN_BITS) << 2) + ((cpu_ns >> (bits - 3)) & 3)


def cpu_bucket_middle_ns(index: int) -> int:
    """A CPU time in the middle of a bucket of `cpu_bucket`."""
    if index <= 0:
        return 1 << (_MIN_BITS - 1)
    octave, quarter = divmod(index - 1, 4)
    return (1 << (octave + _MIN_BITS)) * (9 + 2 * quarter) // 8


class WireError(ValueError):
    """A datagram is not what it should be; the message names the field."""


class RequestKey(NamedTuple):
    """What a request's figures are kept apart by. `variant` and `point` are empty if nothing was computed."""

    variant: str
    point: str
    quality: str
    outcome: str


@dataclass(slots=True)
class RequestTotals:
    """Cumulative figures of one key."""

    count: int = 0
    cpu_ns: int = 0
    buckets: dict[int, int] = field(default_factory=dict)
    """Requests by `cpu_bucket` of their CPU time."""


class BatchKey(NamedTuple):
    """What a run's figures are kept apart by; `size` is an index into `BATCH_BOUNDS`, one past them for more."""

    variant: str
    size: int


@dataclass(slots=True)
class BatchTotals:
    """Cumulative figures of one key: texts in the batches, and what running them took."""

    texts: int = 0
    cpu_ns: int = 0


@dataclass(slots=True)
class Histogram:
    """Cumulative figures of one histogram; `buckets` holds counts by index into the bounds, last = above
    all.
    """

    count: int = 0
    total: int = 0
    buckets: dict[int, int] = field(default_factory=dict)


class Exemplar(NamedTuple):
    """A request whose trace can be looked up. `cpu_ns` is what it owes; `time_s` since the epoch."""

    trace_id: str
    variant: str
    quality: str
    total_ns: int
    cpu_ns: int
    time_s: float


@dataclass(slots=True)
class Snapshot:
    """All that a replica process has counted since its start."""

    instance: str
    pid: int
    started_ticks: int
    revision: int
    model: str
    requests: dict[RequestKey, RequestTotals]
    counters: dict[str, int]
    avoided_cpu_ns: dict[str, int]
    gauges: dict[str, float]
    histograms: dict[str, Histogram]
    batches: dict[BatchKey, BatchTotals] = field(default_factory=dict)
    exemplars: tuple[Exemplar, ...] = ()
    """Of the requests whose trace was recorded; at most one a bucket of their duration."""

    @property
    def cpu_ns(self) -> int:
        """CPU time that requests owe."""
        return sum(totals.cpu_ns for totals in self.requests.values())


def socket_dir(run_dir: Path) -> Path:
    """The folder of the sockets: the run folder, or one of its own in the temporary folder if that is too long.

    Node and replicas find it from the same `run_dir` (and TMPDIR). Raises ValueError if neither is short enough.
    """
    run_dir = run_dir.resolve()
    if _fits(run_dir):
        return run_dir
    short = Path(tempfile.gettempdir()).resolve() / _short_name(run_dir)
    if not _fits(short):
        limit = _MAX_PATH_BYTES - len(_LONGEST_NAME) - 1
        raise ValueError(
            f"run_dir: {run_dir} is too long for UNIX sockets, and so is {short}; give a run_dir of {limit} bytes at"
            " most or a shorter TMPDIR"
        )
    return short


def socket_path(run_dir: Path, name: str = NODE_SOCKET) -> str:
    """The absolute path of a socket of the run folder. Raises ValueError if it is too long for a socket."""
    return str(socket_dir(run_dir) / name)


def own_socket_dir(run_dir: Path) -> Path:
    """`socket_dir`, made if it is not the run folder itself. Raises OSError if it is there and not ours alone."""
    folder = socket_dir(run_dir)
    if folder != run_dir.resolve():
        # The temporary folder is everybody's: what lies there under our name may be somebody else's trap.
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(
                errno.EPERM, "not a folder of this user alone; remove it or shorten run_dir", str(folder)
            )
    return folder


def share_socket(path: str) -> None:
    """Let the group of a socket send to it, where its folder is one that a group shares (set-group-ID): a node process
    that runs apart is another user's. Raises OSError."""
    if os.stat(os.path.dirname(path)).st_mode & stat.S_ISGID:
        os.chmod(path, 0o660)


def drop_socket_dir(run_dir: Path) -> None:
    """Take the folder of `own_socket_dir` away if it is empty and not the run folder itself."""
    folder = socket_dir(run_dir)
    if folder != run_dir.resolve():
        with contextlib.suppress(OSError):
            folder.rmdir()


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / _LONGEST_NAME)) <= _MAX_PATH_BYTES


def _short_name(run_dir: Path) -> str:
    return f"js-node-{hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:12]}"


def pack(message: Mapping[str, Any]) -> bytes:
    """Encode a message."""
    data: bytes = msgpack.packb(message, use_bin_type=True)
    return data


def unpack(data: bytes | memoryview) -> dict[str, Any]:
    """Decode a message of this version. Raises WireError."""
    try:
        message = msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException, UnicodeDecodeError) as error:
        raise WireError(f"datagram: not msgpack ({error})") from None
    if not isinstance(message, dict) or message.get("v") != VERSION:
        raise WireError(f"v: not a message of version {VERSION}; replicas and node must be of one release")
    return message


def decode_gauges(tree: Mapping[str, Any]) -> dict[str, float]:
    """The gauges that are known among those of a message. Raises WireError, or TypeError if they are no map."""
    return {name: _finite(tree[name], f"gauge.{name}") for name in GAUGES if name in tree}


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Encode a snapshot; counts that are 0 are left out."""
    return pack(
        {
            "v": VERSION,
            "id": snapshot.instance,
            "pid": snapshot.pid,
            "started": snapshot.started_ticks,
            "rev": snapshot.revision,
            "model": snapshot.model,
            "req": [[*key, t.count, t.cpu_ns, t.buckets] for key, t in snapshot.requests.items()],
            "cnt": {name: value for name, value in snapshot.counters.items() if value},
            "avoid": {name: value for name, value in snapshot.avoided_cpu_ns.items() if value},
            "gauge": snapshot.gauges,
            "hist": {n: [h.count, h.total, h.buckets] for n, h in snapshot.histograms.items() if h.count},
            "bat": [[*key, b.texts, b.cpu_ns] for key, b in snapshot.batches.items()],
            **({"ex": [list(exemplar) for exemplar in snapshot.exemplars]} if snapshot.exemplars else {}),
        }
    )


def decode_snapshot(data: bytes) -> Snapshot:
    """Decode and check a snapshot. Raises WireError."""
    tree = unpack(data)
    try:
        return Snapshot(
            instance=_text(tree["id"], "id"),
            pid=_count(tree["pid"], "pid"),
            started_ticks=_count(tree["started"], "started"),
            revision=_count(tree["rev"], "rev"),
            model=_text(tree["model"], "model"),
            requests=dict(_request(row) for row in tree["req"]),
            counters=_counts(tree["cnt"], COUNTERS, "cnt"),
            avoided_cpu_ns=_counts(tree["avoid"], AVOIDED, "avoid"),
            gauges=decode_gauges(tree["gauge"]),
            histograms={
                name: Histogram(
                    _count(count, name), _count(total, name), _buckets(buckets, name, len(HISTOGRAMS[name]) + 1)
                )
                for name, (count, total, buckets) in tree["hist"].items()
                if name in HISTOGRAMS
            },
            batches=dict(_batch(row) for row in tree.get("bat", [])),
            # What a release before this one kept names no class: it points to a trace and counts nothing.
            exemplars=tuple(
                _exemplar(row) for row in tree.get("ex", [])[:MAX_EXEMPLARS] if len(row) == len(Exemplar._fields)
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"snapshot: {error!r}") from None


def _request(row: Any) -> tuple[RequestKey, RequestTotals]:
    variant, point, quality, outcome, count, cpu_ns, buckets = row
    if quality not in QUALITIES or outcome not in OUTCOMES:
        raise WireError(f"req: class {quality!r} with outcome {outcome!r} is not known")
    key = RequestKey(_text(variant, "variant"), _text(point, "point"), quality, outcome)
    return key, RequestTotals(_count(count, "count"), _count(cpu_ns, "cpu_ns"), _buckets(buckets, "req", CPU_BUCKETS))


def _batch(row: Any) -> tuple[BatchKey, BatchTotals]:
    variant, size, texts, cpu_ns = row
    if not 0 <= _count(size, "bat") <= len(BATCH_BOUNDS):
        raise WireError(f"bat: size {size!r} is not one of ours")
    return BatchKey(_text(variant, "variant"), size), BatchTotals(_count(texts, "bat"), _count(cpu_ns, "bat"))


def _exemplar(row: Any) -> Exemplar:
    trace_id, variant, quality, total_ns, cpu_ns, time_s = row
    if not isinstance(trace_id, str) or not _TRACE_ID.fullmatch(trace_id):
        raise WireError("ex: no trace id of 32 hexadecimal digits")
    if quality not in QUALITIES:
        raise WireError(f"ex: class {quality!r} is not known")
    durations = _count(total_ns, "ex"), _count(cpu_ns, "ex")
    return Exemplar(trace_id, _text(variant, "variant"), quality, *durations, _finite(time_s, "ex"))


def _counts(tree: Mapping[str, Any], known: Iterable[str], where: str) -> dict[str, int]:
    return {name: _count(tree[name], f"{where}.{name}") for name in known if name in tree}


def _buckets(tree: Any, where: str, number: int) -> dict[int, int]:
    """`tree` as it is, if it holds counts of the first `number` buckets."""
    if not isinstance(tree, dict):
        raise WireError(f"{where}: no buckets")
    # Most of a snapshot is these: checked without a call for each number.
    for index, count in tree.items():
        if type(index) is not int or type(count) is not int or not 0 <= index < number or not 0 <= count <= MAX_COUNT:
            raise WireError(f"{where}: {index!r} to {count!r} is no bucket with its count")
    return tree


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise WireError(f"{where}: {value!r} is no count")
    return value


def _finite(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WireError(f"{where}: {value!r} is no number")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise WireError(f"{where}: no short text")
    return value
