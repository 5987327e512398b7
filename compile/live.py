"""A run's progress on a terminal, with the time left; one line a finished pass everywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from compile.progress import Forecast, Work


@contextmanager
def watched(console: Console) -> Iterator[Live]:
    """A reporter (see `compile.runner.Reporter`) that draws on `console` until the end of the block."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        yield Live(console, progress)


class Live:
    """Tells of each pass as it goes."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._forecast = Forecast(time.monotonic)
        self._whole = progress.add_task("whole run", total=1.0, note="")
        self._task: TaskID | None = None

    def planned(self, works: Sequence[Work], past: Mapping[Work, float]) -> None:
        """The run will do these passes, and equal ones took so many seconds before."""
        self._forecast.planned(works, past)
        self._progress.update(self._whole, total=len(works))

    def started(self, label: str, pass_name: str) -> None:
        """A pass begins."""
        self._forecast.started((label, pass_name))
        self._task = self._progress.add_task(f"{label}: {pass_name}", total=1.0, note="")
        self._tell()

    def moved(self, share: float, note: str) -> None:
        """The running pass did `share` of its work."""
        self._forecast.moved(share)
        if self._task is not None:
            self._progress.update(self._task, completed=share, note=note)
        self._tell()

    def finished(self, label: str, pass_name: str, seconds: float, cached: bool) -> None:
        """The pass is done, or was found in the cache: one line that stays."""
        self._forecast.finished(seconds, cached)
        self._close()
        cost = "from the cache" if cached else f"{seconds:.1f} s"
        self._console.print(f"  {label:<14} {pass_name:<12} {cost}", highlight=False)

    def dropped(self, label: str, reason: str) -> None:
        """A variant met no gate: one line that stays, with the reason."""
        self._forecast.dropped(label)
        self._close()
        self._console.print(f"  {label:<14} left out: {reason}", style="yellow", soft_wrap=True, markup=False)

    def _close(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._tell()

    def _tell(self) -> None:
        note = f"pass {self._forecast.number} of {self._forecast.count}, {self._forecast.words()}"
        self._progress.update(self._whole, completed=self._forecast.number, note=note)
