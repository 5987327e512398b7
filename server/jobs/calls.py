"""Calls for the jobs as plain values, whatever carries them: a socket (`link`) or Ray (`server.cluster`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog

from server.engine import errors as engine_errors
from server.engine.errors import BackendFailure, EngineError, Overloaded
from server.engine.tokenizer import Text
from server.jobs import errors as job_errors
from server.jobs.job import Computed, Lease, Wanted
from server.jobs.port import JobsPort

log = structlog.get_logger(__name__)

METHODS = ("submit", "listed", "show", "results", "cancel", "now_s", "take", "give", "give_back")
CALL_TIMEOUT_S = 60.0


class JobsCalls:
    """A `JobsPort` that hands each call to `carry`, which a subclass provides."""

    async def carry(self, method: str, arguments: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """What `answer` says of a call. Raises NotReady if the owner does not answer."""
        raise NotImplementedError

    async def submit(self, wanted: Wanted) -> tuple[dict[str, Any], bool]:
        """See `JobsPort`."""
        job, new = await self._call("submit", _pack_wanted(wanted))
        return job, new

    async def listed(self, owner: str, state: str | None, after: str | None, limit: int) -> list[dict[str, Any]]:
        """See `JobsPort`."""
        found: list[dict[str, Any]] = await self._call("listed", owner, state, after, limit)
        return found

    async def show(self, owner: str, job_id: str) -> dict[str, Any]:
        """See `JobsPort`."""
        found: dict[str, Any] = await self._call("show", owner, job_id)
        return found

    async def results(self, owner: str, job_id: str, start: int, limit: int) -> list[bytes]:
        """See `JobsPort`."""
        found: list[bytes] = await self._call("results", owner, job_id, start, limit)
        return found

    async def cancel(self, owner: str, job_id: str) -> dict[str, Any]:
        """See `JobsPort`."""
        found: dict[str, Any] = await self._call("cancel", owner, job_id)
        return found

    async def now_s(self) -> float:
        """See `JobsPort`."""
        found: float = await self._call("now_s")
        return found

    async def take(self, wait_s: float) -> Lease | None:
        """See `JobsPort`."""
        found = await self._call("take", wait_s, timeout_s=wait_s + CALL_TIMEOUT_S)
        return None if found is None else Lease(found[0], found[1], [tuple(one) for one in found[2]], *found[3:])

    async def give(self, lease_id: int, job_id: str, computed: Sequence[Computed], joules: float | None) -> None:
        """See `JobsPort`."""
        await self._call("give", lease_id, job_id, [tuple(one) for one in computed], joules)

    async def give_back(self, lease_id: int) -> None:
        """See `JobsPort`."""
        await self._call("give_back", lease_id)

    async def _call(self, method: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Raises NotReady if the owner does not answer, or what it raised."""
        reply = await self.carry(method, arguments, timeout_s)
        if reply[0] == "error":
            raise _error(*reply[1:])
        return reply[1]


async def answer(desk: JobsPort, method: str, arguments: Sequence[Any]) -> list[Any]:
    """Do a call: `["ok", value]` or `["error", kind, message, retry_after_s]`, of plain values."""
    try:
        return ["ok", await _do(desk, method, arguments)]
    except EngineError as error:
        return ["error", type(error).__name__, str(error), getattr(error, "retry_after_s", None)]
    except Exception:
        log.exception("a call for the jobs failed")
        return ["error", "BackendFailure", "jobs: their owner failed; its log has it", None]


async def _do(desk: JobsPort, method: str, arguments: Sequence[Any]) -> Any:
    if method not in METHODS:
        raise ValueError(f"{method!r} is no call")
    if method == "submit":
        return await desk.submit(_unpack_wanted(arguments[0]))
    if method == "give":
        lease_id, job_id, computed, joules = arguments
        return await desk.give(lease_id, job_id, [Computed(*one) for one in computed], joules)
    value = await getattr(desk, method)(*arguments)
    return tuple(value) if isinstance(value, Lease) else value


_ERRORS: dict[str, type[EngineError]] = {
    name: kind
    for module in (engine_errors, job_errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, EngineError)
}


def _error(name: str, message: str, retry_after_s: float | None) -> EngineError:
    kind = _ERRORS.get(name, BackendFailure)
    return Overloaded(message, retry_after_s or 1.0) if kind is Overloaded else kind(message)


def _pack_wanted(wanted: Wanted) -> list[Any]:
    texts = [(text.first, text.second) for text in wanted.texts]
    return [
        wanted.owner, texts, wanted.deadline_s, wanted.truncate, wanted.raw_scores, wanted.idempotency_key,
        wanted.digest,
    ]  # fmt: skip


def _unpack_wanted(packed: Sequence[Any]) -> Wanted:
    owner, texts, *rest = packed
    return Wanted(owner, [Text(first, second) for first, second in texts], *rest)
