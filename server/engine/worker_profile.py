"""How many batches to run at once, found by trying: as many as cores is not best where two of them share one.

Each run has one thread. (One run of two threads was measured at 1.3 times the CPU time of two runs of one thread at
once, and its cost cannot be shared out among the texts by a thread's clock.)
"""

from __future__ import annotations

import hashlib
import json
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime

from models.store import write_atomic
from server.engine.family import Family
from server.engine.tokenizer import Text, Tokens

# Together at most about a second, so that it may be done while nobody asks for anything.
MAX_TRIALS = 4
TRIAL_S = 0.2
ROWS = 8
# The fewest workers that reach this share of the best throughput: more of them only take time from each other.
ENOUGH = 0.95
# Share of the CPU time to be had that the trials must get. Less, and other programs were measured along with us: a busy
# neighbour makes two workers look worse than one.
LEAST_SHARE = 0.9
FILE = "workers.json"


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """`workers` is the choice, `texts_per_second` what was measured by number of workers; `machine` names where."""

    workers: int
    texts_per_second: dict[int, float]
    machine: str


def default_workers(cores: float) -> int:
    """What is used until something was measured: one for each core."""
    return max(1, round(cores))


def trials(cores: float) -> list[int]:
    """The numbers of workers to try, rising."""
    most = max(1, -int(-cores // 1))
    return sorted({max(1, round(most * part / MAX_TRIALS)) for part in range(1, MAX_TRIALS + 1)})


def choose(texts_per_second: dict[int, float]) -> int:
    """The fewest workers whose throughput is near the best."""
    best = max(texts_per_second.values())
    return min(workers for workers, rate in texts_per_second.items() if rate >= ENOUGH * best)


def measure_workers(
    family: Family,
    cores: float,
    machine: str,
    interrupted: Callable[[], bool] = lambda: False,
    least_share: float = LEAST_SHARE,
) -> WorkerProfile | None:
    """Try the numbers of workers on batches of ordinary texts; None if the machine was not free for it: `interrupted`
    meanwhile, or with less than `least_share` of the CPU time. Takes up to about a second of all cores."""
    variant = family.points[0].variant
    words = "a question of ordinary length about an order"
    text = Text(words, words if family.manifest.pair else None)
    batch = [family.tokenizer.encode(text, truncate="right")] * ROWS
    rates: dict[int, float] = {}
    for workers in trials(cores):
        rates[workers], cpu_share = _rate(family, variant, batch, workers)
        if interrupted() or cpu_share * workers < least_share * min(workers, cores):
            return None
    return WorkerProfile(choose(rates), rates, machine)


def _rate(family: Family, variant: str, batch: list[Tokens], workers: int) -> tuple[float, float]:
    """Texts a second with so many threads, and the CPU time that they got as a share of the time it took."""
    runtime = family.runtimes[variant]
    done = [0] * workers
    ends_s = time.monotonic() + TRIAL_S

    def work(number: int) -> None:
        while time.monotonic() < ends_s:
            runtime.run(batch)
            done[number] += 1

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(workers)]
    started_s, cpu_before_s = time.monotonic(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.monotonic() - started_s
    return sum(done) * len(batch) / wall_s, (time.process_time() - cpu_before_s) / wall_s / workers


def machine_of(family: Family, cores: float, cpu_model: str) -> str:
    """What a profile depends on: processor, cores, the model's files, the runtime's version."""
    files = "+".join(variant.model.sha256 for variant in family.manifest.variants)
    words = (cpu_model, f"{cores:g}", files, onnxruntime.__version__, platform.machine())
    return hashlib.sha256("|".join(words).encode()).hexdigest()[:32]


def load_profile(folder: Path, machine: str) -> WorkerProfile | None:
    """The profile kept in the folder, if it is one and was taken on this machine with this model."""
    try:
        tree = json.loads((folder / FILE).read_bytes())
        rates = {int(workers): float(rate) for workers, rate in tree["texts_per_second"].items()}
        profile = WorkerProfile(int(tree["workers"]), rates, str(tree["machine"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return profile if profile.machine == machine and profile.workers in profile.texts_per_second else None


def save_profile(folder: Path, profile: WorkerProfile) -> None:
    """Keep it for the next start."""
    write_atomic(folder / FILE, json.dumps(asdict(profile), indent=1).encode())
