"""Closes settlement windows: ticks of the meters on one side, replicas' records on the other. Pure state, no I/O.

A window opens when the one before closes, and holds as many ticks as are added before it is to be settled. It closes as
soon as every live replica answered the poll of its last tick, or when that was not so after MAX_TRIES ticks; a replica
without a record by then is late and its share of the window's energy goes to `other`. When the record comes after all,
its requests count, but only CPU time that the replica spent in the open window can still earn joules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from energy.attribution import Attribution, DomainEnergy, Window, attribute, largest_remainder
from energy.domains import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Domain
from energy.idle import IdleModel
from energy.ledger import Account, Ledger
from energy.meter import Tick
from server.node.totals import Increase, ServingTotals, increase
from server.node.wire import Snapshot, cpu_bucket_middle_ns

MAX_TRIES = 3
MAX_REMEMBERED = 16
MAX_CARRIED_CPU_NS = 5 * NANOSECONDS_PER_SECOND
_RATE_KEEP = 0.9
"""What a tick leaves of the ticks before, where something is learned from them."""
_UJ_PER_NS_IN_WATTS = NANOSECONDS_PER_SECOND / MICROJOULES_PER_JOULE


@dataclass
class ReplicaAccount:
    """What the settlement knows of one replica process."""

    instance: str
    settled: Snapshot | None = None
    """The last snapshot whose figures are in the totals."""
    newest: Snapshot | None = None
    """The last snapshot that came."""
    covered: bool = False
    """True if `settled` is of the moment the open window began."""
    gone: bool = False
    """The process ended, or fell silent; its last snapshot is settled with the open window."""
    visible: bool = False
    """Its process was seen in `/proc`, so that the serving tree's CPU time holds its own."""
    may_return: bool = False
    """It only fell silent: what was settled is remembered, so that none of it is counted again."""

    def receive(self, snapshot: Snapshot) -> None:
        """Take a snapshot; one that is older than what is known is ignored."""
        known = self.newest or self.settled
        if known is None or snapshot.revision >= known.revision:
            self.newest = snapshot


@dataclass(frozen=True, slots=True)
class MachineTick:
    """One tick as differences to the tick before."""

    meters: Tick
    busy_cpu_ns: int
    offered_cpu_ns: int
    """CPU time on offer: elapsed time times processors."""
    serving_cpu_ns: int
    replica_cpu_ns: Mapping[str, int]
    """CPU time of each replica process by instance; without an entry where it cannot be seen."""
    device_busy: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How long a GPU was kept busy, by device and replica instance, in the driver's unit; other processes are "" ."""


@dataclass
class _OpenWindow:
    ticks: int = 0
    tries: int = 0
    """Ticks after which it was to be closed."""
    tried_ticks: int = 0
    energy_uj: dict[Domain, int] = field(default_factory=dict)
    idle_uj: dict[Domain, int] = field(default_factory=dict)
    duration_ns: dict[Domain, int] = field(default_factory=dict)
    busy_cpu_ns: int = 0
    serving_cpu_ns: int = 0
    replica_cpu_ns: dict[str, int] = field(default_factory=dict)
    device_busy: dict[str, dict[str, int]] = field(default_factory=dict)


