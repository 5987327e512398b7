"""Requests in, answers out: each text computed once, counted once, and never answered worse than its class allows."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.manifest import CostModel
from server.engine.batching import BatchLimits
from server.engine.engine import Answer, EngineLimits
from server.engine.errors import (
    BackendFailure,
    ClientGone,
    DeadlineExceeded,
    EmptyInput,
    EngineError,
    InputTooLarge,
    InvalidInput,
    NotReady,
    Overloaded,
)
from server.engine.family import Family
from server.engine.tokenizer import Text, Truncation
from server.shaping.policy import CLASSES, QualityClass
from server.shaping.sides import Split
from tests.support.engines import WatchedEngine, dial, gated, running, until

POINTS = ("full", "lite", "nano")


async def ask(engine: WatchedEngine, *texts: str, quality: QualityClass = "standard") -> list[Answer]:
    return await engine.predict([Text(text) for text in texts], quality=quality)


async def ask_one(engine: WatchedEngine, text: str, quality: QualityClass = "standard") -> Answer:
    (answer,) = await ask(engine, text, quality=quality)
    return answer


async def test_an_answer_says_what_it_is_and_what_made_it(family: Family) -> None:
    async with running(family, standard="lite") as (engine, _):
        answer = await ask_one(engine, "my card card")
    assert answer.logits.tolist() == [1.0, 0.0, 0.0]  # half of what `full` gives
    assert (answer.variant, answer.point, answer.reason, answer.cache) == ("lite", "lite", "pin", "miss")
    assert answer.cpu_ns > 0


async def test_only_standard_requests_are_divided_each_text_always_to_the_same_side(family: Family) -> None:
    texts = [" ".join(["card"] * (1 + number % 7) + ["my"] * (number // 7)) for number in range(28)]
    split = Split("nano", 0.5)
    async with running(family, cache_max_bytes=0) as (engine, _):
        engine.reconfigure(engine.limits, replace(dial(eco="lite"), split=split))
        for text in texts:
            wanted = "nano" if split.takes(text.encode()) else "full"
            assert [(await ask_one(engine, text)).point for _ in range(2)] == [wanted, wanted]
            assert (await ask_one(engine, text, "strict")).point == "full"
            assert (await ask_one(engine, text, "eco")).point == "lite"
    assert {split.takes(text.encode()) for text in texts} == {True, False}


async def test_answers_come_in_the_order_of_their_texts(family: Family) -> None:
    async with running(family) as (engine, _):
        answers = await ask(engine, "card", "refund", "parcel", "card card")
    assert [answer.logits.argmax() for answer in answers] == [0, 1, 2, 0]


async def test_an_equal_text_is_answered_from_the_cache_and_owes_only_the_look_up(family: Family) -> None:
    async with running(family) as (engine, usage):
        miss, hit = await ask_one(engine, "my card"), await ask_one(engine, "  My   CARD ")
    assert (miss.cache, hit.cache) == ("miss", "hit")
    assert hit.logits.tolist() == miss.logits.tolist()
    assert usage.counts == {"cache_misses": 1, "cache_hits": 1}
    assert usage.outcomes == {"ok": 1, "cached": 1}
    assert len(usage.batches) == 1


async def test_a_cache_of_no_bytes_computes_every_text(family: Family) -> None:
    async with running(family, cache_max_bytes=0) as (engine, usage):
        answers = [await ask_one(engine, "card") for _ in range(3)]
    assert [answer.cache for answer in answers] == ["miss"] * 3
    assert len(usage.batches) == 3


async def test_fifty_equal_requests_at_once_are_one_computation(family: Family) -> None:
    held, gates = gated(family)
    async with running(held, workers=2) as (engine, usage):
        answers = await asyncio.gather(*(ask_one(engine, "my card") for _ in range(50)))
    assert sorted(answer.cache for answer in answers) == ["miss"] + ["shared"] * 49
    assert len(gates["full"].rows) == 1
    assert usage.outcomes == {"ok": 1, "cached": 49}


async def test_equal_texts_in_one_request_are_one_computation(family: Family) -> None:
    held, gates = gated(family)
    async with running(held) as (engine, _):
        answers = await ask(engine, "card", "Card", "card")
    assert [answer.cache for answer in answers] == ["miss", "shared", "shared"]
    assert len(gates["full"].rows) == 1


async def test_a_failure_reaches_everyone_who_shared_the_computation_and_is_not_kept(family: Family) -> None:
    async with running(family) as (engine, usage):
        results = await asyncio.gather(*(ask_one(engine, "poison") for _ in range(3)), return_exceptions=True)
        with pytest.raises(BackendFailure):
            await ask_one(engine, "poison")
    assert all(isinstance(result, BackendFailure) for result in results)
    assert len(usage.batches) == 2
    assert usage.outcomes == {"error": 4}


steps = st.lists(
    st.tuples(
        st.sampled_from(POINTS),
        st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(["card", "refund", "card card"])), max_size=4),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_no_class_is_answered_by_a_cheaper_point_than_its_own_however_the_dial_turns(
    family: Family, turns: list[tuple[str, list[tuple[QualityClass, str]]]]
) -> None:
    async def play() -> None:
        async with running(family, workers=2) as (engine, _):
            for standard, questions in turns:
                engine.reconfigure(engine.limits, dial(standard))
                answers = await asyncio.gather(*(ask_one(engine, text, quality) for quality, text in questions))
                for (quality, text), answer in zip(questions, answers, strict=True):
                    allowed = dial(standard).point_by_class[quality]
                    assert POINTS.index(answer.point) <= POINTS.index(allowed)
                    # The scores themselves tell which point they came from.
                    assert answer.logits.max() == len(text.split()) / 2 ** POINTS.index(answer.point)

    asyncio.run(play())


async def test_a_better_answer_in_the_cache_serves_every_class(family: Family) -> None:
    async with running(family) as (engine, usage):
        await ask_one(engine, "card", "strict")
        answers = [await ask_one(engine, "card", quality) for quality in CLASSES]
    assert [(answer.point, answer.cache) for answer in answers] == [("full", "hit")] * 3
    assert len(usage.batches) == 1


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(family: Family) -> None:
    held, gates = gated(family)
    async with running(held, max_queue_requests=2) as (engine, usage):
        cached = await ask_one(engine, "w1 w1")
        gates["full"].gate.clear()
        accepted = [asyncio.create_task(ask_one(engine, "refund"))]
        await until(lambda: len(gates["full"].batches) == 2)
        accepted += [asyncio.create_task(ask_one(engine, text)) for text in ("parcel", "card")]
        await until(lambda: engine.queued == 2)
        with pytest.raises(Overloaded) as refusal:
            await ask_one(engine, "one more")
        joined = asyncio.create_task(ask_one(engine, "card"))
        assert (await ask_one(engine, "w1 w1")).logits.tolist() == cached.logits.tolist()
        gates["full"].gate.set()
        assert [answer.cache for answer in await asyncio.gather(*accepted, joined)] == ["miss"] * 3 + ["shared"]
    assert refusal.value.retry_after_s >= 1
    assert usage.outcomes["shed"] == 1


async def test_a_request_is_admitted_whole_or_not_at_all(family: Family) -> None:
    async with running(family, max_queue_requests=2) as (engine, usage):
        answers = await ask(engine, *(f"card w{number}" for number in range(20)))
    assert len(answers) == 20
    assert usage.outcomes == {"ok": 20}


async def test_what_cannot_be_answered_in_time_is_refused_at_once(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    # By the manifest's cost model a text takes a second of CPU, so those that wait take longer than a request may.
    slow = CostModel(fixed_ns=1e9, linear_ns=0, quadratic_ns=0)
    variants = tuple(variant.model_copy(update={"cost": slow}) for variant in held.manifest.variants)
    held = replace(held, manifest=held.manifest.model_copy(update={"variants": variants}))
    async with running(held, request_timeout_s=15) as (engine, usage):
        waiting = asyncio.create_task(ask(engine, *(f"card w{number % 50} w{number}" for number in range(60))))
        await until(lambda: engine.queued > 40)
        with pytest.raises(Overloaded) as refusal:
            await ask_one(engine, "late")
        gates["full"].gate.set()
        assert len(await waiting) == 60
    assert refusal.value.retry_after_s > 15
    assert usage.outcomes == {"ok": 60, "shed": 1}


async def test_a_request_has_no_more_time_than_it_asked_for(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        with pytest.raises(DeadlineExceeded, match=r"0\.02 s"):
            await engine.predict([Text("refund")], timeout_s=0.02)
        gates["full"].gate.set()
        await first
        await until(lambda: len(usage.requests) == 2)
    assert len(gates["full"].rows) == 1  # it cost no forward pass
    assert usage.outcomes == {"ok": 1, "cancelled": 1}


async def test_who_joins_a_computation_with_more_time_gets_an_answer_though_its_first_deadline_passed(
    family: Family,
) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        short = asyncio.create_task(engine.predict([Text("refund")], timeout_s=0.02))
        await until(lambda: engine.queued == 1)
        patient = asyncio.create_task(ask_one(engine, "refund"))
        with pytest.raises(DeadlineExceeded):
            await short
        gates["full"].gate.set()
        assert (await patient).logits.tolist() == [0.0, 1.0, 0.0]
        await first
    assert usage.outcomes == {"ok": 2, "cancelled": 1}


async def test_with_an_objective_what_would_take_too_long_is_refused_at_once(family: Family) -> None:
    held, gates = gated(family)
    limits = BatchLimits(objective_ns=1_000_000)
    texts = [f"w{number} " + "w1 " * 45 for number in range(60)]
    async with running(held) as (engine, usage):
        await ask_one(engine, "warm")
        gates["full"].gate.clear()
        waiting = asyncio.create_task(ask(engine, *texts))
        await until(lambda: engine.queued > 30)
        engine.reconfigure(replace(engine.limits, batch=limits), engine.dial)
        with pytest.raises(Overloaded) as refusal:
            await ask_one(engine, "late")
        engine.reconfigure(replace(engine.limits, batch=BatchLimits()), engine.dial)
        accepted = asyncio.create_task(ask_one(engine, "in time"))
        gates["full"].gate.set()
        assert len(await waiting) == 60
        await accepted
    assert refusal.value.retry_after_s >= 1
    assert usage.outcomes["shed"] == 1


async def test_a_lone_request_is_never_refused_however_tight_the_objective(family: Family) -> None:
    async with running(family, batch=BatchLimits(objective_ns=1)) as (engine, _):
        for number in range(5):
            assert (await ask_one(engine, f"card w{number}")).cache == "miss"


async def test_a_long_text_is_tokenized_beside_the_loop_with_the_same_answer(family: Family) -> None:
    words = "card " + "w1 " * 3000
    async with running(family) as (engine, usage):
        (cut,) = await engine.predict([Text(words)], truncate="right")
        with pytest.raises(InputTooLarge, match="tokens"):
            await ask_one(engine, words)
        (again,) = await engine.predict([Text(words)], truncate="right")
        assert engine.active == 0
        await until(lambda: engine.queued == 0)
    assert cut.logits.tolist() == [1.0, 0.0, 0.0]
    assert (cut.cache, again.cache) == ("miss", "hit")
    assert cut.cpu_ns >= cut.tokenize_ns > 0
    assert usage.outcomes == {"ok": 1, "error": 1, "cached": 1}


async def test_more_workers_can_be_had_while_requests_run(family: Family) -> None:
    async with running(family) as (engine, _):
        asked = [asyncio.create_task(ask_one(engine, f"card w{number}")) for number in range(40)]
        await asyncio.sleep(0)
        engine.resize(3)
        await asyncio.gather(*asked)
        assert engine.workers == 3
        assert engine.healthy


async def test_a_request_that_takes_too_long_is_given_up_and_reported_once(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held, request_timeout_s=0.05) as (engine, usage):
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await ask_one(engine, "card")
        gates["full"].gate.set()
        await until(lambda: bool(usage.requests))
        assert engine.active == 0
    assert usage.outcomes == {"cancelled": 1}
    assert usage.requests[0]["cpu_ns"] >= engine.batch_cpu_ns


async def test_draining_answers_everything_that_was_accepted_and_accepts_nothing_more(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, _):
        accepted = [asyncio.create_task(ask_one(engine, f"card w{number}")) for number in range(40)]
        await until(lambda: engine.active == 40)
        draining = asyncio.create_task(engine.drain(20))
        await asyncio.sleep(0)
        assert not engine.ready
        with pytest.raises(NotReady):
            await ask_one(engine, "card")
        gates["full"].gate.set()
        answers = await asyncio.gather(*accepted)
        assert await draining
    assert {tuple(answer.logits.tolist()) for answer in answers} == {(1.0, 0.0, 0.0)}


async def test_a_drain_that_takes_too_long_says_so(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, _):
        accepted = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: engine.active == 1)
        assert not await engine.drain(0.01)
        gates["full"].gate.set()
        await accepted


async def test_draining_an_idle_engine_ends_at_once(family: Family) -> None:
    async with running(family) as (engine, _):
        assert await engine.drain(20)


async def test_closing_still_answers_what_was_accepted(family: Family) -> None:
    held, gates = gated(family)
    async with running(held) as (engine, _):
        gates["full"].gate.clear()
        accepted = [asyncio.create_task(ask_one(engine, f"card w{number}")) for number in range(30)]
        await until(lambda: engine.active == 30)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        gates["full"].gate.set()
        await closing
        assert len(await asyncio.gather(*accepted)) == 30


async def test_no_answer_mixes_two_versions_when_they_are_swapped_under_load(family: Family, tenfold: Family) -> None:
    largest = {family.version: 1.0, tenfold.version: 10.0}
    seen = set()

    async def client(engine: WatchedEngine, name: int) -> None:
        for number in range(25):
            version = engine.family.version
            texts = [f"card w{name}", f"refund w{number} w{name}", "parcel"]
            for answer in await ask(engine, *texts):
                assert answer.logits.max() == largest[version]
            seen.add(version)

    async with running(family, workers=2) as (engine, usage):
        clients = [asyncio.create_task(client(engine, name)) for name in range(8)]
        turn = 0
        while not all(one.done() for one in clients):
            turn += 1
            engine.reconfigure(engine.limits, dial("full"), (family, tenfold)[turn % 2])
            await asyncio.sleep(0.002)
        await asyncio.gather(*clients)
    assert seen == set(largest)
    assert usage.outcomes.keys() == {"ok", "cached"}


async def test_an_answer_of_the_old_version_is_not_kept_for_the_new_one(family: Family, tenfold: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, _):
        old = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        engine.reconfigure(engine.limits, dial(), tenfold)
        gates["full"].gate.set()
        assert (await old).logits[0] == 1.0
        assert len(engine.cache) == 0
        new = await ask_one(engine, "card")
    assert (new.logits[0], new.cache) == (10.0, "miss")


async def test_a_new_version_takes_the_memory_of_the_answers_that_nobody_can_ask_for_any_more(
    family: Family, tenfold: Family
) -> None:
    async with running(family) as (engine, _):
        await ask(engine, "card", "refund")
        engine.reconfigure(engine.limits, dial("lite"))
        assert len(engine.cache) == 2  # turning the dial costs no answer
        engine.reconfigure(engine.limits, dial(), tenfold)
        assert len(engine.cache) == 0


async def test_a_dial_that_names_an_unknown_point_changes_nothing(family: Family, tenfold: Family) -> None:
    async with running(family) as (engine, _):
        before = engine.limits, engine.dial, engine.family
        with pytest.raises(KeyError, match="best"):
            engine.reconfigure(EngineLimits(max_queue_requests=1), dial("best"), tenfold)
        assert (engine.limits, engine.dial, engine.family) == before


async def test_new_bounds_hold_for_the_next_request(family: Family) -> None:
    async with running(family) as (engine, usage):
        await ask(engine, "card", "refund")
        engine.reconfigure(replace(engine.limits, max_texts_per_request=1, cache_max_bytes=0), dial("nano"))
        with pytest.raises(InputTooLarge, match="limit is 1"):
            await ask(engine, "card", "refund")
        assert (await ask_one(engine, "card")).point == "nano"
        assert len(engine.cache) == 0
    assert usage.batches[0][0] == 2


async def test_the_job_of_a_cancelled_request_is_not_run(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        left = asyncio.create_task(ask_one(engine, "refund"))
        await until(lambda: engine.queued == 1)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        gates["full"].gate.set()
        await first
        await until(lambda: len(usage.requests) == 2)
        assert engine.queued == 0
    assert len(gates["full"].rows) == 1
    assert usage.outcomes == {"ok": 1, "cancelled": 1}


async def test_the_job_of_a_client_that_left_is_not_run(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        left = asyncio.create_task(engine.predict([Text("refund")], is_gone=lambda: True))
        await until(lambda: engine.queued == 1)
        gates["full"].gate.set()
        await first
        with pytest.raises(ClientGone):
            await left
    assert len(gates["full"].rows) == 1
    assert usage.outcomes == {"ok": 1, "cancelled": 1}


async def test_who_joins_a_computation_just_as_it_is_dropped_still_gets_an_answer(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    loop, joined = asyncio.get_running_loop(), threading.Event()
    joiners: list[asyncio.Task[Answer]] = []

    def join() -> None:
        joiners.append(asyncio.create_task(ask_one(engine, "refund")))
        loop.call_soon(joined.set)

    def join_meanwhile() -> bool:
        """Asked by the worker after it has given the first job up, and before it hands that over."""
        if not joiners:
            loop.call_soon_threadsafe(join)
            assert joined.wait(20)
        return True

    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        gone = [
            asyncio.create_task(engine.predict([Text("refund")], is_gone=lambda: True)),
            asyncio.create_task(engine.predict([Text("a longer text")], is_gone=join_meanwhile)),
        ]
        await until(lambda: engine.queued == 2)
        gates["full"].gate.set()
        await first
        await until(lambda: bool(joiners))
        answer = await joiners[0]
        await asyncio.gather(*gone, return_exceptions=True)
    assert answer.logits.tolist() == [0.0, 1.0, 0.0]
    assert len(usage.requests) == 4


async def test_the_first_who_still_waits_owes_the_computation(family: Family) -> None:
    held, gates = gated(family)
    gates["full"].gate.clear()
    async with running(held) as (engine, usage):
        first = asyncio.create_task(ask_one(engine, "card"))
        second = asyncio.create_task(ask_one(engine, "card"))
        await until(lambda: bool(gates["full"].batches))
        first.cancel()
        gates["full"].gate.set()
        answer = await second
    assert answer.cache == "miss"
    assert answer.cpu_ns >= engine.batch_cpu_ns
    cancelled, answered = usage.requests
    assert (cancelled["outcome"], answered["outcome"]) == ("cancelled", "ok")
    assert cancelled["cpu_ns"] == cancelled["tokenize_ns"]


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        ([Text(" ")], EmptyInput),
        ([Text("\x00")], EmptyInput),
        ([Text("card", "refund")], InvalidInput),
        ([Text("\ud800")], InvalidInput),
        ([Text("w1 " * 65)], InputTooLarge),
        ([Text("x" * 101)], InputTooLarge),
        ([Text(f"w{number}") for number in range(9)], InputTooLarge),
        ([Text("card"), Text("")], EmptyInput),
    ],
)
async def test_what_cannot_be_answered_is_refused_and_the_engine_goes_on(
    family: Family, texts: list[Text], error: type[EngineError]
) -> None:
    async with running(family, max_text_chars=100 if len(texts[0].first) == 101 else 999, max_texts_per_request=8) as (
        engine,
        _,
    ):
        with pytest.raises(error, match="inputs: "):
            await engine.predict(texts)
        assert engine.active == 0
        assert (await ask_one(engine, "card")).logits.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("side", "label"), [("left", 2), ("right", 0)])
async def test_a_text_is_cut_at_the_end_that_was_asked_for_and_cached_apart(
    family: Family, side: Truncation, label: int
) -> None:
    long = Text("card " + "w1 " * 64 + "parcel")
    async with running(family) as (engine, _):
        other: Truncation = "right" if side == "left" else "left"
        await engine.predict([long], truncate=other)
        (answer,) = await engine.predict([long], truncate=side)
    assert answer.cache == "miss"
    assert answer.logits.argmax() == label
    assert answer.logits.max() == 1.0


async def test_a_large_request_leaves_others_their_turn(family: Family) -> None:
    """Normalizing and tokenizing happens on the loop, in portions."""
    async with running(family) as (engine, _):
        texts = [Text(f"w{number} " + "x" * 9_000) for number in range(20)]
        large = asyncio.create_task(engine.predict(texts))
        await asyncio.sleep(0)
        assert engine.queued < 20
        assert len(await large) == 20


async def test_every_text_is_reported_once_and_all_cpu_time_is_owed(family: Family) -> None:
    """Sum over texts == CPU of all batches + what the texts cost before them; whatever becomes of a text."""
    held, gates = gated(family)
    texts = ["card", "refund w1", "poison", "parcel w2 w3", "w4 " * 30, "card card", "w9 " * 65, "poison w2"]
    async with running(held, workers=2, max_queue_requests=10, cache_ttl_s=0.01) as (engine, usage):
        begun = 0
        for turn in range(12):
            engine.reconfigure(engine.limits, dial(POINTS[turn % 3]))
            if turn % 2:
                await asyncio.sleep(0.02)  # longer than the cache keeps an answer
                gates["full"].gate.clear()
            tasks = [
                asyncio.create_task(ask_one(engine, f"{text} w{number % 5}", CLASSES[number % 3]))
                for number, text in enumerate(texts * (12 if turn == 5 else 2))
            ]
            await asyncio.sleep(0.003)
            for task in tasks[::5]:
                task.cancel()
            gates["full"].gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, Answer | EngineError | asyncio.CancelledError) for one in results)
            begun += len(tasks)
        await until(lambda: len(usage.requests) >= begun)
    assert len(usage.requests) == begun
    assert usage.outcomes.keys() == {"ok", "cached", "error", "cancelled", "shed"}
    # A text that went through the runtime says what it cost before; of another one that is all.
    before = sum(request.get("tokenize_ns") or 0 for request in usage.requests)
    before += sum(request["cpu_ns"] for request in usage.requests if request.get("tokenize_ns") is None)
    assert sum(request["cpu_ns"] for request in usage.requests) == engine.batch_cpu_ns + before
    assert usage.counts["cache_hits"] + usage.counts["cache_misses"] == begun


async def test_nothing_was_avoided_for_who_got_no_answer(family: Family) -> None:
    held, gates = gated(family)
    gates["nano"].gate.clear()
    async with running(held, standard="nano") as (engine, usage):
        leaving = [asyncio.create_task(ask_one(engine, "card")) for _ in range(2)]
        await until(lambda: bool(gates["nano"].batches))
        failing = [asyncio.create_task(ask_one(engine, "poison")) for _ in range(3)]
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        gates["nano"].gate.set()
        await asyncio.gather(*failing, return_exceptions=True)
        await until(lambda: len(usage.requests) == 5)
    assert usage.outcomes == {"cancelled": 2, "error": 3}
    assert engine.batch_cpu_ns > 0
    assert not usage.avoided_ns


async def test_a_cheaper_point_reports_what_full_quality_would_have_cost_more(family: Family) -> None:
    async with running(family, standard="nano") as (engine, usage):
        await ask_one(engine, "card")
        await ask_one(engine, "card", "strict")
    cheap = usage.requests[0]
    # By the manifest `full` takes four times the CPU of `nano`, and strict requests save nothing.
    assert usage.avoided_ns["fallback"] == 3 * (cheap["cpu_ns"] - cheap["tokenize_ns"])


async def test_an_answer_says_what_it_saved_as_it_is_reported(family: Family) -> None:
    async with running(family, standard="nano") as (engine, usage):
        cheap, full = await ask_one(engine, "card"), await ask_one(engine, "refund", "strict")
        hit = await ask_one(engine, "refund", "strict")
    assert cheap.saved_ns == usage.avoided_ns["fallback"] > 0
    assert full.saved_ns == 0
    assert hit.saved_ns == usage.avoided_ns["cache"]


async def test_a_cached_or_shared_answer_of_a_cheaper_point_saved_what_full_quality_would_have_cost(
    family: Family,
) -> None:
    held, gates = gated(family)
    gates["nano"].gate.clear()
    async with running(held, standard="nano") as (engine, _):
        asking = [asyncio.create_task(ask_one(engine, "card")) for _ in range(2)]
        await until(lambda: bool(gates["nano"].batches))
        gates["nano"].gate.set()
        miss, shared = await asyncio.gather(*asking)
        hit = await ask_one(engine, "card")
    ran_ns = miss.cpu_ns - miss.tokenize_ns
    assert (miss.cache, shared.cache, hit.cache) == ("miss", "shared", "hit")
    assert (miss.saved_ns, shared.saved_ns) == (3 * ran_ns, 4 * ran_ns - shared.cpu_ns)
    assert hit.saved_ns == 4 * ran_ns - hit.cpu_ns
