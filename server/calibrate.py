"""`jouleserve calibrate`: put the machine under known loads, and take the watts that a reference shows at each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from energy.calibration import Calibration, CalibrationError
from energy.procfs import CpuClock
from models.store import write_atomic

DEFAULT_LOADS = (0.0, 0.1, 0.5, 1.0)
SETTLE_SECONDS = 3.0
"""Fans and clocks follow a new load within seconds; only what comes after is measured."""
COMMAND_TIMEOUT_S = 10.0
LOAD_TOLERANCE = 0.1
_SAMPLE_SECONDS = 1.0
_STOP_SECONDS = 5.0
# Owes CPU time for each moment that passed and pays it every 20 ms: a late wake-up is made up for, and so is another
# program's turn, but for what is more than half a second behind.
_BURN = """
import sys, time
share = float(sys.argv[1])
began, paid = time.monotonic(), time.process_time()
while True:
    owed = paid + share * (time.monotonic() - began)
    paid += max(0.0, owed - time.process_time() - 0.5)
    while time.process_time() < owed:
        pass
    time.sleep(0.02)
"""

Say = Callable[[str], None]
Watts = Callable[[float, float], float]
"""Mean watts over the next so many seconds, at a load that is being kept (load, seconds)."""


def pairs_of(words: Sequence[str]) -> list[tuple[float, float]]:
    """`["0=38", "0.5=61"]` as loads and watts. Raises CalibrationError."""
    pairs = []
    for word in words:
        load, _, watts = word.partition("=")
        try:
            pairs.append((float(load), float(watts)))
        except ValueError:
            raise CalibrationError(f"--watts: {word!r} is not LOAD=WATTS; write for example 0.5=61.2") from None
    return pairs


@contextmanager
def burning(load: float, cpus: int) -> Iterator[None]:
    """Keep every processor busy for `load` of the time."""
    command = [sys.executable, "-c", _BURN, str(load)]
    burners = [subprocess.Popen(command) for _ in range(cpus if load > 0 else 0)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
        for burner in burners:
            burner.wait(_STOP_SECONDS)


def watts_by_command(command: str) -> Watts:
    """Ask a command of the user's, which prints the watts of that moment, once a second."""

    def mean(load: float, seconds: float) -> float:
        shown: list[float] = []
        deadline = time.monotonic() + seconds
        while not shown or time.monotonic() < deadline:
            shown.append(_ask(command))
            time.sleep(_SAMPLE_SECONDS)
        return sum(shown) / len(shown)

    return mean


def _ask(command: str) -> float:
    try:
        # The user's own command line, with their own rights, as typed.
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        return float(done.stdout.strip())
    except subprocess.TimeoutExpired:
        raise CalibrationError(f"watts_command: no answer within {COMMAND_TIMEOUT_S:g} s; try it by hand") from None
    except ValueError:
        said = (done.stdout or done.stderr).strip()[:80]
        raise CalibrationError(f"watts_command: {said!r} is no number; it must print watts and nothing else") from None


def measure(loads: Sequence[float], seconds: float, watts: Watts, say: Say, *, cpus: int) -> list[tuple[float, float]]:
    """Loads as they really were, and the reference's watts at each. Raises CalibrationError."""
    pairs = []
    for wanted in loads:
        with burning(wanted, cpus):
            time.sleep(SETTLE_SECONDS)
            clock = CpuClock()
            shown = watts(wanted, seconds)
            clock.sample()
        load = clock.busy_ns / clock.elapsed_ns if clock.elapsed_ns else wanted
        if abs(load - wanted) > LOAD_TOLERANCE:
            raise CalibrationError(
                f"load: the processors were busy for {load:.0%} of the time where {wanted:.0%} was wanted; stop what"
                " else runs on this machine and calibrate again"
            )
        say(f"load {load:6.1%} (wanted {wanted:.0%}): {shown:.1f} W")
        pairs.append((round(min(load, 1.0), 4), round(shown, 2)))
    return pairs


def write(pairs: Sequence[tuple[float, float]], reference: str, uncertainty: float, out: Path) -> Calibration:
    """Check the points and write the file. Raises CalibrationError."""
    today = datetime.now(UTC).date().isoformat()
    calibration = Calibration.of(pairs, reference=reference, date=today, reference_uncertainty=uncertainty)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json.dumps(calibration.to_json(), indent=1).encode() + b"\n")
    return calibration
