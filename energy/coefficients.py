"""Reads `coefficients.yaml`: watts per virtual CPU and per GiB of memory, by CPU family, each with its
source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from energy.procfs import CpuModel

SECOND_HAND = "second-hand"
DEFAULT_PATH = Path(__file__).with_name("coefficients.yaml")
# libyaml's where PyYAML was built with it: the same safe subset, ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_EMBODIED_UNITS = {
    "base_kg": "kgCO2e",
    "processor_kg": "kgCO2e",
    "memory_kg_per_gib": "kgCO2e/GiB",
    "lifespan_years": "years",
    "relative_uncertainty": "ratio",
}


class CoefficientError(ValueError):
    """The coefficient table is wrong; the message names the field and the remedy."""


@dataclass(frozen=True, slots=True)
class CpuCoefficients:
    """Power of one CPU family, watts per virtual CPU (hardware thread), of the whole server without
    memory.
    """

    family: str
    min_watts: float
    """At no load."""
    max_watts: float
    """At full load."""
    source: str
    """Key into the table's `sources`."""

    @property
    def dynamic_watts(self) -> float:
        """Joules that a second of CPU time adds to idling."""
        return self.max_watts - self.min_watts


@dataclass(frozen=True, slots=True)
class _Row:
    coefficients: CpuCoefficients
    vendor: str
    cpu_family: int
    models: frozenset[int]
    steppings: frozenset[int]

    def matches(self, cpu: CpuModel) -> bool:
        return (
            cpu.vendor == self.vendor
            and cpu.family == self.cpu_family
            and cpu.model in self.models
            and (not self.steppings or cpu.stepping in self.steppings)
        )


@dataclass(frozen=True)
class Coefficients:
    """The whole table."""

    memory_watts_per_gib: float
    uncertainty: Mapping[str, float]
    """Half width of the error band as a share of the figure, by what was done to get it; see the table."""
    embodied: Mapping[str, float]
    """What manufacturing a server emits: base_kg, processor_kg, memory_kg_per_gib, lifespan_years,
    relative_uncertainty."""
    embodied_source: str
    default: CpuCoefficients
    rows: tuple[_Row, ...]
    sources: Mapping[str, str]
    """Key to a line that names the origin and its date, and says so if the figures are second-hand."""

    def for_cpu(self, cpu: CpuModel) -> CpuCoefficients:
        """The first row that matches, else the default."""
        return next((row.coefficients for row in self.rows if row.matches(cpu)), self.default)

    def for_family(self, name: str) -> CpuCoefficients:
        """The row called `name`. Raises CoefficientError with the names there are."""
        for row in self.rows:
            if row.coefficients.family == name:
                return row.coefficients
        known = ", ".join(sorted({row.coefficients.family for row in self.rows}))
        raise CoefficientError(f"cpu_family: {name!r} is not in the table; give one of {known}")


@cache
def load_coefficients(path: Path = DEFAULT_PATH) -> Coefficients:
    """Read and check the table. Raises CoefficientError."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        sources = {key: _source(row) for key, row in tree["sources"].items()}
        rows = tuple(_row(row) for row in tree["families"])
        table = Coefficients(
            memory_watts_per_gib=_number(tree["memory"]["watts_per_gib"], "memory.watts_per_gib", "W/GiB"),
            uncertainty={
                key: _number(entry, f"uncertainty.{key}", "ratio") for key, entry in tree["uncertainty"].items()
            },
            embodied={
                key: _number(entry, f"embodied.{key}", _EMBODIED_UNITS[key], below=1e6)
                for key, entry in tree["embodied"].items()
            },
            embodied_source=tree["embodied"]["base_kg"]["source"],
            default=_cpu(tree["default"]),
            rows=rows,
            sources=sources,
        )
        named = [tree["memory"]["watts_per_gib"]["source"]]
        named += [entry["source"] for part in ("uncertainty", "embodied") for entry in tree[part].values()]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise CoefficientError(f"{path}: not a coefficient table ({error!r}); restore it") from None
    named += [row.coefficients.source for row in rows] + [table.default.source]
    if strangers := sorted(set(named) - set(sources)):
        raise CoefficientError(f"{path}: source {strangers[0]!r} is not under 'sources'; add it there")
    return table


def _source(row: Mapping[str, Any]) -> str:
    return f"{row['name']} ({row['date']}{', second-hand' if row['checked'] == SECOND_HAND else ''})"


def _row(row: Mapping[str, Any]) -> _Row:
    return _Row(
        coefficients=_cpu(row),
        vendor=str(row["vendor"]),
        cpu_family=int(row["family"]),
        models=frozenset(row["models"]),
        steppings=frozenset(row.get("steppings", ())),
    )


def _cpu(row: Mapping[str, Any]) -> CpuCoefficients:
    name = str(row["name"])
    if row["unit"] != "W/vCPU":
        raise CoefficientError(f"{name}.unit: {row['unit']!r}; give watts per virtual CPU as W/vCPU")
    low, high = float(row["min_watts"]), float(row["max_watts"])
    if not 0 < low < high:
        raise CoefficientError(f"{name}: min_watts {low} and max_watts {high}; give 0 < min < max")
    return CpuCoefficients(name, low, high, str(row["source"]))


def _number(entry: Mapping[str, Any], field: str, unit: str, below: float = 1000) -> float:
    if entry["unit"] != unit:
        raise CoefficientError(f"{field}.unit: {entry['unit']!r}; give it in {unit}")
    value = float(entry["value"])
    if not 0 < value < below:
        raise CoefficientError(f"{field}.value: {value}; give a number above 0")
    return value
