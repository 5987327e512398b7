"""The reply of a hit is rendered once, and is what rendering it would give."""

from __future__ import annotations

from server.api.predict import PredictRequest, render_predictions
from server.engine.engine import Answer
from server.engine.family import Family
from server.engine.tokenizer import Text
from tests.support.engines import running

ASKED = [Text("card card refund")]


async def test_the_common_reply_is_kept_beside_the_answer_and_counted(family: Family) -> None:
    async with running(family) as (engine, _):

        async def ask() -> Answer:
            (answer,) = await engine.predict(ASKED)
            return answer

        def render(answer: Answer, *, batch: bool = False, raw_scores: bool = False) -> bytes:
            return render_predictions(PredictRequest(ASKED, batch, raw_scores, None), [answer], family.manifest)

        miss, before = await ask(), engine.cache.size_bytes
        fresh = render(miss)
        assert engine.cache.size_bytes == before  # who is asked once costs nothing more
        first, second = render(await ask()), render(await ask())
        assert first == fresh
        assert second is first
        assert engine.cache.size_bytes == before + len(first)
        # Other forms are rendered for who asks.
        assert render(await ask(), batch=True) == b"[" + fresh + b"]"
        assert render(await ask(), raw_scores=True) != fresh
        assert render(await ask()) is first