class Settlement:
    """The open window, the replicas, and the books they are settled into."""

    def __init__(
        self,
        ledger: Ledger,
        totals: ServingTotals,
        idle: IdleModel,
        fixed_joules_per_cpu_second: float | None = None,
        pue: float = 1.0,
    ) -> None:
        """`fixed_joules_per_cpu_second` is the rate where the source knows it by construction; `pue` what fully loaded
        figures are multiplied by.
        """
        self.ledger = ledger
        self.totals = totals
        self.replicas: dict[str, ReplicaAccount] = {}
        self.remembered: dict[str, Snapshot] = {}
        """Last settled snapshots of replicas that are not here now and may say hello again."""
        self._idle = idle
        self._fixed_rate = fixed_joules_per_cpu_second
        self._pue = pue
        self._window = _OpenWindow()
        self._metered_uj: Mapping[Domain, int] = {}
        self._carried_cpu_ns: dict[Account, int] = {}
        self._rate_uj = 0.0
        self._rate_cpu_ns = 0.0
        self._recent_dynamic_uj = 0.0
        self._recent_loaded_uj = 0.0

    @property
    def joules_per_cpu_second(self) -> float | None:
        """Dynamic joules of a second of CPU time lately; None before any was seen."""
        if self._fixed_rate is not None:
            return self._fixed_rate
        if self._rate_cpu_ns <= 0:
            return None
        return self._rate_uj / self._rate_cpu_ns * _UJ_PER_NS_IN_WATTS

    @property
    def loaded_ratio(self) -> float | None:
        """Fully loaded joules for each dynamic one lately; None before any were attributed."""
        if self._recent_dynamic_uj <= 0:
            return None
        return self._recent_loaded_uj / self._recent_dynamic_uj

    @property
    def pending_uj(self) -> int:
        """Metered energy of the open window, overlapping domains left out."""
        return sum(self.pending_by_domain().values())

    def pending_by_domain(self) -> dict[str, int]:
        """`pending_uj` by `Domain.label`: to be remembered, since these joules count as metered already."""
        return {domain.label: uj for domain, uj in self._window.energy_uj.items() if not domain.overlaps}

    def replica(self, instance: str) -> ReplicaAccount:
        """The account of a replica, opened if it is new."""
        account = self.replicas.get(instance)
        if account is None:
            account = ReplicaAccount(instance, settled=self.remembered.pop(instance, None))
            self.replicas[instance] = account
        return account

    def settled_snapshots(self) -> dict[str, Snapshot]:
        """What has to be remembered over a restart of the node."""
        living = {r.instance: r.settled for r in self.replicas.values() if r.settled is not None}
        return {**self.remembered, **living}

    @property
    def open_ticks(self) -> int:
        """Ticks in the open window."""
        return self._window.ticks

    def settle(self, answered: set[str], grams_per_kwh: float | None) -> bool:
        """Close the open window if it can be; True if it was closed.

        `answered` holds the replicas whose record of the latest tick is in.
        """
        window = self._window
        if window.ticks > window.tried_ticks:
            window.tries, window.tried_ticks = window.tries + 1, window.ticks
        waiting = [r for r in self.replicas.values() if not r.gone and r.instance not in answered]
        if waiting and window.tries < MAX_TRIES:
            return False
        self.close(grams_per_kwh)
        return True

    def close(self, grams_per_kwh: float | None) -> None:
        """Settle the open window with the records that are in."""
        window, self._window = self._window, _OpenWindow()
        claims: dict[Account, int] = {}
        unseen_ns = late_ns = 0
        changes: list[Increase] = []
        by_replica: dict[str, dict[Account, int]] = {}
        for replica in list(self.replicas.values()):
            seen_ns = window.replica_cpu_ns.get(replica.instance)
            change = self._take_record(replica)
            if change is None:
                if not replica.gone:
                    self.totals.late_records += 1
                    late_ns += seen_ns or 0
                    replica.covered = False
            else:
                granted = self._claims_of(change, seen_ns, replica.covered)
                by_replica[replica.instance] = granted
                for account, cpu_ns in granted.items():
                    claims[account] = claims.get(account, 0) + cpu_ns
                if seen_ns is None and not replica.visible:
                    unseen_ns += sum(granted.values())
                replica.covered = True
                changes.append(change)
            if replica.gone:
                self._part_with(replica)
        for account, cpu_ns in self._carried_cpu_ns.items():
            claims[account] = claims.get(account, 0) + cpu_ns
        attribution = attribute(
            Window(
                domains=[DomainEnergy(domain, uj, window.idle_uj[domain]) for domain, uj in window.energy_uj.items()],
                busy_cpu_ns=window.busy_cpu_ns,
                serving_cpu_ns=window.serving_cpu_ns + unseen_ns,
                claims_cpu_ns=claims,
                late_cpu_ns=late_ns,
                device_claims={name: _owed(busy, by_replica) for name, busy in window.device_busy.items()},
                device_busy={name: sum(busy.values()) for name, busy in window.device_busy.items()},
            )
        )
        keep = _RATE_KEEP**window.ticks
        self._book(attribution, grams_per_kwh, max(window.duration_ns.values(), default=0), keep)
        self._carry(attribution)
        self._learn_rate(attribution, max(window.busy_cpu_ns, window.serving_cpu_ns + unseen_ns), keep)
        for change in changes:
            self._enter(change, grams_per_kwh)

    def _book(
        self, attribution: Attribution[Account], grams_per_kwh: float | None, elapsed_ns: int, keep: float
    ) -> None:
        """Enter a settled window into the ledger, and learn what loading adds to a dynamic joule."""
        loaded_uj = self.ledger.settle(attribution, grams_per_kwh, pue=self._pue, elapsed_ns=elapsed_ns)
        dynamic_uj = sum(sum(split.attributed_uj.values()) for split in attribution.splits)
        if dynamic_uj:
            self._recent_dynamic_uj = keep * self._recent_dynamic_uj + dynamic_uj
            self._recent_loaded_uj = keep * self._recent_loaded_uj + loaded_uj

    def add(self, tick: MachineTick) -> None:
        """Add a tick to the open window."""
        window = self._window
        window.ticks += 1
        window.busy_cpu_ns += tick.busy_cpu_ns
        window.serving_cpu_ns += tick.serving_cpu_ns
        for instance, cpu_ns in tick.replica_cpu_ns.items():
            window.replica_cpu_ns[instance] = window.replica_cpu_ns.get(instance, 0) + cpu_ns
        for device, busy in tick.device_busy.items():
            kept = window.device_busy.setdefault(device, {})
            for instance, amount in busy.items():
                kept[instance] = kept.get(instance, 0) + amount
        busy_share = tick.busy_cpu_ns / tick.offered_cpu_ns if tick.offered_cpu_ns > 0 else 0.0
        for delta in tick.meters.deltas:
            domain = delta.domain
            idle_uj = self._idle.idle_uj(delta, busy_share)
            window.energy_uj[domain] = window.energy_uj.get(domain, 0) + delta.energy_uj
            window.idle_uj[domain] = window.idle_uj.get(domain, 0) + idle_uj
            window.duration_ns[domain] = window.duration_ns.get(domain, 0) + delta.duration_ns
        # From the counters and not from the deltas above: what is lost or doubled between the two must show.
        total_uj, before_uj = tick.meters.total_uj, self._metered_uj
        self.ledger.meter({domain: uj - before_uj.get(domain, 0) for domain, uj in total_uj.items()})
        self._metered_uj = total_uj

    def _part_with(self, replica: ReplicaAccount) -> None:
        del self.replicas[replica.instance]
        if replica.may_return and replica.settled is not None:
            self.remembered[replica.instance] = replica.settled
            while len(self.remembered) > MAX_REMEMBERED:
                del self.remembered[next(iter(self.remembered))]

    @staticmethod
    def _take_record(replica: ReplicaAccount) -> Increase | None:
        newest = replica.newest
        if newest is None:
            return None
        change = increase(newest, replica.settled)
        replica.settled, replica.newest = newest, None
        return change

    def _claims_of(self, change: Increase, seen_ns: int | None, covered: bool) -> dict[Account, int]:
        """Claims of a record for the open window: all of it, or what the replica can have spent in it."""
        accounts = [Account(change.model, *key) for key in change.requests]
        claims = [totals.cpu_ns for totals in change.requests.values()]
        if not covered:
            limit_ns = min(seen_ns or 0, sum(claims))
            self.totals.unmeasured_cpu_ns += sum(claims) - limit_ns
            claims = largest_remainder(limit_ns, claims)
        return dict(zip(accounts, claims, strict=True))

    def _carry(self, attribution: Attribution[Account]) -> None:
        """Hand claims that had no CPU time behind them to the next windows, up to a bound.

        A batch that spans two windows is claimed in the second one, so claims run ahead of CPU time there and
        lag behind elsewhere: overhead that was too high before makes up for it later.
        """
        excess = attribution.excess_cpu_ns
        total = sum(excess.values())
        kept = min(total, MAX_CARRIED_CPU_NS)
        self.totals.dropped_cpu_ns += total - kept
        shares = largest_remainder(kept, list(excess.values()))
        self._carried_cpu_ns = {account: ns for account, ns in zip(excess, shares, strict=True) if ns}

    def _learn_rate(self, attribution: Attribution[Account], cpu_ns: int, keep: float) -> None:
        dynamic_uj = sum(s.energy_uj - s.idle_uj for s in attribution.splits if s.domain.on_cpu)
        self._rate_uj = keep * self._rate_uj + dynamic_uj
        self._rate_cpu_ns = keep * self._rate_cpu_ns + cpu_ns

    def _enter(self, change: Increase, grams_per_kwh: float | None) -> None:
        """Count what a record says; energies by bucket use the rate in force."""
        self.totals.add(change)
        rate = self.joules_per_cpu_second
        if rate is None:
            return
        for key, totals in change.requests.items():
            account = Account(change.model, *key)
            for index, count in totals.buckets.items():
                seconds = cpu_bucket_middle_ns(index) / NANOSECONDS_PER_SECOND
                self.ledger.observe(account, rate * seconds, count)
        for reason, cpu_ns in change.avoided_cpu_ns.items():
            amount_uj = int(cpu_ns / NANOSECONDS_PER_SECOND * rate * MICROJOULES_PER_JOULE)
            self.ledger.avoid(reason, amount_uj, grams_per_kwh)


def _owed(busy: Mapping[str, int], by_replica: Mapping[str, Mapping[Account, int]]) -> dict[Account, int]:
    """What requests owe of a device's busy time: that of their replica, by the CPU time that each claims of it."""
    owed: dict[Account, int] = {}
    for instance, amount in busy.items():
        claims = by_replica.get(instance, {})
        for account, share in zip(claims, largest_remainder(amount, list(claims.values())), strict=True):
            owed[account] = owed.get(account, 0) + share
    return owed
