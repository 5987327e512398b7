"""What compiling the served family took, as the server writes it to `model.json` in the run folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

FILE_NAME = "model.json"
MAX_VARIANTS = 64


@dataclass(frozen=True, slots=True)
class CompileCost:
    """Of one variant; what was not measured is None."""

    model: str
    variant: str
    joules: float | None
    cpu_seconds: float | None
    source: str | None
    relative_uncertainty: float | None


def encode_costs(costs: Iterable[CompileCost]) -> bytes:
    """The file's content."""
    return json.dumps([asdict(cost) for cost in costs]).encode()


def parse_costs(data: bytes) -> tuple[CompileCost, ...]:
    """Parse the file. Raises ValueError."""
    try:
        return tuple(
            CompileCost(
                str(row["model"])[:64],
                str(row["variant"])[:64],
                _figure(row["joules"]),
                _figure(row["cpu_seconds"]),
                None if row["source"] is None else str(row["source"]),
                _figure(row["relative_uncertainty"]),
            )
            for row in json.loads(data)[:MAX_VARIANTS]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{FILE_NAME}: {error!r}") from None


def _figure(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{FILE_NAME}: {value!r} is no amount")
    return float(value)


class ModelFile:
    """Follows the file; reads it again only when it was replaced."""

    def __init__(self, run_dir: Path) -> None:
        """Nothing is read before `costs`."""
        self._path = str(run_dir / FILE_NAME)
        self._seen: tuple[int, int] | None = None
        self._costs: tuple[CompileCost, ...] = ()

    def costs(self) -> tuple[CompileCost, ...]:
        """The costs in force; none without a file. One that cannot be understood leaves them as they were."""
        try:
            stat = os.stat(self._path)
        except OSError:
            return self._costs
        if (stat.st_mtime_ns, stat.st_ino) != self._seen:
            self._seen = (stat.st_mtime_ns, stat.st_ino)
            try:
                self._costs = parse_costs(Path(self._path).read_bytes())
            except (OSError, ValueError) as error:
                log.warning("%s ignored: %s", self._path, error)
        return self._costs
