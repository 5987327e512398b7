"""Running a compile in the cleanest hours before a deadline: it pauses and goes on between passes.

Before each pass that is not in the cache the grid is looked at, and the rest of the run planned as any other work that
can wait (`energy.grid.windows`). What a pass takes is foretold by what equal passes took before; one that was never
seen counts `UNSEEN_PASS_S`. The deadline is kept by starting in time, with a reserve, however dirty the hours are.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compile.errors import InputError
from compile.progress import Forecast, Work
from compile.runner import Reporter
from energy.grid.choice import BadChoice, GridChoice, make_provider, secret_of_file
from energy.grid.expectation import expect
from energy.grid.ladder import Ladder
from energy.grid.replay import ReplayProvider
from energy.grid.signal import format_utc, parse_utc
from energy.grid.windows import Work as Waiting
from energy.grid.windows import plan
from energy.span import Span, measure_process
from models.store import write_atomic

UNSEEN_PASS_S = 600.0
RESERVE = 1.5
"""The rest of the run is planned to take so many times what is expected."""
LOOK_EVERY_S = 300.0
HISTORY_DAYS = 28
LOG = "shift.json"
"""What a shifted run did, in the work folder."""


@dataclass(frozen=True)
class Ran:
    """A pass that did its work. Intensities (gCO2e/kWh) are of when it ran, and of when it would have run at once; None
    where nobody knows. Joules are dynamic, and of the source of the compile's other figures."""

    label: str
    name: str
    began: str
    seconds: float
    joules: float | None
    as_run_grams_per_kwh: float | None
    at_once_grams_per_kwh: float | None


