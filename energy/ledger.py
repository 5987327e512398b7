"""The cumulative totals: what was metered, and whom the settled part of it was owed by. Pure: no clock, no I/O.

Energies are integer microjoules and only grow. What the meters' counters advanced by (`metered_uj`) comes from the
counters themselves and what windows settled comes from the differences that were handed on, so conservation compares
two figures that were made apart: a difference that is dropped or booked twice on its way shows. A ledger turns into
JSON and back without loss; whoever owns it persists that atomically.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from energy.attribution import LATE_RECORD, LOST_AT_RESTART, Attribution, largest_remainder
from energy.carbon import CarbonBook
from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain

VERSION = 1
OVERHEAD = "overhead"
IDLE = "idle"
OTHER = "other"
ATTRIBUTED = "attributed"
JOULES_PER_KWH = 3_600_000
LOAD_NS = 3600 * NANOSECONDS_PER_SECOND
"""Time constant with which the idling of hours without requests is laid on the requests that come after."""
ENERGY_BOUNDS_JOULES = (*(float(f"{m}e{e}") for e in range(-4, 3) for m in (1, 2, 5)), 1e3)
"""Upper bounds of the request-energy histogram: 1, 2, 5 in every decade from 1e-4 to 1e3 J."""


class LedgerError(ValueError):
    """A stored ledger is not one; the message names the field and the remedy."""


class Account(NamedTuple):
    """Who owes: a model's variant at an operating point, for a class of requests with one outcome."""

    model: str
    variant: str
    point: str
    quality: str
    outcome: str


