"""What takes a request off the dial's point: its session's side, a spike in load, a class that is too slow."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.manifest import Cascade, OperatingPoint
from server.engine.batching import BatchLimits
from server.engine.errors import Overloaded
from server.engine.family import Family
from server.engine.routing import Router
from server.engine.tokenizer import Text
from server.shaping.policy import CLASSES, DialState, QualityClass
from server.shaping.sides import Split
from tests.support.engines import dial, gated, running, until

SPIKED = replace(dial("full"), spike="nano")


def with_cascade(family: Family) -> Family:
    """The family with a cascade between its two variants: full, cascade, nano."""
    full, nano = family.points[0], family.points[-1]
    middle = OperatingPoint(
        name="both",
        variant=full.variant,
        cascade=Cascade(first=nano.variant, temperature=1.0, threshold=0.8, escalated_share=0.3),
        accuracy=0.9,
        accuracy_lower=0.9,
        relative_accuracy=0.99,
        cpu_seconds_per_1k=(full.cpu_seconds_per_1k + nano.cpu_seconds_per_1k) / 2,
    )
    return replace(family, manifest=family.manifest.model_copy(update={"points": (full, middle, nano)}))


def choose(
    router: Router, quality: QualityClass, session: bytes = b"", *, pressed: bool = False, guarded: bool = False
) -> tuple[str, str, str | None]:
    route = router.choose(quality, session, pressed=pressed, guarded=guarded)
    return route.point, route.reason, route.counted


def test_a_spike_moves_standard_requests_alone_and_is_counted_apart(family: Family) -> None:
    router = Router(family, SPIKED)
    assert choose(router, "standard") == ("full", "pin", None)
    assert choose(router, "standard", pressed=True) == ("nano", "load-spike", "spike_overrides")
    assert choose(router, "strict", pressed=True) == ("full", "strict", None)
    assert choose(router, "eco", pressed=True) == ("nano", "eco", None)
    assert router.choose("standard", b"", pressed=True, guarded=False).avoids == "spike"


def test_a_spike_changes_nothing_where_the_grid_has_moved_the_dial_already(family: Family) -> None:
    router = Router(family, replace(dial("nano"), spike="nano"))
    assert choose(router, "standard", pressed=True) == ("nano", "pin", None)


def test_a_class_that_is_too_slow_gets_the_next_better_variant_alone(family: Family) -> None:
    cascaded = with_cascade(family)
    router = Router(cascaded, dial("both", eco="both"))
    assert choose(router, "standard") == ("both", "pin", None)
    assert choose(router, "standard", guarded=True) == ("full", "p99-guard", "latency_guarded")
    assert choose(router, "eco", guarded=True) == ("full", "p99-guard", "latency_guarded")
    assert choose(Router(cascaded, dial("nano")), "standard", guarded=True) == ("nano", "pin", None)


def test_a_dial_that_names_a_point_for_spikes_that_is_not_there_is_refused(family: Family) -> None:
    with pytest.raises(KeyError):
        Router(family, replace(dial("full"), spike="nowhere"))


@given(st.binary(max_size=40), st.floats(0.01, 0.99), st.booleans(), st.booleans(), st.sampled_from(CLASSES))
def test_a_session_stays_on_its_side_and_strict_is_never_degraded(
    family: Family, session: bytes, share: float, pressed: bool, guarded: bool, quality: QualityClass
) -> None:
    turned = DialState(SPIKED.point_by_class, SPIKED.reason_by_class, 3, Split("nano", share), spike="nano")
    router = Router(family, turned)
    first = choose(router, quality, session, pressed=pressed, guarded=guarded)
    assert first == choose(Router(family, turned), quality, session, pressed=pressed, guarded=guarded)
    if quality == "strict":
        assert first[0] == "full"


async def test_requests_of_a_session_are_answered_by_one_point_whatever_their_texts(family: Family) -> None:
    split = replace(dial("full"), split=Split("nano", 0.5))
    async with running(family) as (engine, _):
        engine.reconfigure(engine.limits, split)
        for session in (b"ann", b"bob", b"eve", b"dan"):
            points = set()
            for text in ("card", "my card", "loan", "a loan please", "money"):
                (answer,) = await engine.predict([Text(f"{text} {session!r}")], session=session)
                points.add(answer.point)
            assert len(points) == 1
            assert points == {"nano" if Split("nano", 0.5).takes(session) else "full"}


async def test_a_full_queue_spills_to_the_cheaper_point_before_anybody_is_refused(family: Family) -> None:
    held, gates = gated(family)
    batch = BatchLimits(max_rows=1, objective_ns=40_000_000)
    async with running(held, batch=batch) as (engine, usage):
        engine.reconfigure(engine.limits, SPIKED)
        gates["full"].gate.clear()
        gates["nano"].gate.clear()
        waiting: list[asyncio.Task[object]] = []
        refused = 0
        for number in range(400):
            task = asyncio.create_task(engine.predict([Text(f"card {number}")]))
            await asyncio.sleep(0)
            if task.done() and isinstance(task.exception(), Overloaded):
                refused += 1
                break
            waiting.append(task)
        strict = asyncio.create_task(engine.predict([Text("strictly")], quality="strict"))
        await asyncio.sleep(0)
        spilled = usage.counts["spike_overrides"]
        for gate in gates.values():
            gate.gate.set()
        await asyncio.gather(*waiting, strict, return_exceptions=True)
        await until(lambda: engine.queued == 0)
        (after,) = await engine.predict([Text("afterwards")])
    assert refused == 1
    assert 0 < spilled < len(waiting) + 1
    assert after.point == "full"
    assert after.reason == "pin"
