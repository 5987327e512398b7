"""Replicas that report, are late, die, come back; a node that restarts: no counter goes back or counts twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy.attribution import LATE_RECORD
from energy.coefficients import CpuCoefficients
from energy.domains import Domain
from energy.idle import IdleModel
from energy.ledger import Account, Ledger
from energy.meter import Delta, Meter, Tick
from energy.sources.fake import FakeSource
from server.node.settle import MAX_TRIES, MachineTick, Settlement
from server.node.totals import ServingTotals
from server.node.wire import RequestKey, Snapshot, decode_snapshot
from server.usage import Usage

CPU = Domain("cpu", "node", "estimated")
FAMILY = CpuCoefficients("test", 1.0, 3.0, "none")
SECOND = 10**9
RATE = 2.0
KEY = RequestKey("full", "full", "standard", "ok")
ACCOUNT = Account("intents", *KEY)


class Metered(Settlement):
    """A settlement with a meter whose counter goes on by what each tick of `machine` says."""

    drawn_uj = 0

    def add(self, tick: MachineTick) -> None:
        self.drawn_uj += sum(delta.energy_uj for delta in tick.meters.deltas)
        super().add(replace(tick, meters=replace(tick.meters, total_uj={CPU: self.drawn_uj})))

    def tick(self, tick: MachineTick, answered: set[str], grams_per_kwh: float | None) -> bool:
        """A tick that is settled by itself if it can be."""
        self.add(tick)
        return self.settle(answered, grams_per_kwh)


def settlement(ledger: Ledger | None = None, totals: ServingTotals | None = None, rate: float | None = RATE) -> Metered:
    return Metered(ledger or Ledger(), totals or ServingTotals(), IdleModel.fresh(FAMILY), rate)


def machine(busy_s: float, serving_s: float, replicas: dict[str, float] | None = None) -> MachineTick:
    """One second of a machine with two processors, 2 W idle and 2 J a CPU-second."""
    energy_uj = round((2 + RATE * busy_s) * 1e6)
    meters = Tick((Delta(CPU, energy_uj, SECOND, 2_000_000),), (), {})
    spent = {instance: round(seconds * SECOND) for instance, seconds in (replicas or {}).items()}
    return MachineTick(meters, round(busy_s * SECOND), 2 * SECOND, round(serving_s * SECOND), spent)


def snapshot(usage: Usage) -> Snapshot:
    return decode_snapshot(usage.snapshot())


def work(usage: Usage, cpu_seconds: float, count: int = 1) -> None:
    for _ in range(count):
        usage.request(*KEY, round(cpu_seconds * SECOND / count))


def joined(books: Metered, usage: Usage) -> None:
    """A replica that said hello and was polled once, so that its past is settled."""
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(0, 0), set(books.replicas), None)


def attributed_joules(books: Settlement) -> float:
    return sum(uj for (account, _), uj in books.ledger.attributed_uj.items() if account == ACCOUNT) / 1e6


def test_a_reported_second_is_settled_at_once() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    work(usage, 0.5, count=5)
    books.replica(usage.instance).receive(snapshot(usage))
    assert books.tick(machine(1.0, 0.8, {usage.instance: 0.7}), {usage.instance}, None)
    assert attributed_joules(books) == 1.0
    assert books.ledger.overhead_uj == 600_000
    assert books.ledger.conservation().error_ratio == 0
    assert books.totals.requests[ACCOUNT] == 5
    assert books.ledger.request_energy["intents", "full", "standard"].counts[10] == 5


def test_a_lost_datagram_only_makes_the_window_longer() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    work(usage, 0.5)
    assert not books.tick(machine(0.5, 0.5, {usage.instance: 0.5}), set(), None)
    assert books.pending_uj == 3_000_000
    work(usage, 0.25)
    books.replica(usage.instance).receive(snapshot(usage))
    assert books.tick(machine(0.25, 0.25, {usage.instance: 0.25}), {usage.instance}, None)
    assert attributed_joules(books) == 1.5
    assert books.totals.late_records == 0
    assert books.pending_uj == 0


def test_ticks_that_are_settled_together_owe_what_they_would_owe_one_by_one() -> None:
    """A formula that is linear in CPU time: how long a window is makes no difference."""
    together, apart, usage = settlement(), settlement(), Usage("intents")
    for books in (together, apart):
        joined(books, usage)
    for _ in range(5):
        work(usage, 0.25)
        for books in (together, apart):
            books.replica(usage.instance).receive(snapshot(usage))
            books.add(machine(0.75, 0.5, {usage.instance: 0.25}))
        assert apart.settle({usage.instance}, 100.0)
        assert together.open_ticks > 0
    assert together.pending_uj == 5 * 3_500_000
    assert together.settle({usage.instance}, 100.0)
    assert attributed_joules(together) == attributed_joules(apart) == 2.5
    assert together.ledger.conservation() == apart.ledger.conservation()
    assert together.totals == apart.totals


def test_a_window_that_is_tried_again_at_the_same_tick_makes_nobody_late() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    books.add(machine(1, 1, {usage.instance: 1}))
    assert not any(books.settle(set(), None) for _ in range(2 * MAX_TRIES))
    assert books.totals.late_records == 0


def test_a_late_replicas_joules_go_to_other_and_are_not_claimed_again_when_it_returns() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    work(usage, 3.0, count=30)
    for number in range(MAX_TRIES):
        assert books.tick(machine(1, 1, {usage.instance: 1}), set(), None) == (number == MAX_TRIES - 1)
    assert books.totals.late_records == 1
    assert books.ledger.other_uj[LATE_RECORD] == 6_000_000
    assert attributed_joules(books) == 0
    work(usage, 0.5, count=5)
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(0.5, 0.5, {usage.instance: 0.5}), {usage.instance}, None)
    assert attributed_joules(books) == 1.0
    assert books.totals.requests[ACCOUNT] == 35
    assert books.totals.unmeasured_cpu_ns == 3 * SECOND
    assert books.ledger.conservation().error_ratio == 0


def test_one_late_replica_does_not_take_the_others_records_away() -> None:
    books, quick, late = settlement(), Usage("intents"), Usage("intents")
    joined(books, quick)
    joined(books, late)
    for _ in range(MAX_TRIES):
        work(quick, 0.5)
        books.replica(quick.instance).receive(snapshot(quick))
        books.tick(machine(1, 1, {quick.instance: 0.5, late.instance: 0.5}), {quick.instance}, None)
    assert attributed_joules(books) == 3.0
    assert books.ledger.other_uj[LATE_RECORD] == 3_000_000


def test_a_killed_replica_keeps_what_it_had_reported() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    work(usage, 0.5)
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(0.5, 0.5, {usage.instance: 0.5}), {usage.instance}, None)
    work(usage, 0.5)
    books.replica(usage.instance).gone = True
    assert books.tick(machine(0.5, 0.5), set(), None)
    assert attributed_joules(books) == 1.0
    assert books.replicas == {}
    assert books.remembered == {}
    heir = Usage("intents")
    joined(books, heir)
    work(heir, 0.25)
    books.replica(heir.instance).receive(snapshot(heir))
    books.tick(machine(0.25, 0.25, {heir.instance: 0.25}), {heir.instance}, None)
    assert attributed_joules(books) == 1.5
    assert books.totals.requests[ACCOUNT] == 2


def test_a_replica_that_fell_silent_and_returns_is_not_counted_twice() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    work(usage, 0.5, count=4)
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(0.5, 0.5), {usage.instance}, None)
    silent = books.replica(usage.instance)
    silent.gone = silent.may_return = True
    books.tick(machine(0, 0), set(), None)
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(0, 0), {usage.instance}, None)
    assert books.totals.requests[ACCOUNT] == 4


def test_an_older_snapshot_that_arrives_late_is_ignored() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    work(usage, 0.1)
    older = snapshot(usage)
    work(usage, 0.1)
    books.replica(usage.instance).receive(snapshot(usage))
    books.replica(usage.instance).receive(older)
    books.tick(machine(0.2, 0.2, {usage.instance: 0.2}), {usage.instance}, None)
    assert books.totals.requests[ACCOUNT] == 2
    books.replica(usage.instance).receive(older)
    books.tick(machine(0.2, 0.2, {usage.instance: 0.2}), {usage.instance}, None)
    assert books.totals.requests[ACCOUNT] == 2


def test_a_restarted_node_counts_only_what_came_since_and_gives_no_joules_for_its_absence() -> None:
    before, usage = settlement(), Usage("intents")
    joined(before, usage)
    work(usage, 0.5)
    before.replica(usage.instance).receive(snapshot(usage))
    before.tick(machine(0.5, 0.5, {usage.instance: 0.5}), {usage.instance}, 250.0)
    ledger = Ledger.from_json(json.loads(json.dumps(before.ledger.to_json())))
    totals = ServingTotals.from_json(json.loads(json.dumps(before.totals.to_json())))
    assert (ledger, totals) == (before.ledger, before.totals)

    after = settlement(ledger, totals)
    after.remembered = before.settled_snapshots()
    work(usage, 39.0, count=3)
    after.replica(usage.instance).receive(snapshot(usage))
    after.tick(machine(0.1, 0.1, {usage.instance: 0.1}), {usage.instance}, None)
    assert after.totals.requests[ACCOUNT] == 4
    assert attributed_joules(after) == 1.2
    assert after.totals.unmeasured_cpu_ns == 38_900_000_000


def test_a_batch_that_spans_two_windows_is_paid_in_full() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(1, 1, {usage.instance: 1}), {usage.instance}, None)
    for _ in range(3):
        work(usage, 1.5)
        books.replica(usage.instance).receive(snapshot(usage))
        books.tick(machine(1.5, 1.4, {usage.instance: 1.4}), {usage.instance}, None)
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(1, 1, {usage.instance: 1}), {usage.instance}, None)
    assert round(attributed_joules(books), 5) == 9.0
    assert books.totals.dropped_cpu_ns == 0


def test_claims_without_end_are_dropped_and_counted() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    for _ in range(4):
        work(usage, 10)
        books.replica(usage.instance).receive(snapshot(usage))
        books.tick(machine(1, 1, {usage.instance: 1}), {usage.instance}, None)
    assert attributed_joules(books) == 8.0
    assert books.totals.dropped_cpu_ns > 30 * SECOND


def test_a_replica_in_another_pid_namespace_is_believed() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    work(usage, 0.5)
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(1.0, 0.1), {usage.instance}, None)
    assert attributed_joules(books) == 1.0
    assert books.ledger.overhead_uj == 200_000


def test_a_visible_replica_that_says_goodbye_is_not_counted_beside_the_tree_that_holds_it() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    work(usage, 0.5)
    account = books.replica(usage.instance)
    account.receive(snapshot(usage))
    account.visible = account.gone = True
    books.tick(machine(1.0, 0.6), set(), None)
    assert attributed_joules(books) == 1.0
    assert books.ledger.overhead_uj == 200_000
    assert books.ledger.other_uj == {"other_processes": 800_000}


@pytest.mark.parametrize(("times", "error"), [(0, 5 / 20), (1, 0), (2, 5 / 20)])
def test_a_difference_that_is_lost_or_booked_twice_between_meter_and_books_shows(times: int, error: float) -> None:
    source = FakeSource([CPU], clock_ns=iter(range(SECOND, 9 * SECOND, SECOND)).__next__)
    meter, books = Meter([source]), Settlement(Ledger(), ServingTotals(), IdleModel.fresh(FAMILY), RATE)
    meter.tick()
    for joules, repeat in ((10, 1), (5, times), (5, 1)):
        source.add(CPU, joules)
        tick = MachineTick(meter.tick(), SECOND, 2 * SECOND, 0, {})
        for _ in range(repeat):
            books.add(tick)
            books.settle(set(), None)
    law = books.ledger.conservation(books.pending_uj)
    assert (law.measured_uj, law.error_ratio) == (20_000_000, error)


def test_the_rate_is_learned_from_counters_where_no_formula_gives_it() -> None:
    books = settlement(rate=None)
    assert books.joules_per_cpu_second is None
    for _ in range(30):
        books.tick(machine(1.5, 1.0), set(), None)
    assert books.joules_per_cpu_second is not None
    assert abs(books.joules_per_cpu_second - RATE) < 1e-6


def test_the_rate_follows_the_machine_as_fast_however_long_windows_are() -> None:
    found = []
    for window in (1, 5):
        books = settlement(rate=None)
        for number in range(105):
            tick = machine(1.0, 1.0)
            dynamic_uj = 2_000_000 if number < 100 else 4_000_000
            delta = Delta(CPU, 2_000_000 + dynamic_uj, SECOND, 2_000_000)
            books.add(replace(tick, meters=Tick((delta,), (), {})))
            if number % window == window - 1:
                books.settle(set(), None)
        found.append(books.joules_per_cpu_second)
    assert found == [pytest.approx(2.82, rel=0.02)] * 2


def test_avoided_cpu_time_becomes_joules_apart_from_the_rest() -> None:
    books, usage = settlement(), Usage("intents")
    joined(books, usage)
    usage.avoided("cache", SECOND // 2)
    books.replica(usage.instance).receive(snapshot(usage))
    books.tick(machine(0, 0), {usage.instance}, None)
    assert books.ledger.avoided_uj == {"cache": 1_000_000}
    assert books.ledger.conservation().error_ratio == 0


@dataclass
class World:
    """Replicas and a node under whatever happens to them."""

    books: Metered = field(default_factory=settlement)
    living: list[Usage] = field(default_factory=list)
    sent: int = 0

    def counters(self) -> list[float]:
        ledger, totals = self.books.ledger, self.books.totals
        law = ledger.conservation()
        return [
            law.measured_uj,
            law.attributed_uj,
            law.idle_uj,
            law.overhead_uj,
            law.other_uj,
            totals.requests.get(ACCOUNT, 0),
            totals.late_records,
            totals.unmeasured_cpu_ns,
            sum(ledger.grams.values()),
        ]


CHANGES = ("join", "kill", "leave", "restart node", "work")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["tick", "tick", "silent tick", "unsettled tick", *CHANGES]),
        st.integers(0, 3),
        st.floats(0, 2),
    ),
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_the_books_balance_and_nothing_goes_back(events: list[tuple[str, int, float]]) -> None:
    world = World()
    for event, which, amount in events:
        before = world.counters()
        happen(world, event, which, amount)
        assert all(now >= then for now, then in zip(world.counters(), before, strict=True)), event
        law = world.books.ledger.conservation(world.books.pending_uj)
        assert law.error_ratio == 0
    assert world.books.totals.requests.get(ACCOUNT, 0) <= world.sent


def happen(world: World, event: str, which: int, amount: float) -> None:
    books = world.books
    usage = world.living[which % len(world.living)] if world.living else None
    if event == "join" and len(world.living) < 4:
        world.living.append(Usage("intents"))
        books.replica(world.living[-1].instance)
    elif event == "work" and usage:
        work(usage, amount, count=3)
        world.sent += 3
    elif event == "kill" and usage:
        world.living.remove(usage)
        books.replica(usage.instance).gone = True
    elif event == "leave" and usage:
        world.living.remove(usage)
        account = books.replica(usage.instance)
        account.receive(snapshot(usage))
        account.gone = True
    elif event == "restart node":
        books.close(None)
        fresh = settlement(Ledger.from_json(books.ledger.to_json()), ServingTotals.from_json(books.totals.to_json()))
        fresh.remembered = books.settled_snapshots()
        world.books = fresh
        for living in world.living:
            fresh.replica(living.instance)
    elif event in ("tick", "silent tick", "unsettled tick"):
        answered = set()
        for number, living in enumerate(world.living):
            if event != "silent tick" or number != which:
                books.replica(living.instance).receive(snapshot(living))
                answered.add(living.instance)
        spent = {living.instance: amount / 5 for living in world.living}
        books.add(machine(amount, min(amount, sum(spent.values())), spent))
        if event != "unsettled tick":
            books.settle(answered, 100.0)


def test_replies_learn_how_many_loaded_joules_stand_behind_a_dynamic_one() -> None:
    books, usage = Metered(Ledger(), ServingTotals(), IdleModel.fresh(FAMILY), RATE, pue=1.5), Usage("intents")
    assert books.loaded_ratio is None
    joined(books, usage)
    for _ in range(5):
        work(usage, 0.5)
        books.replica(usage.instance).receive(snapshot(usage))
        books.tick(machine(0.5, 0.5, {usage.instance: 0.5}), {usage.instance}, None)
    # 2 J idle beside 1 J of requests a second, and what the second before them drew (2 J) over the hour to come.
    assert books.loaded_ratio == pytest.approx(1.5 * 3, rel=0.001)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0.01, 0.4), st.floats(0, 0.3)), min_size=40, max_size=60),
    st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_what_replies_promise_is_what_is_settled_in_the_long_run(
    seconds: list[tuple[int, float, float]], measured: bool
) -> None:
    """Under counters, too, where the promise goes by the rate of the seconds before."""
    books, usage = settlement(rate=None if measured else RATE), Usage("intents")
    joined(books, usage)
    books.tick(machine(1.0, 0.0), {usage.instance}, None)
    promised = 0.0
    for requests, cpu_seconds, others in seconds:
        rate = books.joules_per_cpu_second
        assert rate is not None
        spent = 0.0
        for _ in range(requests):
            usage.request(*KEY, round(cpu_seconds * SECOND / 10))
            spent += cpu_seconds / 10
        promised += rate * spent
        books.replica(usage.instance).receive(snapshot(usage))
        books.tick(machine(spent + others, spent, {usage.instance: spent}), {usage.instance}, None)
    assert promised == pytest.approx(attributed_joules(books), rel=0.02, abs=1e-4)


def test_a_gpus_joules_go_to_the_requests_of_the_replica_that_kept_it_busy() -> None:
    gpu = Domain("gpu", "gpu-0", "nvml", on_cpu=False)
    books, busy, idle = settlement(), Usage("intents"), Usage("intents")
    joined(books, busy)
    joined(books, idle)
    work(busy, 0.1)
    idle.request("lite", "lite", "eco", "ok", SECOND // 2)
    for usage in (busy, idle):
        books.replica(usage.instance).receive(snapshot(usage))
    tick = machine(1.0, 0.6, {busy.instance: 0.1, idle.instance: 0.5})
    deltas = (*tick.meters.deltas, Delta(gpu, 40_000_000, SECOND, 10_000_000))
    used = {"gpu-0": {busy.instance: 60, "": 40}}
    tick = replace(tick, meters=Tick(deltas, (), {}), device_busy=used)
    books.tick(tick, {busy.instance, idle.instance}, None)
    by_gpu = {account.variant: uj for (account, source), uj in books.ledger.attributed_uj.items() if source == "nvml"}
    assert by_gpu == {"full": 18_000_000}
    assert books.ledger.other_uj["other_processes"] == 12_000_000 + 800_000
