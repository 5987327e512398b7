"""Made courses of load, from a seed: no recording is behind them. Each is a list of relative rates, for equal steps
that together fill the run. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

DAY_STEPS = 288
"""Five minutes of a day each."""
DAY_SWING = 0.7
"""The sine's amplitude, as a share of the mean: the busiest hour has nearly six times the quietest one's requests."""
QUIETEST_HOUR = 4.0
NOISE, NOISE_KEPT = 0.1, 0.8
"""Standard deviation of the noise's logarithm, and what of it lasts from a step to the next."""

BURST_STEPS = 1800
BURST_MEAN_STEPS = 4.0
LEVEL_SIGMA = 1.0
"""Standard deviation of the logarithm of a step's rate within a burst."""
SILENCE_TAIL, SHORTEST_SILENCE_STEPS, LONGEST_SILENCE_STEPS = 1.2, 5.0, 180
"""Pareto exponent of the silences: below 2, so that a few long ones make up much of the time. The cap, a tenth of the
run, leaves bursts in every run."""


def diurnal(chance: random.Random) -> list[float]:
    """A day from midnight: a sine with its trough at 04:00 and its peak at 16:00, times log-normal AR(1) noise."""
    rates = []
    noise = chance.gauss(0.0, NOISE)
    for step in range(DAY_STEPS):
        hour = 24 * (step + 0.5) / DAY_STEPS
        sine = 1 - DAY_SWING * math.cos(2 * math.pi * (hour - QUIETEST_HOUR) / 24)
        rates.append(sine * math.exp(noise))
        noise = NOISE_KEPT * noise + math.sqrt(1 - NOISE_KEPT**2) * chance.gauss(0.0, NOISE)
    return rates


def bursty(chance: random.Random) -> list[float]:
    """Silences of Pareto length, between them bursts of exponential length whose rate is log-normal, drawn anew for
    each step. With Poisson requests at that rate this is a doubly stochastic (Cox) process."""
    rates: list[float] = []
    while len(rates) < BURST_STEPS:
        silence = SHORTEST_SILENCE_STEPS * chance.paretovariate(SILENCE_TAIL)
        rates += [0.0] * round(min(silence, LONGEST_SILENCE_STEPS))
        burst = math.ceil(chance.expovariate(1 / BURST_MEAN_STEPS))
        rates += [chance.lognormvariate(0.0, LEVEL_SIGMA) for _ in range(burst)]
    return rates[:BURST_STEPS]


SYNTHETIC: dict[str, Callable[[random.Random], list[float]]] = {"diurnal": diurnal, "bursty": bursty}
