"""How much longer a run takes, from the shares done and from what equal passes took before."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Work = tuple[str, str]
"""(label, pass name), e.g. ("lite", "distil")."""
_TRUSTED_SHARE = 0.05


def past_seconds(cache: Path) -> dict[Work, float]:
    """Seconds that passes took, by label and name, from a work folder's cache; the median where there are several."""
    found: dict[Work, list[float]] = {}
    for path in cache.glob("*/done.json"):
        try:
            done = json.loads(path.read_text(encoding="utf-8"))
            key = (str(done["label"]), path.parent.name.rpartition("-")[0])
            found.setdefault(key, []).append(float(done["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # killed in between, or of a release that noted no time
    return {key: statistics.median(values) for key, values in found.items()}


@dataclass
class Forecast:
    """Time left of a run whose passes are known beforehand; `clock` gives seconds."""

    clock: Callable[[], float]
    past: dict[Work, float] = field(default_factory=dict)
    count: int = 0
    """Passes of the run."""
    _to_come: list[Work] = field(default_factory=list)
    _running: Work | None = None
    _began: float = 0.0
    _share: float = 0.0

    def planned(self, works: Sequence[Work], past: Mapping[Work, float]) -> None:
        """The passes of the run, in order, and what equal ones took."""
        self._to_come, self.past = list(works), dict(past)
        self.count = len(self._to_come)

    def started(self, work: Work) -> None:
        """A pass begins; it leaves the plan."""
        if work in self._to_come:
            self._to_come.remove(work)
        self._running, self._began, self._share = work, self.clock(), 0.0

    def moved(self, share: float) -> None:
        """The running pass did `share` of its work."""
        self._share = share

    def finished(self, seconds: float, cached: bool) -> None:
        """The running pass is done; what it took foretells equal ones."""
        if self._running is not None and not cached:
            self.past[self._running] = seconds
        self._running = None

    def dropped(self, label: str) -> None:
        """What was planned for `label` will not be done."""
        self._to_come = [work for work in self._to_come if work[0] != label]
        self._running = None

    @property
    def number(self) -> int:
        """Passes begun so far."""
        return self.count - len(self._to_come)

    def words(self) -> str:
        """The time left in words, e.g. `about 3 min left`."""
        seconds, known = self.left()
        if not known and seconds < 1:
            return "time left not known yet"
        return f"{'about' if known else 'at least'} {_spell(seconds)} left"

    def left(self) -> tuple[float, bool]:
        """(seconds left, whether all is known); a pass that was never seen counts 0, so the figure is a lower bound."""
        expected = [self._expected(work) for work in self._to_come]
        expected.append(self._of_running())
        return sum(e for e in expected if e is not None), None not in expected

    def at_most(self, unseen_s: float) -> float:
        """Seconds left before the running pass has begun its work, one that was never seen counted as `unseen_s`."""
        works = self._to_come if self._running is None else [self._running, *self._to_come]
        expected = [self._expected(work) for work in works]
        return sum(unseen_s if seconds is None else seconds for seconds in expected)

    def _expected(self, work: Work) -> float | None:
        if work in self.past:
            return self.past[work]
        alike = [seconds for (_, name), seconds in self.past.items() if name == work[1]]
        return statistics.median(alike) if alike else None

    def _of_running(self) -> float | None:
        if self._running is None:
            return 0.0
        elapsed = self.clock() - self._began
        if self._share >= _TRUSTED_SHARE:
            return elapsed * (1 - self._share) / self._share
        expected = self._expected(self._running)
        return None if expected is None else max(0.0, expected - elapsed)


def _spell(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
