"""The built-in data set is large, reproducible, balanced, and not solved by counting words."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from compile.data.support_grammar import INTENTS, SENTENCE_FRAMES, TOPIC_FRAMES
from compile.data.support_intents import (
    HELD_OUT,
    SupportSettings,
    generate,
    intents,
)

SPLITS = generate()


def test_it_has_at_least_twenty_intents_and_four_thousand_distinct_sentences() -> None:
    sentences = [text for rows in SPLITS.values() for text, _ in rows]
    assert len(intents()) >= 20
    assert len(set(sentences)) == len(sentences) >= 4000


def test_the_same_seed_gives_the_same_sentences_and_another_seed_others() -> None:
    assert generate() == SPLITS
    other = generate(SupportSettings(seed=8))
    assert len({t for t, _ in other["train"]} & {t for t, _ in SPLITS["train"]}) < len(other["train"]) / 4


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_split_holds_every_intent_about_equally_often(split: str) -> None:
    counts = Counter(label for _, label in SPLITS[split])
    assert set(counts) == set(range(len(intents())))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_rows_are_not_sorted_by_label() -> None:
    labels = [label for _, label in SPLITS["train"]]
    assert sum(a <= b for a, b in itertools.pairwise(labels)) < 0.7 * len(labels)


def test_training_never_sees_the_held_out_templates() -> None:
    # Opening words without slots or choices tell a template apart, when nothing else starts with them.
    heads = [t.split("<")[0].split("(")[0].strip() for _, ts in INTENTS.values() for t in ts[-HELD_OUT:]]
    known = " | ".join(t for _, templates in INTENTS.values() for t in templates[:-HELD_OUT])
    telling = [head for head in heads if len(head.split()) >= 5 and head not in known]
    assert len(telling) >= 20
    training = " | ".join(text.lower() for text, _ in SPLITS["train"])
    assert [head for head in telling if head in training] == []
    testing = " | ".join(text.lower() for text, _ in SPLITS["test"])
    assert sum(head in testing for head in telling) > len(telling) / 2
    for frames in (TOPIC_FRAMES, SENTENCE_FRAMES):
        assert len(frames) > 2 * HELD_OUT


def test_templates_of_different_intents_differ() -> None:
    templates = [template for _, templates in INTENTS.values() for template in templates]
    assert len(set(templates)) == len(templates)


def test_counting_words_and_word_pairs_stays_at_or_below_85_percent() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")
    train_texts, train_labels = zip(*SPLITS["train"], strict=True)
    test_texts, test_labels = zip(*SPLITS["test"], strict=True)
    counter = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\b\w+\b")
    model = linear.LogisticRegression(C=10, max_iter=300).fit(counter.fit_transform(train_texts), train_labels)
    accuracy = model.score(counter.transform(test_texts), test_labels)
    assert 0.5 < accuracy <= 0.85
