"""Two runs of the same plan side by side: is B cheaper or slower than A, and by more than the runs themselves spread?

Both runs asked the same at the same times, so that each part of A has its counterpart in B: the ratios of the parts are
what is judged, by their median and a bootstrap interval of it. Requests that failed are in no latency and cost little;
so a run that failed more is worse, whatever its answers took. What the machine did beside one of the runs looks like a
difference between them: only a second run of A tells how large that is.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

DRAWS = 4000
INTERVAL = 0.9
LEAST_EFFECT = 0.02
"""A difference smaller than this is called none, however sure."""
LEAST_PARTS = 5
MORE_FAILED = 0.005
"""So much more of the requests must have failed to call it more."""
LIKE_S = 1.0
"""Parts of two runs are the same stretch if their bounds differ by no more, nor by more than half of their length."""
SAME = ("fingerprint", "protocol", "requests")
JUDGED = {
    "joules an answer (requests)": "joules_per_answer",
    "joules an answer (with overhead)": "joules_per_answer_with_overhead",
    "p99 latency": "p99_ms",
}


class NotComparable(ValueError):
    """The two runs did not ask the same, or a file is no run; the message says how to mend it."""


@dataclass(frozen=True)
class Verdict:
    """B over A: the median ratio of the parts, and the interval that it lies in."""

    what: str
    ratio: float
    low: float
    high: float
    parts: int

    @property
    def word(self) -> str:
        """`less`, `more`, or that no difference was seen."""
        if self.high < 1 and self.ratio < 1 - LEAST_EFFECT:
            return "less"
        if self.low > 1 and self.ratio > 1 + LEAST_EFFECT:
            return "more"
        return "no difference seen"

    def line(self) -> str:
        """For people."""
        change = (
            f"{self.ratio - 1:+.1%} ({self.low - 1:+.1%} to {self.high - 1:+.1%} at {INTERVAL:.0%}, {self.parts} parts)"
        )
        return f"{self.what}: B {self.word}: {change}"


def load_run(path: Path) -> dict[str, Any]:
    """A run's `run.json`, or that of the folder `path`. Raises NotComparable."""
    file = path / "run.json" if path.is_dir() else path
    try:
        run = json.loads(file.read_text())
        _look_at(run)
    except FileNotFoundError:
        raise NotComparable(f"{file}: does not exist; give the folder of a run of `make load`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotComparable(f"{file}: is no run of loadtest.load ({error!r}); give the folder of one") from None
    found: dict[str, Any] = run
    return found


def _look_at(run: dict[str, Any]) -> None:
    """Raises KeyError or TypeError where something is missing that is compared."""
    _ = [run["plan"][name] for name in SAME], run["energy"]["sources"], failed_share(run)
    for part in run["slices"]:
        _ = [part[name] for name in (*JUDGED.values(), "from_s", "to_s")]


def failed_share(run: dict[str, Any]) -> float:
    """Of the requests that were sent, those that were not answered."""
    sent = run["figures"]["sent"]
    return 1 - run["figures"]["answered"] / sent if sent else 0.0


def failed_more(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether B failed more requests than A: by half a percent of them, and by more than chance explains."""
    sent = [max(1, run["figures"]["sent"]) for run in (a, b)]
    shares = [failed_share(run) for run in (a, b)]
    error = math.sqrt(sum(share * (1 - share) / count for share, count in zip(shares, sent, strict=True)))
    return shares[1] - shares[0] > max(MORE_FAILED, 2 * error)


def same_parts(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The parts that are of the same stretch of the plan in both. A reading that is missing makes one long part of two,
    which has no counterpart; the last ones end when the last answer came."""
    found = []
    for one in a["slices"]:
        like_s = min(LIKE_S, (one["to_s"] - one["from_s"]) / 2)
        nearest = min(b["slices"], key=lambda other: abs(one["from_s"] - other["from_s"]), default=None)
        if nearest is None or abs(one["from_s"] - nearest["from_s"]) > like_s:
            continue
        last = one is a["slices"][-1] and nearest is b["slices"][-1]
        if last or abs(one["to_s"] - nearest["to_s"]) <= like_s:
            found.append((one, nearest))
    return found


def compare(a: dict[str, Any], b: dict[str, Any]) -> list[Verdict]:
    """One verdict for each figure that both runs have in `LEAST_PARTS` parts. Raises NotComparable."""
    for name in SAME:
        if a["plan"][name] != b["plan"][name]:
            raise NotComparable(
                f"{name}: the runs did not ask the same ({a['plan'][name]} and {b['plan'][name]}); "
                "run B again with the arrivals, rate, seconds, texts, mix and seed of A"
            )
    if a["energy"]["sources"] != b["energy"]["sources"]:
        raise NotComparable(
            f"energy source: {a['energy']['sources']} and {b['energy']['sources']}; joules of different meters are not "
            "compared, run both on one machine"
        )
    verdicts = []
    parts = same_parts(a, b)
    for what, field in JUDGED.items():
        pairs = [(one[field], other[field]) for one, other in parts if one[field] and other[field]]
        if len(pairs) >= LEAST_PARTS:
            verdicts.append(judge(what, pairs))
    if not verdicts:
        raise NotComparable(
            f"parts: fewer than {LEAST_PARTS} of the runs have figures of the same stretch; run longer (--seconds), and"
            " with the same --slice"
        )
    return verdicts


def judge(what: str, pairs: Sequence[tuple[float, float]], seed: int = 1) -> Verdict:
    """The median of B / A over the pairs, with a percentile bootstrap interval. All values are above 0."""
    logs = [math.log(b / a) for a, b in pairs]
    chance = random.Random(seed)
    drawn = sorted(median(chance.choices(logs, k=len(logs))) for _ in range(DRAWS))
    tail = round(DRAWS * (1 - INTERVAL) / 2)
    low, middle, high = drawn[tail], median(logs), drawn[-1 - tail]
    return Verdict(what, math.exp(middle), math.exp(low), math.exp(high), len(pairs))


def spread(run: dict[str, Any], field: str) -> str:
    """Median and range of a figure over the parts of a run."""
    values = [one[field] for one in run["slices"] if one[field]]
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})" if values else "unknown"
