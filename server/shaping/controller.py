"""The one loop in the cluster that looks at the grid and turns the dial.

Every poll period (jittered) it reads the ladder, asks the policy, writes `grid.json` for whoever shows the
grid, and hands a changed `DialState` to `push`. What the policy learns is kept in a file, so that a restart goes on
from it. Nothing that fails in it ends it: the next look comes anyway.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from energy.grid.ladder import Ladder
from energy.grid.signal import Intensity, format_utc
from models.manifest import OperatingPoint
from models.store import write_atomic
from server.node.figures import Figures
from server.shaping import budget
from server.shaping.percentile import begun
from server.shaping.policy import Decision, DialState, Inputs, PolicyState, code, decide
from server.shaping_settings import ShapingSettings

log = structlog.get_logger(__name__)

Push = Callable[[DialState], Awaitable[None]]
Ask = Callable[[], Awaitable[Figures | None]]

JITTER = 0.1
"""A poll comes up to this share early or late, so that many clusters do not ask in step."""
KEPT_DECISIONS = 30
"""Changes of mind that `grid.json` tells of."""
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
        ask: Ask | None = None,
        state_file: Path | None = None,
        past: Sequence[float] = (),
    ) -> None:
        """`ask` gives the server's figures, None where it cannot: what the policies weigh hours and budgets by.
        `state_file` keeps what they learn; without one a restart begins anew.
        `past` is what the grid was like before, by the hour and oldest first, for a start that knows nothing."""
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
        self._ask = ask
        self._state_file = state_file
        self._state = _remembered(state_file)
        self._state = replace(self._state, percentile=begun(self._state.percentile, past))
        self._texts: tuple[float, int] | None = None
        self._signal: Intensity | None = None
        self._pushed: DialState | None = None
        self._next_look_s = clock()
        self._wake = asyncio.Event()
        self._changes: deque[dict[str, Any]] = deque(maxlen=KEPT_DECISIONS)

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
        inputs = Inputs(self._ladder.provider.now(), expected_grams_per_kwh=self._ladder.expected_now())
        self._state, decision = decide(self._state, self._signal, self._settings, self._clock(), self._points, inputs)
        self.dial = DialState.of(decision, self.dial.version + 1)
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
        looked = now_s >= self._next_look_s
        if looked:
            self._next_look_s = now_s + self._period_s()
            self._signal = (await self._ladder.read()).reading
        decision = self._decide(await self._inputs(now_s))
        await self._record(decision)
        if looked:
            await self._remember()
        if self._pushed != self.dial:
            await self._push_dial()

    def _period_s(self) -> float:
        return self._settings.poll_period_s * (1 + JITTER * (2 * self._uniform() - 1))

    async def _inputs(self, now_s: float) -> Inputs:
        """What there is to know beside the grid."""
        now, expected = self._ladder.provider.now(), self._ladder.expected_now()
        figures = None if self._ask is None else await self._ask()
        if figures is None:
            return Inputs(now, expected_grams_per_kwh=expected)
        texts = figures.standard_texts
        before, self._texts = self._texts, (now_s, texts)
        rate = None
        if before is not None and now_s > before[0] and texts >= before[1]:
            rate = (texts - before[1]) / (now_s - before[0])
        return Inputs(now, rate, figures.joules, expected)

    async def _remember(self) -> None:
        if self._state_file is None:
            return
        content = json.dumps(self._state.to_dict()).encode()
        try:
            await asyncio.to_thread(write_atomic, self._state_file, content)
        except OSError as error:
            log.warning("policy_state_not_written", path=str(self._state_file), error=str(error))

    def _decide(self, inputs: Inputs) -> Decision:
        before = self.dial
        self._state, decision = decide(self._state, self._signal, self._settings, self._clock(), self._points, inputs)
        self.dial = before.followed_by(decision)
        switched = before.point_by_class["standard"] != decision.point
        self.switches_total += switched
        changed = code(before.reason_by_class["standard"]) != code(decision.reason)
        if switched or changed or not self._changes:
            self._changes.append(self._change(decision))
        (log.info if switched or changed else log.debug)(
            "dial_decided",
            point=decision.point,
            reason=decision.reason,
            switched=switched,
            grams_per_kwh=None if self._signal is None else round(self._signal.grams_per_kwh, 1),
            kind=None if self._signal is None else self._signal.kind,
        )
        return decision

    def _change(self, decision: Decision) -> dict[str, Any]:
        """What was decided, when (seconds since the epoch), and by which reading."""
        split = decision.split
        return {
            "at_s": round(time.time(), 3),
            "point": decision.point,
            "split": None if split is None else split.to_dict(),
            "reason": decision.reason,
            "policy": self._settings.policy,
            "grams_per_kwh": None if self._signal is None else round(self._signal.grams_per_kwh, 1),
        }

    async def _record(self, decision: Decision) -> None:
        content = json.dumps(self._report(decision)).encode() + b"\n"
        try:
            await asyncio.to_thread(write_atomic, self._grid_file, content)
        except OSError as error:
            log.warning("grid_file_not_written", path=str(self._grid_file), error=str(error))

    def _report(self, decision: Decision) -> dict[str, Any]:
        provider, signal = self._ladder.provider, self._signal
        reading: dict[str, Any] = dict.fromkeys(("grams_per_kwh", "kind", "time", "age_s", "estimated", "measure"))
        if signal is not None:
            reading = {
                "grams_per_kwh": signal.grams_per_kwh,
                "kind": signal.kind,
                "time": format_utc(signal.time),
                # The ladder takes what lies a little ahead of this machine's clock.
                "age_s": max(0.0, round(signal.age_s(provider.now()), 1)),
                "estimated": signal.estimated,
                "measure": signal.measure,
            }
        return {
            # By this the reading's age is told wherever the file is carried to.
            "written_s": round(time.time(), 3),
            **reading,
            "expected_grams_per_kwh": self._ladder.expected_now(),
            "zone": provider.zone,
            "provider": provider.name,
            "dial_point": decision.point,
            "dial_version": self.dial.version,
            "dial_level": round(self._state.level, 4),
            "policy": self._settings.policy,
            "reason": decision.reason,
            "switches_total": self.switches_total,
            "refused": dict(self._ladder.refused),
            "changes": list(self._changes),
            "budget": self._budget(),
        }

    def _budget(self) -> dict[str, float] | None:
        if self._settings.policy != "budget":
            return None
        return budget.course(self._state.budget, self._ladder.provider.now(), self._settings)

    async def _push_dial(self) -> None:
        dial = self.dial
        try:
            await asyncio.wait_for(self._push(dial), PUSH_TIMEOUT_S)
        except Exception:
            log.exception("dial_not_pushed", version=dial.version)
        else:
            self._pushed = dial


def _remembered(path: Path | None) -> PolicyState:
    """What an earlier run learned; nothing if the file is missing or damaged."""
    if path is None:
        return PolicyState()
    try:
        return PolicyState.from_dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return PolicyState()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("policy_state_ignored", path=str(path), error=str(error))
        return PolicyState()
