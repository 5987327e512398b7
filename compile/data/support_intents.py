"""A seeded generator of customer-support intents, the demo's labelled text set.

Each sentence is a core (a template of its intent, filled), maybe inside a frame that mentions another intent which
is *not* meant, with an opener, a closer and typing noise. Word counts alone do not solve it: neighbouring intents
share their words, and frames bring in the words of a wrong intent.

Splits: training never sees the last two templates of an intent, nor the last two frames of each kind. One in ten
validation and test sentences is made of those (validation of the first of the two alone); the others are new fillings
of templates that training has seen.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from compile.data.support_grammar import CLOSERS, INTENTS, OPENERS, SENTENCE_FRAMES, SLOTS, TOPIC_FRAMES

HELD_OUT = 2
"""So many templates of each intent, and frames of each kind, are kept from training."""
UNSEEN_EVERY = 10
_SEEN = slice(None, -HELD_OUT)
# What a split's unseen sentences are made of.
_UNSEEN = {"train": _SEEN, "validation": slice(-HELD_OUT, -HELD_OUT + 1), "test": slice(-HELD_OUT, None)}
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT = re.compile(r"<([a-z]+)(\d?)>")
_SHORTHAND = {"please": "pls", "you": "u", "thanks": "thx", "because": "cuz", "and": "&", "are": "r"}
_CONTRACTIONS = {"do not": "don't", "did not": "didn't", "cannot": "can't", "has not": "hasn't", "i am": "i'm"}
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class SupportSettings:
    """Size and difficulty of the set; every rate is a probability per sentence."""

    seed: int = 7
    train_rows: int = 2100
    validation_rows: int = 392
    test_rows: int = 1512
    frame_rate: float = 0.45
    opener_rate: float = 0.2
    closer_rate: float = 0.2
    typo_rate: float = 0.2


def intents() -> tuple[str, ...]:
    """Label names in label-number order."""
    return tuple(INTENTS)


def generate(settings: SupportSettings | None = None) -> dict[str, list[tuple[str, int]]]:
    """Make the `train`, `validation` and `test` splits: lists of (sentence, label number), all sentences distinct.

    The same settings give the same sentences on every machine.
    """
    chosen = settings or SupportSettings()
    seen: set[str] = set()
    sizes = {"train": chosen.train_rows, "validation": chosen.validation_rows, "test": chosen.test_rows}
    return {split: _split(split, rows, chosen, seen) for split, rows in sizes.items()}


def _split(split: str, rows: int, settings: SupportSettings, seen: set[str]) -> list[tuple[str, int]]:
    rng = random.Random(f"{settings.seed}/{split}")
    names = intents()
    made: list[tuple[str, int]] = []
    while len(made) < rows:
        label = len(made) % len(names)
        unseen = _UNSEEN[split] if (len(made) // len(names)) % UNSEEN_EVERY == 0 else _SEEN
        for _ in range(200):
            text = _sentence(rng, names[label], unseen, settings)
            if text not in seen:
                break
        else:
            raise ValueError(f"support-intents: '{names[label]}' has too few distinct sentences for {rows} rows")
        seen.add(text)
        made.append((text, label))
    rng.shuffle(made)
    return made


def _sentence(rng: random.Random, intent: str, part: slice, settings: SupportSettings) -> str:
    """A sentence of an intent; `part` says which of its templates, and which frames, may be used."""
    text = _fill(rng, rng.choice(INTENTS[intent][1][part]))
    if rng.random() < settings.frame_rate:
        other = rng.choice([name for name in INTENTS if name != intent])
        text = _framed(rng, text, other, part)
    if rng.random() < settings.opener_rate:
        text = f"{rng.choice(OPENERS)} {text}"
    if rng.random() < settings.closer_rate:
        text = f"{text}{rng.choice(('.', ',', '!', ' -'))} {rng.choice(CLOSERS)}"
    return _noise(rng, text, settings.typo_rate)


def _framed(rng: random.Random, core: str, other: str, part: slice) -> str:
    """Put `core` into a frame that mentions the intent `other`, by its topic or by a whole sentence."""
    topics, templates = INTENTS[other]
    whole = rng.random() < 0.5
    frames = SENTENCE_FRAMES if whole else TOPIC_FRAMES
    mention = _fill(rng, rng.choice(templates[_SEEN])) if whole else rng.choice(topics)
    return rng.choice(frames[part]).format(other=mention, core=core)


def _fill(rng: random.Random, template: str) -> str:
    text = template
    while match := _CHOICE.search(text):
        text = text[: match.start()] + rng.choice(match[1].split("|")) + text[match.end() :]
    used: dict[str, str] = {}

    def slot(match: re.Match[str]) -> str:
        key = match[1] + match[2]
        if key not in used:
            used[key] = rng.choice([word for word in SLOTS[match[1]] if word not in used.values()])
        return used[key]

    return re.sub(r"\s+", " ", _SLOT.sub(slot, text)).replace(" ,", ",").strip()


def _noise(rng: random.Random, text: str, typo_rate: float) -> str:
    if rng.random() < 0.5:
        for long, short in _CONTRACTIONS.items():
            text = re.sub(rf"\b{long}\b", short, text)
    if rng.random() < 0.12:
        text = " ".join(_SHORTHAND.get(word, word) for word in text.split(" "))
    if rng.random() < 0.35:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.2:
        text = re.sub(r"[,.:!]", "", text)
    if rng.random() < 0.25:
        text += rng.choice(("!", "?", "...", "??", "."))
    if rng.random() < typo_rate:
        text = _typo(rng, text)
    return text


def _typo(rng: random.Random, text: str) -> str:
    """Change one letter inside a word of five letters or more: swapped, dropped, doubled or a neighbouring key."""
    spots = [m.start() + i for m in re.finditer(r"[a-z]{5,}", text) for i in range(1, len(m[0]) - 1)]
    if not spots:
        return text
    at = rng.choice(spots)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[: at + 1] + text[at:]
    row = next(keys for keys in _KEYS if text[at] in keys)
    neighbour = row[(row.index(text[at]) + 1) % len(row)]
    return text[:at] + neighbour + text[at + 1 :]
