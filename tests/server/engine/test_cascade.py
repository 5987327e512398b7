"""A cascade asks its small variant first and its large one where that is unsure; each text is answered once, by the
right one, for what both cost, and no class gets less than its own point."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.manifest import OperatingPoint
from server.engine.batching import BatchLimits
from server.engine.engine import Answer, Engine, EngineLimits
from server.engine.errors import BackendFailure, DeadlineExceeded
from server.engine.family import Family
from server.engine.routing import Router
from server.engine.runtime import Float32Array
from server.engine.scores import confidence, probabilities
from server.engine.second_level import SharedAnswer
from server.engine.tokenizer import Text, Tokens
from server.shaping.policy import QualityClass
from tests.support.engines import RecordingUsage, WatchedEngine, dial, gated, running, until
from tests.support.listening import listening
from tests.support.rpc import rpc_serving
from tests.support.tiny_family import CASCADE, LABELS, WORDS

SURE, UNSURE = "card " * 5, "card " * 4


async def ask(engine: Engine, text: str, quality: QualityClass = "standard") -> Answer:
    (answer,) = await engine.predict([Text(text)], quality=quality)
    return answer


def with_points(family: Family, *points: OperatingPoint) -> Family:
    """The family with these points."""
    return replace(family, manifest=family.manifest.model_copy(update={"points": points}))


async def test_a_sure_answer_of_the_small_variant_is_given(cascaded: Family) -> None:
    held, gates = gated(cascaded)
    async with running(held, standard=CASCADE) as (engine, usage):
        answer = await ask(engine, SURE)
    assert (answer.variant, answer.point, answer.escalate_ns) == ("nano", CASCADE, 0)
    assert answer.logits.tolist() == [1.25, 0, 0]
    assert gates["full"].rows == []
    assert usage.counts == {"cache_misses": 1}


async def test_where_it_is_unsure_the_large_variant_answers_and_both_are_paid_for(cascaded: Family) -> None:
    held, gates = gated(cascaded)
    async with running(held, standard=CASCADE) as (engine, usage):
        answer = await ask(engine, UNSURE)
        (request,) = usage.requests
        assert request["cpu_ns"] == answer.cpu_ns == engine.batch_cpu_ns + answer.tokenize_ns
    assert (answer.variant, answer.point, answer.reason) == ("full", CASCADE, "pin")
    assert answer.logits.tolist() == [4, 0, 0]
    assert [len(gates[name].rows) for name in ("nano", "full")] == [1, 1]
    assert (request["variant"], request["point"], request["outcome"]) == ("full", CASCADE, "ok")
    assert usage.counts == {"cache_misses": 1, "escalations": 1}
    assert request["queue_ns"] > answer.queue_ns > 0  # both times it waited
    assert request["total_ns"] >= answer.queue_ns + answer.infer_ns + answer.escalate_ns


async def test_a_sure_answer_saved_all_that_its_variant_is_cheaper_and_one_that_escalated_cost_more(
    cascaded: Family,
) -> None:
    async with running(cascaded, standard=CASCADE) as (engine, _):
        sure, unsure = await ask(engine, SURE), await ask(engine, UNSURE)
    # By the manifest `full` takes four times the CPU of `nano`; the unsure run of `nano` comes on top of `full`'s.
    assert sure.saved_ns == 3 * (sure.cpu_ns - sure.tokenize_ns)
    assert -(unsure.cpu_ns - unsure.tokenize_ns) < unsure.saved_ns < 0


async def test_unsure_texts_of_a_batch_share_the_next_batch_of_the_large_variant(cascaded: Family) -> None:
    held, gates = gated(cascaded)
    texts = [Text(f"{words} w{number}") for number, words in enumerate(["my " * 4 + "card", "card " * 5] * 4)]
    async with running(held, standard=CASCADE) as (engine, _):
        answers = await engine.predict(texts)
    assert [answer.variant for answer in answers] == ["full", "nano"] * 4
    assert (gates["nano"].batches, gates["full"].batches) == ([8], [4])


async def test_a_strict_request_neither_joins_a_cascade_nor_asks_its_small_variant(cascaded: Family) -> None:
    held, gates = gated(cascaded)
    gates["nano"].gate.clear()
    async with running(held, standard=CASCADE, workers=2) as (engine, _):
        standard = asyncio.create_task(ask(engine, SURE))
        await until(lambda: bool(gates["nano"].batches))
        strict = await ask(engine, SURE, "strict")
        gates["nano"].gate.set()
        cheap = await standard
    assert (strict.variant, strict.point, strict.cache) == ("full", "full", "miss")
    assert (cheap.variant, cheap.point) == ("nano", CASCADE)


async def test_an_answer_that_escalated_serves_strict_requests_from_the_cache(cascaded: Family) -> None:
    async with running(cascaded, standard=CASCADE) as (engine, usage):
        await ask(engine, UNSURE)
        before = engine.batch_cpu_ns
        hits = [await ask(engine, UNSURE, quality) for quality in ("strict", "standard", "eco")]
        assert engine.batch_cpu_ns == before
    assert [(hit.variant, hit.point, hit.cache, hit.escalate_ns) for hit in hits] == [("full", "full", "hit", 0)] * 3
    assert usage.counts["escalations"] == 1
    # What was avoided is what `full` alone takes: no more than anybody would have spent.
    assert usage.avoided_ns["cache"] < 3 * usage.requests[0]["cpu_ns"]


async def test_a_sure_answer_serves_the_classes_of_the_cascade_and_below_and_no_other(cascaded: Family) -> None:
    async with running(cascaded, standard=CASCADE) as (engine, _):
        await ask(engine, SURE)
        again, eco, strict = [await ask(engine, SURE, quality) for quality in ("standard", "eco", "strict")]
    assert (again.variant, again.point, again.cache) == ("nano", CASCADE, "hit")
    assert (eco.variant, eco.point, eco.cache) == ("nano", CASCADE, "hit")
    assert (strict.variant, strict.point, strict.cache) == ("full", "full", "miss")


async def test_where_no_point_is_the_large_variant_alone_its_answers_serve_as_the_cascades_own(
    cascaded: Family,
) -> None:
    """Points: `lite` behind `nano`, and `nano`; strict is the cascade, as it is the best there is."""
    best = cascaded.points[1].model_copy(update={"variant": "lite", "name": "full"})
    async with running(with_points(cascaded, best, cascaded.points[-1])) as (engine, _):
        first, second = await ask(engine, UNSURE, "strict"), await ask(engine, UNSURE)
    assert (first.variant, first.cache, second.variant, second.cache) == ("lite", "miss", "lite", "hit")


def test_an_answer_that_escalated_is_no_better_than_its_cascade_unless_the_large_variant_is_a_point(
    cascaded: Family,
) -> None:
    full, cascade, lite, nano = cascaded.points
    better, behind = (cascade.model_copy(update={"variant": "lite", "name": name}) for name in ("better", "behind"))

    def kept_as(*points: OperatingPoint, standard: str) -> tuple[str, int] | None:
        router = Router(with_points(cascaded, *points), dial(standard, eco="nano"))
        escalation = router.choose("standard", b"", pressed=False, guarded=False).escalation
        assert escalation is not None
        return escalation.alone

    assert kept_as(full, cascade, nano, standard=CASCADE) == ("full", 0)
    assert kept_as(full, lite, behind, nano, standard="behind") == ("lite", 1)
    assert kept_as(full, better, behind, nano, standard="behind") is None


async def test_equal_texts_share_the_escalation_whenever_they_come(cascaded: Family) -> None:
    held, gates = gated(cascaded)
    gates["full"].gate.clear()
    async with running(held, standard=CASCADE) as (engine, usage):
        early = [asyncio.create_task(ask(engine, UNSURE)) for _ in range(3)]
        await until(lambda: bool(gates["full"].batches))
        late = asyncio.create_task(ask(engine, UNSURE))
        await asyncio.sleep(0)
        gates["full"].gate.set()
        answers = await asyncio.gather(*early, late)
        assert sum(request["cpu_ns"] - request["tokenize_ns"] for request in usage.requests) == engine.batch_cpu_ns
    assert [answer.cache for answer in answers] == ["miss", "shared", "shared", "shared"]
    assert {answer.variant for answer in answers} == {"full"}
    assert usage.counts["escalations"] == 1
    assert usage.outcomes == {"ok": 1, "cached": 3}


async def test_a_request_ends_on_the_point_and_the_version_that_it_began_with(
    cascaded: Family, tenfold: Family
) -> None:
    held, gates = gated(cascaded)
    gates["nano"].gate.clear()
    async with running(held, standard=CASCADE) as (engine, _):
        asked = asyncio.create_task(ask(engine, UNSURE))
        await until(lambda: bool(gates["nano"].batches))
        engine.reconfigure(engine.limits, dial("nano"), tenfold)
        gates["nano"].gate.set()
        answer = await asked
        assert len(engine.cache) == 0
    assert (answer.variant, answer.point, answer.logits.tolist()) == ("full", CASCADE, [4, 0, 0])


async def test_a_deadline_holds_through_both_variants_and_what_was_spent_is_owed(cascaded: Family) -> None:
    held, gates = gated(cascaded)
    gates["full"].gate.clear()
    async with running(held, standard=CASCADE) as (engine, usage):
        blocking = asyncio.create_task(ask(engine, "w1", "strict"))
        await until(lambda: bool(gates["full"].batches))
        engine.resize(2)
        with pytest.raises(DeadlineExceeded):
            await engine.predict([Text(UNSURE)], timeout_s=0.3)
        gates["full"].gate.set()
        await blocking
        await until(lambda: len(usage.requests) == 2)
        nano = next(record for record in engine.__dict__["records"] if record.variant == "nano")
        late = next(request for request in usage.requests if request["outcome"] == "cancelled")
        assert late["cpu_ns"] >= nano.cpu_ns > 0
    assert late["point"] == CASCADE


async def test_a_failure_of_the_small_variant_is_not_hidden_by_the_large_one(cascaded: Family) -> None:
    async with running(cascaded, standard=CASCADE) as (engine, usage):
        with pytest.raises(BackendFailure):
            await ask(engine, "poison")
    assert usage.outcomes == {"error": 1}
    assert "escalations" not in usage.counts


async def test_closing_still_answers_what_escalates(cascaded: Family) -> None:
    async with running(cascaded, standard=CASCADE, batch=BatchLimits(max_rows=4)) as (engine, _):
        accepted = [asyncio.create_task(ask(engine, f"card w{number}")) for number in range(30)]
        await until(lambda: engine.active == 30)
        await engine.close()
        assert {answer.variant for answer in await asyncio.gather(*accepted)} == {"full"}


class Remembering:
    """A second level in memory."""

    ready = True

    def __init__(self) -> None:
        self.kept: dict[tuple[bytes, int], SharedAnswer] = {}

    async def get(self, key: bytes, worst_rank: int, labels: int) -> SharedAnswer | None:
        return next((self.kept[key, rank] for rank in range(worst_rank + 1) if (key, rank) in self.kept), None)

    def put(self, key: bytes, rank: int, logits: Float32Array, cpu_ns: int, ttl_s: float) -> None:
        self.kept[key, rank] = SharedAnswer(logits, rank, cpu_ns, 0.0)

    async def close(self) -> None:
        """Nothing to end."""


async def test_replicas_share_the_answers_of_a_cascade_under_the_names_of_those_who_gave_them(
    cascaded: Family,
) -> None:
    second = Remembering()
    one, other = (Engine(cascaded, EngineLimits(), dial(CASCADE), RecordingUsage(), 1, second) for _ in range(2))
    try:
        for text in (SURE, UNSURE):
            await ask(one, text)
        found = [await ask(other, text) for text in (SURE, UNSURE)]
        strict = await ask(other, UNSURE, "strict")
    finally:
        await one.close()
        await other.close()
    assert [(hit.cache, hit.variant, hit.point) for hit in found] == [("hit", "nano", CASCADE), ("hit", "full", "full")]
    assert (strict.cache, strict.variant) == ("hit", "full")


async def test_what_no_rank_can_name_is_not_shared(cascaded: Family) -> None:
    second = Remembering()
    full, cascade, _, nano = cascaded.points
    family = with_points(cascaded, full, cascade.model_copy(update={"variant": "lite"}), nano)
    engine = Engine(family, EngineLimits(), dial(CASCADE), RecordingUsage(), 1, second)
    try:
        answers = [await ask(engine, text) for text in (UNSURE, SURE)]
        again = await ask(engine, UNSURE)
    finally:
        await engine.close()
    assert [answer.variant for answer in answers] == ["lite", "nano"]
    assert (again.cache, again.variant) == ("hit", "lite")
    assert [(shared.rank, shared.logits.max()) for shared in second.kept.values()] == [(1, 1.25)]


async def test_a_reply_says_that_texts_escalated_and_otherwise_nothing(cascaded: Family) -> None:
    async with listening(cascaded, standard=CASCADE) as served, httpx.AsyncClient(base_url=served.url) as client:
        one = await client.post("/predict", json={"inputs": UNSURE})
        sure = await client.post("/predict", json={"inputs": SURE})
        many = await client.post("/predict", json={"inputs": [["card"], [SURE + "w1"], ["refund"]]})
        hit = await client.post("/predict", json={"inputs": UNSURE})
    assert (one.headers["x-jouleserve-escalated"], one.headers["x-jouleserve-variant"]) == ("1", "full")
    assert (many.headers["x-jouleserve-escalated"], many.headers["x-jouleserve-variant"]) == ("2", "full,nano")
    assert {many.headers["x-jouleserve-point"], sure.headers["x-jouleserve-point"]} == {CASCADE}
    assert not [reply for reply in (sure, hit) if "x-jouleserve-escalated" in reply.headers]


async def test_the_typed_call_and_the_open_protocol_say_so_too(cascaded: Family) -> None:
    async with rpc_serving(cascaded, standard=CASCADE) as rpc:
        unsure, sure = await rpc.predict(UNSURE, "refund"), await rpc.predict(SURE)
        infer = await rpc.infer("parcel")
    assert (unsure.escalated, unsure.variant) == (2, "full")
    assert not sure.HasField("escalated")
    assert infer.parameters["escalated"].int64_param == 1


class TableRuntime:
    """Answers each text by its first word, from a table of logits."""

    def __init__(self, rows: Float32Array) -> None:
        self._rows = rows

    def run(self, batch: Sequence[Tokens]) -> Float32Array:
        return self._rows[[tokens.ids[0] for tokens in batch]]


FIRST_WORD = WORDS.index("w0")
logits = st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(logits, min_size=1, max_size=40),
    threshold=st.floats(0, 1),
    temperature=st.floats(0.05, 20),
    workers=st.integers(1, 3),
    strict=st.sets(st.integers(0, 39)),
    inline_ns=st.sampled_from([0, 10**9]),
)
def test_every_text_is_answered_once_by_the_right_variant_for_what_its_runs_cost(
    cascaded: Family,
    rows: list[list[float]],
    threshold: float,
    temperature: float,
    workers: int,
    strict: set[int],
    inline_ns: int,
) -> None:
    small = np.zeros((len(WORDS), len(LABELS)), dtype=np.float32)
    small[FIRST_WORD : FIRST_WORD + len(rows)] = rows
    large = np.repeat(np.arange(len(WORDS), dtype=np.float32)[:, None], len(LABELS), axis=1) + 1000
    cascade = cascaded.points[1].cascade
    assert cascade is not None
    changed = cascade.model_copy(update={"threshold": threshold, "temperature": temperature})
    full, point, *others = cascaded.points
    family = replace(
        with_points(cascaded, full, point.model_copy(update={"cascade": changed}), *others),
        runtimes={"full": TableRuntime(large), "lite": TableRuntime(large), "nano": TableRuntime(small)},
    )
    scaled = small.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    surest = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)

    async def play() -> tuple[list[Answer], WatchedEngine, RecordingUsage]:
        limits = BatchLimits(max_rows=4, inline_ns=inline_ns)
        async with running(family, standard=CASCADE, workers=workers, batch=limits) as (engine, usage):
            asked = [ask(engine, f"w{n}", "strict" if n in strict else "standard") for n in range(len(rows))]
            return await asyncio.gather(*asked), engine, usage

    answers, engine, usage = asyncio.run(play())
    escalated = 0
    for number, answer in enumerate(answers):
        margin = surest[FIRST_WORD + number] - threshold
        if number in strict:
            expected = "full"
        elif abs(margin) < 1e-9:  # the last bit of a rounding may decide
            expected = answer.variant
        else:
            expected = "full" if margin < 0 else "nano"
        assert answer.variant == expected
        table = large if expected == "full" else small
        assert answer.logits.tolist() == table[FIRST_WORD + number].tolist()
        assert answer.point == ("full" if number in strict else CASCADE)
        escalated += number not in strict and expected == "full"
    assert usage.outcomes == {"ok": len(rows)}
    assert usage.counts["escalations"] == escalated
    assert sum(batch_rows for batch_rows, _, _ in usage.batches) == len(rows) + escalated
    owed = sum(request["cpu_ns"] - request["tokenize_ns"] for request in usage.requests)
    assert owed == engine.batch_cpu_ns
    assert sum(answer.cpu_ns for answer in answers) == sum(request["cpu_ns"] for request in usage.requests)


@given(logits)
def test_confidence_is_the_largest_probability_and_falls_as_the_temperature_rises(row: list[float]) -> None:
    values = np.array(row, dtype=np.float32)
    assert confidence(values, 1.0) == pytest.approx(max(probabilities(values)))
    assert confidence(values, 2.0) <= confidence(values, 1.0) + 1e-12
    assert 1 / 3 - 1e-12 <= confidence(values, 100.0) <= 1.0