@dataclass
class EnergyHistogram:
    """Requests by their energy; `counts` has one entry per bound and one for more."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(ENERGY_BOUNDS_JOULES) + 1))
    sum_uj: int = 0


@dataclass(frozen=True, slots=True)
class Conservation:
    """The law in one line, in microjoules: measured = attributed + idle + overhead + other + pending."""

    measured_uj: int
    attributed_uj: int
    idle_uj: int
    overhead_uj: int
    other_uj: int
    pending_uj: int
    """Metered, but in a window that is still open."""

    @property
    def error_ratio(self) -> float:
        """Joules lost or invented, as a share of the measured ones; 0 before anything was measured."""
        parts_uj = self.attributed_uj + self.idle_uj + self.overhead_uj + self.other_uj + self.pending_uj
        return abs(self.measured_uj - parts_uj) / self.measured_uj if self.measured_uj > 0 else 0.0

    def since(self, mark: Conservation) -> Conservation:
        """What came after `mark`, an earlier reading of the same ledger: `pending_uj` alone may be below 0 then, by
        what was settled of the window that was open at the mark. Raises LedgerError if `mark` is no earlier one.
        """
        # What is pending comes and goes; everything else only grows.
        if any(now < then for now, then in zip(self._row()[:-1], mark._row()[:-1], strict=True)):
            raise LedgerError("mark: of other books, or of these before they began anew; take a new mark")
        return Conservation(*(now - then for now, then in zip(self._row(), mark._row(), strict=True)))

    def _row(self) -> tuple[int, int, int, int, int, int]:
        return (
            self.measured_uj,
            self.attributed_uj,
            self.idle_uj,
            self.overhead_uj,
            self.other_uj,
            self.pending_uj,
        )

    def to_mark(self) -> str:
        """A token that `from_mark` turns back."""
        return ".".join(str(value) for value in self._row())

    @classmethod
    def from_mark(cls, text: str) -> Conservation:
        """Turn a token back. Raises LedgerError."""
        try:
            measured, attributed, idle, overhead, other, pending = (int(part) for part in text.split("."))
        except ValueError:
            raise LedgerError("mark: not a mark; pass the field 'mark' of an earlier answer") from None
        mark = cls(measured, attributed, idle, overhead, other, pending)
        if min(mark._row()) < 0 or pending > measured:
            raise LedgerError("mark: not a mark; pass the field 'mark' of an earlier answer")
        return mark


@dataclass
class Ledger:
    """All cumulative energy figures of a node."""

    metered_uj: dict[Domain, int] = field(default_factory=dict)
    """By the meters, per domain, those that overlap others included."""
    idle_uj: dict[Domain, int] = field(default_factory=dict)
    overhead_uj: int = 0
    other_uj: dict[str, int] = field(default_factory=dict)
    """By reason (`energy.attribution.REASONS`)."""
    attributed_uj: dict[tuple[Account, str], int] = field(default_factory=dict)
    """By account and energy source: dynamic energy alone."""
    loaded_uj: dict[tuple[Account, str], int] = field(default_factory=dict)
    """The same requests fully loaded: their dynamic energy, their share of idling and overhead, times PUE."""
    unloaded_uj: dict[str, int] = field(default_factory=dict)
    """By source: idling and overhead of times without requests, that is yet to be laid on requests (without PUE)."""
    avoided_uj: dict[str, int] = field(default_factory=dict)
    """Joules that were not spent, by reason; never subtracted from anything."""
    grams: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """gCO2e by scope, model and variant; absent without an intensity. All scopes are the service's (attributed, idle,
    overhead, late_record) but `other`."""
    carbon: CarbonBook = field(default_factory=CarbonBook)
    """Grams that were saved, by mechanism."""
    request_energy: dict[tuple[str, str, str], EnergyHistogram] = field(default_factory=dict)
    """By model, variant and class."""

    def meter(self, advance_uj: Mapping[Domain, int]) -> None:
        """Add what the counters advanced by (`energy.meter.Meter.total_uj`, as a difference)."""
        for domain, amount_uj in advance_uj.items():
            _add(self.metered_uj, domain, amount_uj)

    def lose(self, amount_uj: int) -> None:
        """Book metered energy of a window that can never be settled: nobody's, but not gone."""
        if amount_uj:
            _add(self.other_uj, LOST_AT_RESTART, amount_uj)

    def settle(
        self, attribution: Attribution[Account], grams_per_kwh: float | None, *, pue: float = 1.0, elapsed_ns: int = 0
    ) -> int:
        """Add a settled window of `elapsed_ns`; `grams_per_kwh` is the grid's intensity in it, cooling included, or
        None, and `pue` what the fully loaded figures are multiplied by. Returns the fully loaded microjoules of its
        requests.
        """
        loaded_uj = self._load(attribution, pue, elapsed_ns)
        if grams_per_kwh is not None:
            self.carbon.pass_time(grams_per_kwh, elapsed_ns)
        grams_per_uj = None
        if grams_per_kwh is not None:
            grams_per_uj = grams_per_kwh / JOULES_PER_KWH / MICROJOULES_PER_JOULE
        for split in attribution.splits:
            _add(self.idle_uj, split.domain, split.idle_uj)
            self.overhead_uj += split.overhead_uj
            for reason, amount_uj in split.other_uj.items():
                _add(self.other_uj, reason, amount_uj)
            for account, amount_uj in split.attributed_uj.items():
                _add(self.attributed_uj, (account, split.domain.source), amount_uj)
                self._histogram(account).sum_uj += amount_uj
            if grams_per_uj is not None:
                self._emit((IDLE, "", ""), split.idle_uj * grams_per_uj)
                self._emit((OVERHEAD, "", ""), split.overhead_uj * grams_per_uj)
                for reason, amount_uj in split.other_uj.items():
                    self._emit((LATE_RECORD if reason == LATE_RECORD else OTHER, "", ""), amount_uj * grams_per_uj)
                for account, amount_uj in split.attributed_uj.items():
                    self._emit((ATTRIBUTED, account.model, account.variant), amount_uj * grams_per_uj)
        return loaded_uj

    def _load(self, attribution: Attribution[Account], pue: float, elapsed_ns: int) -> int:
        """Lay the window's idling and overhead on its requests, by their dynamic energy.

        Without requests it waits in `unloaded_uj`, and later requests take it over within about an hour of serving:
        the first of the morning does not pay for the night. So, but for rounding,
        `loaded = pue * (attributed + idle + overhead - unloaded)`.
        """
        total_uj = 0
        fixed_uj: dict[str, int] = {}
        owed_uj: dict[str, dict[Account, int]] = {}
        for split in attribution.splits:
            source = split.domain.source
            fixed_uj[source] = fixed_uj.get(source, 0) + split.idle_uj + split.overhead_uj
            owed = owed_uj.setdefault(source, {})
            for account, amount_uj in split.attributed_uj.items():
                owed[account] = owed.get(account, 0) + amount_uj
        for source, own_uj in fixed_uj.items():
            owed = {account: amount_uj for account, amount_uj in owed_uj[source].items() if amount_uj}
            waiting_uj = self.unloaded_uj.get(source, 0)
            if not owed:
                self.unloaded_uj[source] = waiting_uj + own_uj
                continue
            paid_uj = min(waiting_uj * elapsed_ns // LOAD_NS, waiting_uj)
            self.unloaded_uj[source] = waiting_uj - paid_uj
            shares = largest_remainder(own_uj + paid_uj, list(owed.values()))
            for (account, amount_uj), share_uj in zip(owed.items(), shares, strict=True):
                loaded_uj = round(pue * (amount_uj + share_uj))
                total_uj += loaded_uj
                _add(self.loaded_uj, (account, source), loaded_uj)
        return total_uj

    def observe(self, account: Account, joules: float, count: int) -> None:
        """Enter `count` requests of about `joules` each into the histogram of their variant and class."""
        self._histogram(account).counts[bisect_left(ENERGY_BOUNDS_JOULES, joules)] += count

    def avoid(self, reason: str, amount_uj: int, grams_per_kwh: float | None = None) -> None:
        """Add energy that was not spent thanks to `reason`, at the intensity of that time if it is known."""
        _add(self.avoided_uj, reason, amount_uj)
        if grams_per_kwh is not None:
            self.carbon.save(reason, amount_uj / MICROJOULES_PER_JOULE / JOULES_PER_KWH, grams_per_kwh)

    def conservation(self, pending_uj: int = 0) -> Conservation:
        """The totals side by side; `pending_uj` is metered energy of the open window."""
        return Conservation(
            measured_uj=sum(uj for domain, uj in self.metered_uj.items() if not domain.overlaps),
            attributed_uj=sum(self.attributed_uj.values()),
            idle_uj=sum(self.idle_uj.values()),
            overhead_uj=self.overhead_uj,
            other_uj=sum(self.other_uj.values()),
            pending_uj=pending_uj,
        )

    def service_uj(self) -> int:
        """What the service drew so far: its requests, those whose record came late, its overhead and the machine's
        idling."""
        attributed_uj, idle_uj = sum(self.attributed_uj.values()), sum(self.idle_uj.values())
        return attributed_uj + self.other_uj.get(LATE_RECORD, 0) + self.overhead_uj + idle_uj

    def _histogram(self, account: Account) -> EnergyHistogram:
        key = (account.model, account.variant, account.quality)
        histogram = self.request_energy.get(key)
        if histogram is None:
            histogram = self.request_energy[key] = EnergyHistogram()
        return histogram

    def _emit(self, key: tuple[str, str, str], grams: float) -> None:
        self.grams[key] = self.grams.get(key, 0.0) + grams

    def to_json(self) -> dict[str, Any]:
        """The whole ledger as plain lists and maps."""
        return {
            "version": VERSION,
            "metered_uj": [[*_domain_row(domain), uj] for domain, uj in self.metered_uj.items()],
            "idle_uj": [[*_domain_row(domain), uj] for domain, uj in self.idle_uj.items()],
            "overhead_uj": self.overhead_uj,
            "other_uj": self.other_uj,
            "attributed_uj": [[*acc, source, uj] for (acc, source), uj in self.attributed_uj.items()],
            "loaded_uj": [[*acc, source, uj] for (acc, source), uj in self.loaded_uj.items()],
            "unloaded_uj": self.unloaded_uj,
            "avoided_uj": self.avoided_uj,
            "carbon": self.carbon.to_json(),
            "grams": [[*key, grams] for key, grams in self.grams.items()],
            "request_energy": [[*key, h.counts, h.sum_uj] for key, h in self.request_energy.items()],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Ledger:
        """Turn `to_json` back. Raises LedgerError if it is not one."""
        if not isinstance(tree, Mapping) or tree.get("version") != VERSION:
            raise LedgerError(f"ledger.version: not {VERSION}; move the file away to begin anew")
        try:
            return cls(
                metered_uj={_domain(row): _amount(row[-1]) for row in tree["metered_uj"]},
                idle_uj={_domain(row): _amount(row[-1]) for row in tree["idle_uj"]},
                overhead_uj=_amount(tree["overhead_uj"]),
                other_uj={str(reason): _amount(uj) for reason, uj in tree["other_uj"].items()},
                attributed_uj=_by_account(tree["attributed_uj"]),
                # Absent in files of releases that did not keep them.
                loaded_uj=_by_account(tree.get("loaded_uj", [])),
                unloaded_uj={str(source): _amount(uj) for source, uj in tree.get("unloaded_uj", {}).items()},
                carbon=CarbonBook.from_json(tree.get("carbon", {})),
                avoided_uj={str(reason): _amount(uj) for reason, uj in tree["avoided_uj"].items()},
                grams={(row[0], row[1], row[2]): float(row[3]) for row in tree["grams"]},
                request_energy={
                    _histogram_key(row): EnergyHistogram(_counts(row[-2]), _amount(row[-1]))
                    for row in tree["request_energy"]
                },
            )
        except LedgerError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise LedgerError(f"ledger: {error!r}; move the file away to begin anew") from None


_K = TypeVar("_K", bound=Hashable)


def _add(totals: dict[_K, int], key: _K, amount_uj: int) -> None:
    totals[key] = totals.get(key, 0) + amount_uj


def _domain_row(domain: Domain) -> tuple[str, str, str, bool]:
    return domain.name, domain.device, domain.source, domain.overlaps


def _domain(row: Any) -> Domain:
    name, device, source, overlaps, _ = row
    return Domain(str(name), str(device), str(source), overlaps=bool(overlaps))


def _by_account(rows: Any) -> dict[tuple[Account, str], int]:
    return {(Account(*row[:5]), str(row[5])): _amount(row[6]) for row in rows}


def _histogram_key(row: Any) -> tuple[str, str, str]:
    """Model, variant and class; files of releases that did not tell classes apart have none."""
    model, variant, *classes = row[:-2]
    (quality,) = classes or ("",)
    return str(model), str(variant), str(quality)


def _amount(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LedgerError(f"ledger: {value!r} is no amount of microjoules; move the file away to begin anew")
    return value


def _counts(row: Any) -> list[int]:
    counts = [_amount(value) for value in row]
    if len(counts) != len(ENERGY_BOUNDS_JOULES) + 1:
        raise LedgerError("ledger.request_energy: other buckets than ours; move the file away to begin anew")
    return counts
