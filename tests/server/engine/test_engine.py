"""Requests in, answers out: each text computed once, counted once, and never answered worse than its class allows."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.errors import (
    BackendFailure,
    EmptyInput,
    EngineError,
    InputTooLarge,
    InvalidInput,
)
from server.engine.family import Family
from server.engine.tokenizer import Text, Truncation
from server.shaping.policy import CLASSES, QualityClass
from server.shaping.sides import Split
from tests.support.engines import POINTS, ask, ask_one, dial, gated, running, until


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
