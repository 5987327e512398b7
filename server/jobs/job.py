"""What a job is. Times are seconds since the epoch by the grid's clock, which a replay may play faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, get_args

from energy.grid.signal import format_utc
from server.engine.tokenizer import Text, Truncation

State = Literal["waiting", "running", "done", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
UNITS_A_TEXT = 32
"""What a text costs beside its characters, in characters."""


def units_of(text: Text) -> int:
    """About how much work a text is; its characters and a share of what every text costs."""
    return UNITS_A_TEXT + len(text.first) + len(text.second or "")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks for. `digest` tells requests with the same idempotency key apart."""

    owner: str
    texts: Sequence[Text]
    deadline_s: float
    truncate: Truncation | None = None
    raw_scores: bool = False
    idempotency_key: str | None = None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the file has it.

    `joules` and both figures of grams are those of `metered_texts`; texts whose joules or whose hour's intensity nobody
    knew are in none of them. `grams_at_once` is what the same joules would have emitted in the hour of the submission.
    """

    id: str
    owner: str
    submitted_s: float
    deadline_s: float
    texts: int
    units: int
    state: Literal["open", "done", "cancelled"]
    done: int = 0
    done_units: int = 0
    failed: int = 0
    truncate: Truncation | None = None
    raw_scores: bool = False
    started_s: float | None = None
    finished_s: float | None = None
    submit_grams_per_kwh: float | None = None
    metered_texts: int = 0
    joules: float = 0.0
    grams: float = 0.0
    grams_at_once: float = 0.0

    @property
    def late(self) -> bool:
        """Whether it was done after its deadline."""
        return self.state == "done" and self.finished_s is not None and self.finished_s > self.deadline_s

    @property
    def carbon(self) -> dict[str, str]:
        """For a log: what it would have emitted at once, and what it did; nothing where nobody knows."""
        if not self.metered_texts:
            return {}
        return {"grams": f"{self.grams:.3g}", "grams_at_once": f"{self.grams_at_once:.3g}"}

    def to_dict(self, *, running: bool, planned_s: float | None, now_s: float) -> dict[str, Any]:
        """What `/jobs` says of it: whether texts of it are being computed, when it is planned, and the clock's time."""
        state: State = self.state if self.state != "open" else "running" if running else "waiting"
        metered = self.metered_texts > 0
        return {
            "id": self.id,
            "state": state,
            "now": iso(now_s),
            "submitted": iso(self.submitted_s),
            "deadline": iso(self.deadline_s),
            "planned": None if planned_s is None else iso(planned_s),
            "started": None if self.started_s is None else iso(self.started_s),
            "finished": None if self.finished_s is None else iso(self.finished_s),
            "late": self.late or (self.state == "open" and now_s > self.deadline_s),
            "texts": self.texts,
            "texts_done": self.done,
            "texts_failed": self.failed,
            "texts_metered": self.metered_texts,
            "joules": self.joules if metered else None,
            "grams": self.grams if metered else None,
            "grams_at_once": self.grams_at_once if metered else None,
        }


class Lease(NamedTuple):
    """Some texts of a job that are to be computed now. An `urgent` one does not make way for anybody."""

    id: int
    job: str
    texts: list[tuple[int, str, str | None]]
    """Number in the job, first, second text."""
    truncate: Truncation | None
    raw_scores: bool
    urgent: bool


def bounded(texts: list[tuple[int, str, str | None]], most_units: int) -> tuple[list[tuple[int, str, str | None]], int]:
    """The first of a lease's texts that come to at most so many units together (at least one), and the units."""
    units = 0
    for count, (_, first, second) in enumerate(texts):
        more = units_of(Text(first, second))
        if count and units + more > most_units:
            return texts[:count], units
        units += more
    return texts, units


class Computed(NamedTuple):
    """What came of one text: its number in the job, JSON, and whether that is an error."""

    number: int
    body: bytes
    failed: bool


def iso(time_s: float) -> str:
    """Seconds since the epoch as `YYYY-MM-DDThh:mm:ssZ`."""
    return format_utc(datetime.fromtimestamp(time_s, UTC))
