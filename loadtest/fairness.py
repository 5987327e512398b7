"""Is a text's share of its batch fair? Shares by the cost weight, and by plain token count, against Shapley values.

    python -m loadtest.fairness [--store var/store] [--batches 12] [--out loadtest/results/fairness.json]

The cost of a batch is a game: what does each text owe of it? The Shapley value is the one division that is efficient,
symmetric, additive and free of charge for who costs nothing (Shapley 1953); it needs the cost of every subset. So every
subset of real batches is run through the published graphs, one thread, least CPU time of several repeats in turns, and
the exact value of each text is set beside what the server charges it. Half of the batches are of neighbours in length,
as the server forms them, half of whatever comes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.demo_family import FAMILY, compile_demo_family
from loadtest.texts import read_questions
from models.store import Store, write_atomic
from server.engine.family import Family, load_family
from server.engine.runs import split
from server.engine.tokenizer import Text, Tokens

ROWS = 6
REPEATS = 7
TARGETS = {"median": 0.10, "p95": 0.25}
_SCALE = 1_000_000

Costs = Mapping[frozenset[int], float]


def shapley(costs: Costs, players: int) -> list[float]:
    """Exact Shapley values of a cost game; `costs` has every subset of `range(players)`, the empty one at 0."""
    values = []
    for player in range(players):
        others = [one for one in range(players) if one != player]
        value = 0.0
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for coalition in itertools.combinations(others, size):
                without = frozenset(coalition)
                value += weight * (costs[without | {player}] - costs[without])
        values.append(value)
    return values


def measure(run: Callable[[Sequence[Tokens]], object], batch: Sequence[Tokens], repeats: int) -> Costs:
    """CPU seconds of every subset of a batch, the least of `repeats`; the subsets take turns."""
    subsets = [
        frozenset(one) for size in range(1, len(batch) + 1) for one in itertools.combinations(range(len(batch)), size)
    ]
    least: dict[frozenset[int], float] = {frozenset(): 0.0}
    for _ in range(repeats):
        for subset in subsets:
            rows = [batch[index] for index in sorted(subset)]
            began = time.thread_time()
            run(rows)
            spent = time.thread_time() - began
            least[subset] = min(least.get(subset, math.inf), spent)
    return least


@dataclass(frozen=True, slots=True)
class Judged:
    """Errors of one text's shares, as shares of its Shapley value."""

    variant: str
    formed: str
    by_weight: float
    by_tokens: float


def judge(family: Family, variant: str, formed: str, batch: Sequence[Tokens]) -> list[Judged]:
    """Measure one batch."""
    costs = measure(family.runtimes[variant].run, batch, REPEATS)
    values = shapley(costs, len(batch))
    total = costs[frozenset(range(len(batch)))]
    lengths = [len(tokens.ids) for tokens in batch]
    charged = [
        part / _SCALE for part in split(round(total * _SCALE * 1000), [family.weight(variant, n) for n in lengths])
    ]
    tokens = [total * 1000 * length / sum(lengths) for length in lengths]
    return [
        Judged(variant, formed, abs(c - v * 1000) / (v * 1000), abs(t - v * 1000) / (v * 1000))
        for c, t, v in zip(charged, tokens, values, strict=True)
        if v > 0
    ]


def batches(family: Family, texts: Sequence[str], count: int, seed: int) -> list[tuple[str, list[Tokens]]]:
    """Batches of ROWS texts: neighbours in length among those that wait together, or as they come."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        waiting = [family.tokenizer.encode(Text(text), truncate="right") for text in chance.sample(texts, 3 * ROWS)]
        if number % 2:
            made.append(("as they come", waiting[:ROWS]))
        else:
            begin = chance.randrange(3) * ROWS
            made.append(("neighbours in length", sorted(waiting, key=lambda one: len(one.ids))[begin : begin + ROWS]))
    return made


def summary(errors: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    ordered = sorted(errors)
    return {
        "median": round(statistics.median(ordered), 4),
        "p95": round(ordered[min(math.ceil(0.95 * len(ordered)) - 1, len(ordered) - 1)], 4),
    }


def results(judged: Sequence[Judged]) -> dict[str, object]:
    """Everything as plain figures: over all, by variant and by how the batches were formed."""

    def pair(rows: Sequence[Judged]) -> dict[str, object]:
        return {
            "texts": len(rows),
            "by weight": summary([one.by_weight for one in rows]),
            "by tokens": summary([one.by_tokens for one in rows]),
        }

    groups = {"all": list(judged)}
    for one in judged:
        groups.setdefault(one.variant, []).append(one)
        groups.setdefault(one.formed, []).append(one)
    return {name: pair(rows) for name, rows in groups.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--questions", type=Path, default=Path("var/fairness-questions.csv"))
    parser.add_argument("--batches", type=int, default=12, help="batches per variant")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("loadtest/results/fairness.json"))
    given = parser.parse_args()
    if not given.questions.is_file():
        compile_demo_family(given.store, given.questions)
    texts = [question.text for question in read_questions(given.questions)]
    store = Store(given.store)
    version = store.open(FAMILY, store.current(FAMILY))
    family = load_family(version)
    judged: list[Judged] = []
    for number, (formed, batch) in enumerate(batches(family, texts, given.batches, given.seed)):
        for variant in family.runtimes:
            judged += judge(family, variant, formed, batch)
        print(f"batch {number + 1} of {given.batches}", file=sys.stderr)
    found = results(judged)
    overall = summary([one.by_weight for one in judged])
    met = {name: overall[name] <= bound for name, bound in TARGETS.items()}
    tree = {
        "command": f"python -m loadtest.fairness --batches {given.batches} --seed {given.seed}",
        "cpu": version.manifest.target_cpu.model,
        "rows": ROWS,
        "repeats": REPEATS,
        "targets": TARGETS,
        "met": met,
        **found,
    }
    write_atomic(given.out, json.dumps(tree, indent=1).encode() + b"\n")
    print(f"{'':22} {'texts':>5}  by cost weight (median, p95)   by tokens (median, p95)")
    for name, row in found.items():
        w, t = row["by weight"], row["by tokens"]  # type: ignore[index]
        print(f"{name:22} {row['texts']:5}  {w['median']:10.1%} {w['p95']:10.1%} {t['median']:17.1%} {t['p95']:9.1%}")  # type: ignore[index]
    print(f"written to {given.out}; targets {'met' if all(met.values()) else f'MISSED: {met}'}")
    raise SystemExit(0 if all(met.values()) else 1)


if __name__ == "__main__":
    main()