@dataclass(frozen=True)
class Clock:
    """Real time, or what tests put in its place."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Shift:
    """A `Reporter` that hands everything on to `told`, and whose `pause` waits for clean hours."""

    def __init__(
        self,
        ladder: Ladder,
        by: datetime,
        told: Reporter,
        say: Callable[[str], None],
        log: Path,
        *,
        speed: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        """`by` is of the grid's clock, which goes `speed` times as fast as the real one."""
        self.ran: list[Ran] = []
        self.waited_s = 0.0
        self._ladder, self._by, self._told, self._say, self._log = ladder, by, told, say, log
        self._speed, self._clock = speed, clock or Clock()
        self._forecast = Forecast(self._clock.monotonic)
        self._loop = asyncio.new_event_loop()
        self._seen: list[tuple[float, float | None]] = []
        self._began_s = self._now_s()
        self._worked_s = 0.0
        self._open: tuple[ExitStack, Span, float, float | None] | None = None
        self._running: Work = ("", "")

    def close(self) -> None:
        """Let the grid's provider go."""
        self._loop.run_until_complete(self._ladder.provider.aclose())
        self._loop.close()

    def pause(self) -> None:
        """Wait until the rest of the run should go on; then the pass that comes is metered."""
        said = False
        while (wait_s := self._wait_s()) > 0:
            if not said:
                label, name = self._running
                self._say(f"waiting for a cleaner hour before {label}: {name} ({self._outlook_words()})")
                said = True
            self._clock.sleep(wait_s)
            self.waited_s += wait_s * self._speed
        stack = ExitStack()
        span = stack.enter_context(measure_process())
        self._open = (stack, span, self._now_s(), self._seen[-1][1])

    def _wait_s(self) -> float:
        """Real seconds until the next look; 0 to go on."""
        reading = self._loop.run_until_complete(self._ladder.read()).reading
        now_s = self._now_s()
        self._seen.append((now_s, None if reading is None else reading.grams_per_kwh))
        left_s = RESERVE * self._speed * self._forecast.at_most(UNSEEN_PASS_S)
        work = Waiting("compile", self._by.timestamp(), left_s)
        self._plan = plan([work], expect(self._ladder, self._by), now_s)
        if self._plan.runs_now("compile") > 0:
            return 0.0
        hour_s = (now_s // 3600 + 1) * 3600
        return min(LOOK_EVERY_S, max(0.01, (hour_s - now_s) / self._speed))

    def _outlook_words(self) -> str:
        grams = self._seen[-1][1]
        now = "unknown" if grams is None else f"{grams:.0f} gCO2e/kWh now"
        return f"{now}; planned for {_utc(self._plan.starts_s('compile'))}"

    def _now_s(self) -> float:
        return self._ladder.now().timestamp()

    def _at(self, time_s: float) -> float | None:
        """The intensity as it was read last before a time."""
        place = bisect_right(self._seen, time_s, key=lambda one: one[0])
        return self._seen[max(0, place - 1)][1] if self._seen else None

    # Reporter

    def planned(self, works: Sequence[Work], past: Mapping[Work, float]) -> None:
        """See `Reporter`."""
        self._forecast.planned(works, past)
        self._told.planned(works, past)

    def started(self, label: str, pass_name: str) -> None:
        """See `Reporter`."""
        self._running = (label, pass_name)
        self._forecast.started(self._running)
        self._told.started(label, pass_name)

    def moved(self, share: float, note: str) -> None:
        """See `Reporter`."""
        self._told.moved(share, note)

    def finished(self, label: str, pass_name: str, seconds: float, cached: bool) -> None:
        """See `Reporter`."""
        if self._open is not None and not cached:
            self._note(label, pass_name, seconds)
        self._open = None
        self._forecast.finished(seconds, cached)
        self._told.finished(label, pass_name, seconds, cached)

    def dropped(self, label: str, reason: str) -> None:
        """See `Reporter`."""
        if self._open is not None:
            self._open[0].close()
            self._open = None
        self._forecast.dropped(label)
        self._told.dropped(label, reason)

    def _note(self, label: str, name: str, seconds: float) -> None:
        assert self._open is not None
        stack, span, began_s, grams = self._open
        stack.close()
        at_once = self._at(self._began_s + self._worked_s)
        self._worked_s += seconds * self._speed
        self.ran.append(Ran(label, name, _utc(began_s), seconds, span.dynamic_joules, grams, at_once))
        described = {"by": format_utc(self._by), **self.sums(), "passes": [asdict(one) for one in self.ran]}
        write_atomic(self._log, json.dumps(described, indent=1).encode() + b"\n")

    def sums(self) -> dict[str, Any]:
        """What the run emitted and would have at once, in grams; None where an intensity is unknown."""
        return {
            "began": _utc(self._began_s),
            "waited_s": round(self.waited_s),
            "joules": _total(one.joules for one in self.ran),
            "grams": _grams((one.joules, one.as_run_grams_per_kwh) for one in self.ran),
            "grams_at_once": _grams((one.joules, one.at_once_grams_per_kwh) for one in self.ran),
        }

    def conclude(self) -> str:
        """A line that says what the run emitted, and what it would have at once."""
        if not self.ran:
            return "nothing was left to do: no pass ran, and nothing was shifted"
        sums = self.sums()
        waited = f"{sums['waited_s'] / 3600:.1f} h waited"
        if sums["grams"] is None or sums["grams_at_once"] is None:
            return f"shifted: {waited}; joules or the grid's intensity are not known for all of it; see {self._log}"
        waited += f", {sums['joules']:.0f} J"
        saved = 1 - sums["grams"] / sums["grams_at_once"] if sums["grams_at_once"] else 0.0
        return (
            f"shifted: {waited}, {sums['grams']:.3g} gCO2e where {sums['grams_at_once']:.3g} would have been at once"
            f" ({saved:.0%} less); passes: {self._log}"
        )


def _total(parts: Iterable[float | None]) -> float | None:
    """The sum; None where a part is unknown."""
    known = list(parts)
    return None if None in known else sum(one for one in known if one is not None)


def _grams(parts: Iterable[tuple[float | None, float | None]]) -> float | None:
    return _total(None if joules is None or grams is None else joules * grams / 3.6e6 for joules, grams in parts)


def _utc(time_s: float) -> str:
    return format_utc(datetime.fromtimestamp(time_s, UTC))


def open_grid(name: str, start: str | None, speed: float, secret_file: Path | None, cache: Path) -> Ladder:
    """The grid that `--grid` names: `uk`, `electricity_maps:ZONE`, or a recording's path. Raises InputError."""
    provider, _, zone = name.partition(":")
    secret = None if secret_file is None else secret_of_file(secret_file)
    try:
        if provider == "uk":
            choice = GridChoice("uk", zone or None)
        elif provider == "electricity_maps":
            choice = GridChoice("electricity_maps", zone or None, secret=secret)
        else:
            begin = None if start is None else parse_utc(start)
            choice = GridChoice("replay", replay_path=Path(name), replay_speed=speed, replay_start=begin)
        made = make_provider(choice)
    except BadChoice as error:
        raise InputError("--grid", str(error), "give uk, electricity_maps:ZONE or a CSV") from None
    except (ValueError, TypeError):
        raise InputError("--grid-start", f"{start!r} is no time", "give an ISO 8601 time") from None
    if isinstance(made, ReplayProvider):
        ladder = Ladder(made)
        ladder.learn(made.past(HISTORY_DAYS))
        return ladder
    return Ladder(made, cache_path=cache)


def parse_by(text: str, now: datetime) -> datetime:
    """`--by`: an ISO 8601 time, or `+12h` (m, h, d) from now. Raises InputError."""
    units = {"m": "minutes", "h": "hours", "d": "days"}
    try:
        relative = text.startswith("+")
        by = now + timedelta(**{units[text[-1]]: float(text[1:-1])}) if relative else parse_utc(text)
    except (ValueError, KeyError, OverflowError):
        raise InputError("--by", f"{text!r} is no time", "give an ISO 8601 time, or +12h") from None
    if by <= now:
        raise InputError("--by", f"{format_utc(by)} is past, it is {format_utc(now)}", "give a later time")
    return by
