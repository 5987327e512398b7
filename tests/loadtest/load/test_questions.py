"""What is asked is settled before a run: unique texts never repeat, popular ones do, classes come by weight."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtest.client import Question
from loadtest.load.mix import parse_mix
from loadtest.load.questions import questions

ASKED = [Question(f"text {n}", label="card") for n in range(30)] + [Question("text 0")]
STANDARD = {"standard": 1.0}


def test_unique_texts_never_repeat_and_keep_their_labels() -> None:
    asked = questions(ASKED, 100, zipf=None, shares=STANDARD, seed=1)
    assert len({question.text for question in asked}) == 100
    assert {question.text for question in asked[:30]} == {question.text for question in ASKED}
    assert "text 7 (2)" in {question.text for question in asked[30:60]}


def test_popular_texts_repeat() -> None:
    asked = questions(ASKED, 1000, zipf=1.0, shares=STANDARD, seed=1)
    assert Counter(question.text for question in asked).most_common(1)[0][1] > 100


def test_the_same_seed_asks_the_same() -> None:
    one, other, third = (questions(ASKED, 50, zipf=0.6, shares=STANDARD, seed=seed) for seed in (1, 1, 2))
    assert one == other != third


def test_a_mix_becomes_shares() -> None:
    assert parse_mix("standard=8, strict=1,eco=1") == {"standard": 0.8, "strict": 0.1, "eco": 0.1}


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ("cheap=1", "'cheap' is no class"),
        ("eco", "has no weight"),
        ("eco=-1,strict=2", "negative"),
        ("eco=0", "all 0"),
        ("eco=nan", "be numbers"),
        ("eco=1,eco=2", "stands there twice"),
    ],
)
def test_a_wrong_mix_is_named(mix: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_mix(mix)
