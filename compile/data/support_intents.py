"""A seeded generator of customer-support intents, the demo's labelled text set.

Each sentence is a core (a template of its intent, filled), maybe inside a frame that mentions another intent which
is *not* meant, with an opener, a closer and typing noise. Word counts alone do not solve it: neighbouring intents
share their words, and frames bring in the words of a wrong intent.

Splits: the last two templates of every intent and the last two frames never occur in training or validation. Half
of the test sentences are made of those; the other half are new fillings of templates that training has seen.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from compile.data.support_grammar import CLOSERS, INTENTS, OPENERS, SENTENCE_FRAMES, SLOTS, TOPIC_FRAMES

HELD_OUT_TEMPLATES = 2
HELD_OUT_FRAMES = 2
UNSEEN_EVERY = 10
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT = re.compile(r"<([a-z]+)(\d?)>")
_SHORTHAND = {"please": "pls", "you": "u", "thanks": "thx", "because": "cuz", "and": "&", "are": "r"}
_CONTRACTIONS = {"do not": "don't", "did not": "didn't", "cannot": "can't", "has not": "hasn't", "i am": "i'm"}
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class SupportSettings:
    """Size and difficulty of the set; every rate is a probability per sentence."""

    seed: int = 7
    train_rows: int = 2240
    validation_rows: int = 560
    test_rows: int = 1232
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
        held_out = split == "test" and (len(made) // len(names)) % UNSEEN_EVERY == 0
        for _ in range(200):
            text = _sentence(rng, names[label], held_out, settings)
            if text not in seen:
                break
        else:
            raise ValueError(f"support-intents: '{names[label]}' has too few distinct sentences for {rows} rows")
        seen.add(text)
        made.append((text, label))
    rng.shuffle(made)
    return made


def _sentence(rng: random.Random, intent: str, held_out: bool, settings: SupportSettings) -> str:
    templates = INTENTS[intent][1]
    pool = templates[-HELD_OUT_TEMPLATES:] if held_out else templates[:-HELD_OUT_TEMPLATES]
    text = _fill(rng, rng.choice(pool))
    if rng.random() < settings.frame_rate:
        other = rng.choice([name for name in INTENTS if name != intent])
        text = _framed(rng, text, other, held_out)
    if rng.random() < settings.opener_rate:
        text = f"{rng.choice(OPENERS)} {text}"
    if rng.random() < settings.closer_rate:
        text = f"{text}{rng.choice(('.', ',', '!', ' -'))} {rng.choice(CLOSERS)}"
    return _noise(rng, text, settings.typo_rate)


def _framed(rng: random.Random, core: str, other: str, held_out: bool) -> str:
    """Put `core` into a frame that mentions the intent `other`, by its topic or by a whole sentence."""
    topics, templates = INTENTS[other]
    whole = rng.random() < 0.5
    frames = SENTENCE_FRAMES if whole else TOPIC_FRAMES
    frames = frames[-HELD_OUT_FRAMES:] if held_out else frames[:-HELD_OUT_FRAMES]
    mention = _fill(rng, rng.choice(templates[:-HELD_OUT_TEMPLATES])) if whole else rng.choice(topics)
    return rng.choice(frames).format(other=mention, core=core)


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
