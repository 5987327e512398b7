"""Who may ask, and how much: API keys and a rate limit per key. Knows no protocol; the clock is a parameter.

The key file holds one key a line, `name: sha256:` and the 64 hex digits of the key's SHA-256; blank lines and lines
that begin with `#` are skipped. Clients send the key itself as `Authorization: Bearer KEY`. Whoever reads the file
learns no key, provided that the keys are random (32 bytes, say): a digest of a guessable word can be guessed.

The file may change at any time: it is looked at once a second at most, when somebody asks. A file that cannot be used
is reported in the log, and the keys of before stay in force; where there are none before, nobody is let in.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from server.engine.errors import EngineError, NotReady, Overloaded

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
MAX_KEYS = 10_000
MAX_FILE_BYTES = 2_000_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")


class Unauthenticated(EngineError):
    """No API key was sent, or one that is not known."""


class RateLimited(EngineError):
    """The client asks for more texts per second than it may; `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KeyFileError(Exception):
    """The key file cannot be used; the message names file, line and remedy, and holds nothing of the keys."""


class KeyFileUnreadable(KeyFileError):
    """The key file could not be read this time; what it holds is not known."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Whose key it is, and its SHA-256 (32 bytes)."""

    name: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Texts per second in the long run, and texts at once after a pause."""

    texts_per_s: float
    burst_texts: int


class Bucket:
    """A token bucket that may go into debt, so that a request larger than the burst is served, too, and paid off.

    In any span of T seconds at most `burst + rate * T` texts are begun, and one request more.
    """

    __slots__ = ("_at", "_texts", "limit")

    def __init__(self, limit: RateLimit, now: float) -> None:
        self.limit = limit
        self._texts = float(limit.burst_texts)
        self._at = now

    def wait_s(self, texts: int, now: float) -> float:
        """Take `texts` and return 0, or take nothing and return the seconds until they can be had."""
        limit = self.limit
        self._texts = min(limit.burst_texts, self._texts + max(0.0, now - self._at) * limit.texts_per_s)
        self._at = now
        missing = min(texts, limit.burst_texts) - self._texts
        if missing > 1e-9:
            return missing / limit.texts_per_s
        self._texts -= texts
        return 0.0

    def give_back(self, texts: int) -> None:
        """Undo a `wait_s` that returned 0."""
        self._texts = min(self.limit.burst_texts, self._texts + texts)


class Guard:
    """Admits requests or raises. Used from one event loop; its cost is one SHA-256."""

    def __init__(self, key_file: Path | None, rate: RateLimit | None, clock: Callable[[], float]) -> None:
        """Without `key_file` everybody is let in and shares one rate limit. `clock` gives monotone seconds.

        Never raises for a bad file (see above): whoever starts the server asks `read_keys` first.
        """
        self._path = key_file
        self._rate = rate
        self._clock = clock
        self._keys: dict[bytes, ApiKey] = {}
        self._seen: tuple[int, ...] | None = None
        self._complaint = ""
        self._look_at = float("-inf")
        self._buckets: dict[str, Bucket] = {}

    @property
    def needs_key(self) -> bool:
        """Whether an API key must be sent."""
        return self._path is not None

    def admit(self, authorization: bytes | None, texts: int) -> str:
        """Let a request through; returns the name of its key, empty where none is asked for. `authorization` is its
        header of that name; 0 texts ask for the key alone.

        Raises Unauthenticated or RateLimited.
        """
        now = self._clock()
        name = self._who(authorization, now) if self._path is not None else ""
        if self._rate is not None and texts:
            bucket = self._buckets.get(name)
            if bucket is None:
                bucket = self._buckets[name] = Bucket(self._rate, now)
            wait_s = bucket.wait_s(texts, now)
            if wait_s:
                raise RateLimited(
                    f"more than {self._rate.texts_per_s:g} texts per second; come back after Retry-After seconds",
                    wait_s,
                )
        return name

    def forgive(self, error: EngineError, authorization: bytes | None, texts: int) -> None:
        """Return what `admit` has just taken for a request that failed with `error`, if the engine did not take it: the
        client is to send it again, and would pay twice."""
        if self._rate is None or not isinstance(error, Overloaded | NotReady):
            return
        bucket = self._buckets.get(self._who(authorization, self._clock()) if self._path is not None else "")
        if bucket is not None:
            bucket.give_back(texts)

    def _who(self, authorization: bytes | None, now: float) -> str:
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._look()
        if authorization is None:
            raise Unauthenticated("authorization: missing; send 'Authorization: Bearer' and your API key")
        scheme, _, token = authorization.strip().partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated(
                "authorization: not of the kind Bearer; send 'Authorization: Bearer' and your API key"
            )
        digest = hashlib.sha256(token.strip()).digest()
        # The time that a look-up takes may tell of the digest, which nobody can choose who does not know the key.
        key = self._keys.get(digest)
        if key is None:
            raise Unauthenticated("authorization: this API key is not known here; ask the operator for one")
        return key.name

    def _look(self) -> None:
        """Take the file's keys if it has changed. One that could not be read is read again at the next look."""
        assert self._path is not None
        try:
            seen = _stamp(os.stat(self._path))
            if seen == self._seen:
                return
            keys = read_keys(self._path)
        except (OSError, KeyFileUnreadable) as error:
            self._complain(f"{self._path}: {error.strerror}" if isinstance(error, OSError) else str(error))
            return
        except KeyFileError as error:
            self._seen = seen
            self._complain(str(error))
            return
        self._seen, self._complaint = seen, ""
        self._keys = {key.digest: key for key in keys}
        names = {key.name for key in keys}
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in names}
        log.info("api_keys_taken", keys=len(keys))

    def _complain(self, why: str) -> None:
        """Once for each thing that is wrong."""
        if why != self._complaint:
            self._complaint = why
            log.error("api_keys_refused", why=why, kept=len(self._keys))


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises KeyFileError, also for a file that others may read."""
    try:
        # Without waiting for a writer: it may be a pipe, which is told from a file only when it is open.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            _check_permissions(path, status)
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileUnreadable(f"{path}: {error.strerror}; give a file of the server's user with mode 0600") from None
    if len(data) > MAX_FILE_BYTES:
        raise KeyFileError(f"{path}: more than {MAX_FILE_BYTES} bytes; it holds one key a line")
    keys = parse_keys(path, data.decode("utf-8", "replace").splitlines())
    if not keys:
        raise KeyFileError(f"{path}: holds no key; write one a line, as 'name: sha256:' and 64 hex digits")
    return keys


def parse_keys(path: Path, lines: Iterable[str]) -> tuple[ApiKey, ...]:
    """The keys of the lines of a file called `path`. Raises KeyFileError with the number of the wrong line."""
    keys: dict[str, ApiKey] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        digest = _DIGEST.fullmatch(rest.strip())
        # What stands there is not repeated: it may be a key.
        if digest is None or not _NAME.fullmatch(name.strip()):
            raise KeyFileError(f"{path}, line {number}: not 'name: sha256:' and 64 hex digits; mend or remove it")
        key = ApiKey(name.strip(), bytes.fromhex(digest[1]))
        if key.name in keys or key.digest in digests:
            raise KeyFileError(f"{path}, line {number}: a name or a key that stands above already; remove one of them")
        keys[key.name] = key
        digests.add(key.digest)
    if len(keys) > MAX_KEYS:
        raise KeyFileError(f"{path}: {len(keys)} keys; {MAX_KEYS} are the most")
    return tuple(keys.values())


def _check_permissions(path: Path, status: os.stat_result) -> None:
    """Others than the server's user may not read the file; a file that belongs to somebody else (mounted by an
    orchestrator) may be read by the group, which is how the server itself comes to it."""
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path}: not a regular file; give a file with one key a line")
    forbidden = 0o077 if status.st_uid == os.geteuid() else 0o027
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise KeyFileError(f"{path}: mode {mode:04o} lets others in; chmod 600 it")


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
