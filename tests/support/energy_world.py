"""A machine with counters, replicas that serve and a node process that books, under whatever may happen to them.

Real are the meter, the attribution, the settlement, the books, their persistence, the replicas' records and the
datagrams' encoding; made up are the counters' values, the requests and the misfortunes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from energy.coefficients import CpuCoefficients
from energy.domains import Domain
from energy.idle import IdleModel
from energy.ledger import Conservation
from energy.meter import Meter
from energy.sources.fake import FakeSource
from server.node.settle import MachineTick, Settlement
from server.node.state import NodeState
from server.node.wire import Snapshot, decode_snapshot
from server.usage import Usage

SECOND_NS = 10**9
CPUS = 4
WINDOW_TICKS = 300
MOST_TICKS = 5
"""So many are settled at once, or fewer."""
RANGE_UJ = 4_000_000_000_000
DOMAINS = (
    Domain("package", "package-0", "fake", wraps_at_uj=RANGE_UJ, max_watts=400.0, never_rests=True),
    Domain("core", "package-0", "fake", wraps_at_uj=RANGE_UJ, max_watts=400.0, overlaps=True),
    Domain("dram", "package-0", "fake", wraps_at_uj=RANGE_UJ // 2, max_watts=100.0, never_rests=True),
    Domain("gpu", "gpu-0", "fake", max_watts=700.0, on_cpu=False),
)
IDLE_WATTS = {"package": 20.0, "core": 5.0, "dram": 4.0, "gpu": 30.0}
WATTS_A_CPU = {"package": 12.0, "core": 10.0, "dram": 1.5, "gpu": 8.0}
FAMILY = CpuCoefficients("test", 5.0, 15.0, "none")
POINTS = (("full", "full"), ("lite", "lite"), ("lite", "cascade"))
COMPUTED = ("ok", "error", "cancelled")


@dataclass
class Replica:
    """A replica process, and what of it never reached the node."""

    usage: Usage = field(default_factory=lambda: Usage("intents"))
    spent_ns: int = 0
    """CPU time of the current tick."""
    late: deque[bytes] = field(default_factory=deque)
    """Records that are still under way."""
    stray: bytes | None = None
    """A record's copy that will come when newer ones are settled."""


