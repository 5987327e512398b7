"""Reads, computes and writes a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from energy.coefficients import load_coefficients
from energy.sci import assumed_hardware
from models.store import write_atomic
from models.urls import without_secrets
from server.report.errors import ReportError
from server.report.figures import Assumptions, Report, make_report
from server.report.pages import to_html, to_markdown
from server.report.prometheus import read_prometheus
from server.report.rows import Period, dumps, hour_at, read_folder

NAMES = ("report.html", "report.md", "report.json")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the user has to say, since no meter knows it; None takes what is assumed."""

    tariff_per_kwh: float
    currency: str
    embodied_kg: float | None = None
    lifespan_years: float | None = None
    resource_share: float = 1.0

    def assumptions(self, period: Period) -> Assumptions:
        """With the server's manufacture by the published model, from the memory that the totals name, where the user
        said nothing."""
        memory_gib = period.latest.memory_gib
        hardware = assumed_hardware(load_coefficients(), 1, memory_gib or 0.0, self.resource_share)
        if memory_gib is None:
            words = "the least memory of a server, since the totals do not say how much there is (see --embodied-kg)"
            hardware = replace(hardware, source=f"{hardware.source}; {words}")
        if self.embodied_kg is not None:
            hardware = replace(hardware, total_kg=self.embodied_kg, source="input (--embodied-kg)")
        if self.lifespan_years is not None:
            hardware = replace(hardware, lifespan_years=self.lifespan_years)
        return Assumptions(hardware, self.tariff_per_kwh, self.currency)


def read(folder: Path, prometheus: str | None, begin: str, end: str) -> Period:
    """The period's rows. Raises ReportError."""
    first, last = hour_at(begin), hour_at(end)
    if first >= last:
        raise ReportError(f"from {begin} to {end}: the end is not after the beginning; give an earlier --from")
    if prometheus is None:
        return Period.of(read_folder(folder, first, last), first, last, f"hourly totals of the node process ({folder})")
    origin = f"Prometheus ({without_secrets(prometheus)})"
    return Period.of(read_prometheus(prometheus, first, last), first, last, origin)


def write(report: Report, out: Path) -> list[Path]:
    """HTML, Markdown and JSON into a folder. Raises ReportError."""
    contents = (to_html(report).encode(), to_markdown(report).encode(), dumps(report.to_json()))
    paths = [out / name for name in NAMES]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, contents, strict=True):
            write_atomic(path, content)
    except OSError as error:
        raise ReportError(f"out: {out} cannot be written ({error.strerror}); give another folder") from None
    return paths


def run(folder: Path, prometheus: str | None, begin: str, end: str, inputs: Inputs, out: Path) -> Report:
    """All of it. Raises ReportError."""
    period = read(folder, prometheus, begin, end)
    report = make_report(period, inputs.assumptions(period))
    write(report, out)
    return report
