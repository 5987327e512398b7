"""The one loop in the cluster that looks at the grid and turns the dial.

Every poll period (jittered) it reads the ladder, asks the policy, writes `grid.json` for whoever shows the
grid, and hands a changed `DialState` to `push`. Nothing that fails in it ends it: the next look comes anyway.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from energy.grid.ladder import Ladder
from energy.grid.signal import Intensity, format_utc
from models.manifest import OperatingPoint
from models.store import write_atomic
from server.settings import ShapingSettings
from server.shaping.policy import Decision, DialState, PolicyState, code, decide

log = structlog.get_logger(__name__)

Push = Callable[[DialState], Awaitable[None]]

JITTER = 0.1
"""A poll comes up to this share early or late, so that many clusters do not ask in step."""
RETRY_PUSH_S = 5.0
"""Longest pause before a dial that could not be pushed is pushed again."""
PUSH_TIMEOUT_S = 60.0


class ShapingController:
    """Owns the policy's state and the dial. `clock` counts seconds for dwell and polling; `uniform` gives
    [0, 1)."""

    def __init__(
        self,
        ladder: Ladder,
        points: Sequence[OperatingPoint],
        settings: ShapingSettings,
        grid_file: Path,
        push: Push,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
        first_version: int | None = None,
    ) -> None:
        # Replicas may outlive the controller and ignore older versions: start above every earlier run's.
        version = int(time.time()) if first_version is None else first_version
        self.dial = replace(DialState.initial(points, settings), version=version)
        self.switches_total = 0
        self._ladder = ladder
        self._points = tuple(points)
        self._settings = settings
        self._grid_file = grid_file
        self._push = push
        self._clock = clock
        self._uniform = uniform
        self._state = PolicyState()
        self._signal: Intensity | None = None
        self._pushed: DialState | None = None
        self._next_look_s = clock()
        self._wake = asyncio.Event()

    def retune(self, settings: ShapingSettings) -> None:
        """Take new settings; the loop decides anew at once, by the reading it has."""
        self._settings = settings
        self._next_look_s = min(self._next_look_s, self._clock() + self._period_s())
        self._wake.set()

    def serve_points(self, points: Sequence[OperatingPoint]) -> DialState:
        """Take the points of another version of the family; returns the dial to hand over together with it.

        It is what the grid asks for now, made of the new points; the caller pushes it.
        """
        self._points = tuple(points)
        self._state, decision = decide(self._state, self._signal, self._settings, self._clock(), self._points)
        self.dial = DialState(decision.point_by_class, decision.reason_by_class, self.dial.version + 1)
        self._pushed = self.dial
        return self.dial

    async def run(self) -> None:
        """Look, decide and push until cancelled; then let the provider's connections go."""
        try:
            await self._loop()
        finally:
            await self._ladder.provider.aclose()

    async def _loop(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.step()
            except Exception:
                log.exception("shaping_step_failed")
            wait_s = max(0.0, self._next_look_s - self._clock())
            if self._pushed != self.dial:
                wait_s = min(wait_s, RETRY_PUSH_S)
            try:
                await asyncio.wait_for(self._wake.wait(), wait_s)
            except TimeoutError:
                continue

    async def step(self) -> None:
        """One turn: read the grid if its time has come, decide, record, push what changed."""
        now_s = self._clock()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + self._period_s()
            self._signal = (await self._ladder.read()).reading
        decision = self._decide()
        await self._record(decision)
        if self._pushed != self.dial:
            await self._push_dial()

    def _period_s(self) -> float:
        return self._settings.poll_period_s * (1 + JITTER * (2 * self._uniform() - 1))

    def _decide(self) -> Decision:
        before = self.dial
        self._state, decision = decide(self._state, self._signal, self._settings, self._clock(), self._points)
        self.dial = before.followed_by(decision)
        switched = before.point_by_class["standard"] != decision.point
        self.switches_total += switched
        changed = code(before.reason_by_class["standard"]) != code(decision.reason)
        (log.info if switched or changed else log.debug)(
            "dial_decided",
            point=decision.point,
            reason=decision.reason,
            switched=switched,
            grams_per_kwh=None if self._signal is None else round(self._signal.grams_per_kwh, 1),
            kind=None if self._signal is None else self._signal.kind,
        )
        return decision

    async def _record(self, decision: Decision) -> None:
        content = json.dumps(self._report(decision)).encode() + b"\n"
        try:
            await asyncio.to_thread(write_atomic, self._grid_file, content)
        except OSError as error:
            log.warning("grid_file_not_written", path=str(self._grid_file), error=str(error))

    def _report(self, decision: Decision) -> dict[str, Any]:
        provider, signal = self._ladder.provider, self._signal
        reading: dict[str, Any] = dict.fromkeys(("grams_per_kwh", "kind", "time", "age_s", "estimated"))
        if signal is not None:
            reading = {
                "grams_per_kwh": signal.grams_per_kwh,
                "kind": signal.kind,
                "time": format_utc(signal.time),
                "age_s": round(signal.age_s(provider.now()), 1),
                "estimated": signal.estimated,
            }
        return {
            **reading,
            "zone": provider.zone,
            "provider": provider.name,
            "dial_point": decision.point,
            "dial_version": self.dial.version,
            "policy": self._settings.policy,
            "reason": decision.reason,
            "switches_total": self.switches_total,
        }

    async def _push_dial(self) -> None:
        dial = self.dial
        try:
            await asyncio.wait_for(self._push(dial), PUSH_TIMEOUT_S)
        except Exception:
            log.exception("dial_not_pushed", version=dial.version)
        else:
            self._pushed = dial