class World:
    """`tick` is a second; `checks` says after each whether the law holds."""

    def __init__(self, seed: int, *, faults: bool = True) -> None:
        """`faults` lets counters and the node process break, too."""
        self._random, self._patience = random.Random(seed), random.Random(seed)
        self._faults = faults
        self._now_ns = SECOND_NS
        self.source = FakeSource(DOMAINS, clock_ns=lambda: self._now_ns)
        for domain in DOMAINS:
            # Near their ends, so that the first wrap comes soon.
            self.source.set_counter(domain, (domain.wraps_at_uj or RANGE_UJ) - 2_000_000_000)
        self.replicas: list[Replica] = []
        self.sent = self.unreported = 0
        self.drawn_uj = 0
        """By the domains that count, while a meter was there."""
        self.misfortunes: dict[str, int] = {}
        self._marks: deque[Conservation] = deque(maxlen=WINDOW_TICKS + 1)
        self.shown: dict[str, int] = {}
        self._start_node(NodeState())

    def _start_node(self, state: NodeState) -> None:
        self.state = state
        self.meter = Meter([self.source])
        self.meter.missing_ticks.update(state.missing_ticks)
        self.meter.unmetered_uj.update(state.unmetered_uj)
        self.books = Settlement(state.ledger, state.totals, IdleModel.fresh(FAMILY), pue=1.3)
        self.books.remembered = dict(state.settled)
        for replica in self.replicas:
            self.books.replica(replica.usage.instance)
        self.meter.tick()
        self._marks.clear()

    def _persisted(self) -> bytes:
        kept = NodeState(
            ledger=self.state.ledger,
            totals=self.state.totals,
            settled=self.books.settled_snapshots(),
            pending_uj=self.books.pending_by_domain(),
            missing_ticks=self.meter.missing_ticks,
            unmetered_uj=self.meter.unmetered_uj,
        )
        return kept.encode()

    def tick(self, requests: int) -> None:
        """A second with so many requests."""
        self._mishaps()
        serving_ns = self._serve(requests)
        other_ns = self._random.randrange(SECOND_NS // 2)
        busy_ns = min(serving_ns + other_ns, CPUS * SECOND_NS)
        self._now_ns += SECOND_NS
        self._draw(busy_ns / SECOND_NS)
        answered = self._report()
        spent = {replica.usage.instance: replica.spent_ns for replica in self.replicas}
        tick = MachineTick(self.meter.tick(), busy_ns, CPUS * SECOND_NS, serving_ns, spent)
        self.books.add(tick)
        grams_per_kwh = self._random.choice((None, 120.0, 480.0))
        if self.books.open_ticks >= self._patience.randint(1, MOST_TICKS):
            self.books.settle(answered, grams_per_kwh)
        for replica in self.replicas:
            replica.spent_ns = 0
        self._marks.append(self.state.ledger.conservation(self.books.pending_uj))
        if self._random.random() < 0.1:
            self._scrape()

    def settle(self) -> None:
        """Let every record arrive, and the window close."""
        for replica in self.replicas:
            self.books.replica(replica.usage.instance).receive(decode_snapshot(replica.usage.snapshot()))
        self.books.close(None)
        self._marks.append(self.state.ledger.conservation(self.books.pending_uj))
        self._scrape()

    def _serve(self, requests: int) -> int:
        """Batches on the replicas; the CPU time of the serving tree."""
        rng = self._random
        if not self.replicas:
            self.replicas.append(Replica())
            self.books.replica(self.replicas[-1].usage.instance)
        left, overhead_ns = requests, rng.randrange(50_000_000)
        while left > 0:
            replica = rng.choice(self.replicas)
            rows = min(left, rng.randint(1, 16))
            left -= rows
            self._batch(replica, rows)
        return overhead_ns + sum(replica.spent_ns for replica in self.replicas)

    def _batch(self, replica: Replica, rows: int) -> None:
        rng, usage = self._random, replica.usage
        variant, point = rng.choice(POINTS)
        lengths = [rng.randint(2, 128) for _ in range(rows)]
        padded = rows * max(lengths)
        for length in lengths:
            chance = rng.random()
            quality = rng.choice(("strict", "standard", "eco"))
            if chance < 0.3:
                usage.request(variant, point, quality, "cached", 30_000)
                usage.avoided("cache", 20_000 * length)
                cost_ns = 30_000
            elif chance < 0.35:
                usage.request("", "", quality, "shed", 5_000)
                cost_ns = 5_000
            else:
                cost_ns = 100_000 * length + 50_000 * (padded // rows)
                if point == "cascade" and chance > 0.8:
                    usage.count("escalations")
                    cost_ns *= 3
                usage.request(variant, point, quality, rng.choice(COMPUTED), cost_ns)
            replica.spent_ns += cost_ns
            self.sent += 1
        usage.batch(variant, rows, sum(lengths), padded, infer_ns=1_000_000, cpu_ns=1_000_000)

    def _draw(self, busy_s: float) -> None:
        for domain in DOMAINS:
            watts = IDLE_WATTS[domain.name] + WATTS_A_CPU[domain.name] * busy_s
            joules = watts * self._random.uniform(0.95, 1.05)
            before = self.source.counter(domain)
            self.source.add(domain, joules)
            if not domain.overlaps:
                self.drawn_uj += (self.source.counter(domain) - before) % (domain.wraps_at_uj or 1 << 62)

    def _report(self) -> set[str]:
        """Records on their way: most arrive, some are lost, late, come twice or in the wrong order."""
        rng, answered = self._random, set()
        for replica in self.replicas:
            replica.late.append(replica.usage.snapshot())
            chance = rng.random()
            if chance < 0.04:
                replica.late.pop()
                self._count("lost record")
                continue
            if chance < 0.12:
                self._count("late record")
                continue
            arriving = [*replica.late, *([replica.late[-1]] if chance < 0.16 else [])]
            if len(arriving) > 1 and chance > 0.5:
                self._count("records in disorder")
                rng.shuffle(arriving)
            replica.late.clear()
            if replica.stray is not None and chance > 0.8:
                self._count("record long overdue")
                arriving.append(replica.stray)
                replica.stray = None
            elif chance < 0.3:
                replica.stray = arriving[-1]
            for data in arriving:
                self.books.replica(replica.usage.instance).receive(decode_snapshot(data))
            answered.add(replica.usage.instance)
        return answered

    def _mishaps(self) -> None:
        rng = self._random
        if len(self.replicas) < 4 and rng.random() < 0.02:
            self.replicas.append(Replica())
            self.books.replica(self.replicas[-1].usage.instance)
        if len(self.replicas) > 1 and rng.random() < 0.01:
            self._end(rng.choice(self.replicas), killed=rng.random() < 0.5)
        if not self._faults:
            return
        domain = rng.choice(DOMAINS)
        chance = rng.random()
        if chance < 0.004:
            self._count("unreadable counter")
            self.source.hide(domain)
        elif chance < 0.02:
            for one in DOMAINS:
                self.source.show(one)
        elif chance < 0.022:
            self._count("counter reset")
            self.source.set_counter(domain, rng.randrange(10_000_000))
        elif chance < 0.024:
            self._count("counter jump")
            self.source.set_counter(
                domain, (self.source.counter(domain) + 900_000_000) % (domain.wraps_at_uj or 1 << 62)
            )
        elif chance < 0.026:
            self._count("clock jump")
            self._now_ns += rng.choice((86_400, 3600, 5)) * SECOND_NS
        elif chance < 0.029:
            self._count("node restart")
            self.books.close(None)
            self._start_node(_loaded(self._persisted()))
        elif chance < 0.032:
            self._count("node killed")
            for account in self.books.replicas.values():
                if account.gone:  # its last record dies with the node
                    self.unreported += _requests(account.newest or account.settled) - _requests(account.settled)
            self._start_node(_loaded(self._persisted()))

    def _end(self, replica: Replica, *, killed: bool) -> None:
        self._count("replica killed" if killed else "replica left")
        account = self.books.replica(replica.usage.instance)
        last = decode_snapshot(replica.usage.snapshot())
        if not killed:
            account.receive(last)
        account.gone = True
        self.unreported += _requests(last) - _requests(account.newest or account.settled)
        self.replicas.remove(replica)

    def _count(self, name: str) -> None:
        self.misfortunes[name] = self.misfortunes.get(name, 0) + 1

    def _scrape(self) -> None:
        """No counter that was shown goes back."""
        ledger, totals = self.state.ledger, self.state.totals
        shown = {
            **{f"attributed {key}": uj for key, uj in ledger.attributed_uj.items()},
            **{f"loaded {key}": uj for key, uj in ledger.loaded_uj.items()},
            **{f"idle {key.label}": uj for key, uj in ledger.idle_uj.items()},
            **{f"other {key}": uj for key, uj in ledger.other_uj.items()},
            **{f"metered {key.label}": uj for key, uj in ledger.metered_uj.items()},
            **{f"requests {key}": count for key, count in totals.requests.items()},
            "overhead": ledger.overhead_uj,
            **{f"missing {key.label} {why}": ticks for (key, why), ticks in self.meter.missing_ticks.items()},
            **{f"unmetered {key.label} {why}": uj for (key, why), uj in self.meter.unmetered_uj.items()},
        }
        went_back = {key: (was, shown.get(key)) for key, was in self.shown.items() if shown.get(key, -1) < was}
        assert not went_back, f"counters went back: {went_back}"
        self.shown = shown

    def window_errors(self) -> Iterator[float]:
        """Conservation errors: since ever, and of the last five minutes."""
        yield self._marks[-1].error_ratio
        yield self._marks[-1].since(self._marks[0]).error_ratio

    def check_law(self) -> None:
        """Every joule is somewhere, once: exactly, which is stricter than the 0.1 % that are promised."""
        now = self._marks[-1]
        parts = now.attributed_uj + now.idle_uj + now.overhead_uj + now.other_uj + now.pending_uj
        assert parts == now.measured_uj, f"{parts} uJ in parts, {now.measured_uj} uJ measured"
        assert max(self.window_errors()) == 0.0
        assert min(now.attributed_uj, now.idle_uj, now.overhead_uj, now.other_uj, now.pending_uj) >= 0
        loaded = sum(self.state.ledger.loaded_uj.values())
        waiting = sum(self.state.ledger.unloaded_uj.values())
        owed = 1.3 * (now.attributed_uj + now.idle_uj + now.overhead_uj - waiting)
        assert abs(loaded - owed) <= 1e-6 * owed + 1e4, f"{loaded} uJ loaded, {owed} uJ owed"

    def counted(self) -> int:
        """Requests in the totals."""
        return sum(self.state.totals.requests.values())


def _requests(snapshot: Snapshot | None) -> int:
    return 0 if snapshot is None else sum(totals.count for totals in snapshot.requests.values())


def _loaded(data: bytes) -> NodeState:
    """As `server.node.state.load` does it."""
    state = NodeState.decode(data)
    state.ledger.lose(sum(state.pending_uj.values()))
    state.pending_uj = {}
    return state
