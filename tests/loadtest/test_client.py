"""The client reports what came back, and its percentiles are values that were seen."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client import Question, Reply, Run, closed_loop, percentile


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 5), (0.51, 6), (0.9, 9), (0.99, 10), (1.0, 10)])
def test_a_percentile_is_the_nearest_rank(share: float, value: int) -> None:
    assert percentile(range(10, 0, -1), share) == value


def test_the_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 0.5))


@given(st.lists(st.integers(-1000, 1000), min_size=1), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_at_least_the_share_lies_at_or_below_a_percentile_and_less_strictly_below(
    values: list[int], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@asynccontextmanager
async def server(reply: Callable[[], web.Response]) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A real HTTP server that always says the same."""
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        await request.read()
        return reply()

    app = web.Application()
    app.router.add_post("/predict", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/predict", seen
    finally:
        await runner.cleanup()


def good() -> web.Response:
    headers = {"x-jouleserve-point": "lite", "x-jouleserve-cache": "miss", "x-jouleserve-joules": "2.5e-02"}
    return web.json_response([{"score": 0.9, "label": "card"}], headers=headers)


async def test_every_question_is_asked_once_by_one_of_the_clients() -> None:
    questions = [Question(f"text {number}", "eco", "card") for number in range(20)]
    async with server(good) as (url, seen):
        run = await closed_loop(url, iter(questions), clients=4)
    assert sorted(reply.question.text for reply in run.answered) == sorted(one.text for one in questions)
    assert {request.headers["x-quality"] for request in seen} == {"eco"}
    first = run.replies[0]
    assert (first.label, first.point, first.cache, first.joules, first.correct) == ("card", "lite", "miss", 0.025, True)


async def test_an_error_is_a_reply_with_its_status_and_counts_as_not_answered() -> None:
    async with server(lambda: web.Response(status=429)) as (url, _):
        run = await closed_loop(url, iter([Question("a")]), clients=1)
    assert [reply.status for reply in run.replies] == [429]
    assert run.answered == []


@pytest.mark.parametrize("text", ["no json", "{}", "[]", "[{}]", "null"])
async def test_a_reply_that_is_none_of_predict_has_status_0(text: str) -> None:
    async with server(lambda: web.Response(text=text)) as (url, _):
        run = await closed_loop(url, iter([Question("a")]), clients=1)
    assert [reply.status for reply in run.replies] == [0]


async def test_no_connection_is_status_0() -> None:
    async with server(good) as (url, _):
        pass
    run = await closed_loop(url, iter([Question("a")]), clients=1)
    assert [reply.status for reply in run.replies] == [0]


async def test_a_run_ends_when_it_is_told_to() -> None:
    replies: list[Reply] = []
    endless = (Question("again") for _ in iter(int, 1))
    async with server(good) as (url, _):
        run = await closed_loop(url, endless, 2, stop=lambda: len(replies) >= 10, on_reply=replies.append)
    assert 10 <= len(run.replies) <= 12
    assert replies == run.replies


def test_a_reply_without_a_known_label_is_neither_right_nor_wrong() -> None:
    assert Reply(Question("a"), 200, 0, 0, label="card").correct is None
    assert Reply(Question("a", label="refund"), 200, 0, 0, label="card").correct is False


def test_a_run_of_nothing_has_answered_nothing() -> None:
    assert Run().answered == []
