"""Drives the hourly totals: closes hours by the clock, hands their lines to the files, keeps the open one readable."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from server.node.hours import HOUR_S, Counters, HourBook, HourFiles, hour_of

log = logging.getLogger(__name__)

OPEN_EVERY_S = 60.0


class HourKeeper:
    """Owns the open hour. `counters` and `describe` are asked only when a line is made, once a minute."""

    def __init__(
        self,
        book: HourBook,
        files: HourFiles,
        counters: Callable[[], Counters],
        describe: Callable[[], Mapping[str, Any]],
        write: Callable[[Path, bytes], None],
    ) -> None:
        """`write` replaces a file atomically."""
        self.book = book
        self._files = files
        self._counters = counters
        self._describe = describe
        self._write = write
        self._since_open_s = OPEN_EVERY_S
        self._index = -1

    def resume(self) -> None:
        """Append what an earlier process left, and number what comes so that it is none of the lines in the files: a
        book may know nothing of them. The hour that a lost book had open is closed as it was last shown."""
        with contextlib.suppress(OSError):  # `flush` meets it again, and says so
            if not self.book.hour:
                self.book.unwritten = self._files.left_open()
            last = max([self._files.last_number(), *(line["number"] for line in self.book.unwritten)])
            self.book.number = max(self.book.number, last + 1)
        self.flush()

    def pass_time(self, now_s: float, seconds: float, grams_per_kwh: float | None, kind: str) -> bool:
        """Some time was metered; True if that closed an hour, which is to be persisted and then flushed.

        That time belongs to the hour that is open, as what was drawn in it does, which was counted before.
        """
        closed = False
        self.book.pass_time(seconds, grams_per_kwh, kind)
        # Names of hours cost too much to be made every second.
        if (index := int(now_s // HOUR_S)) != self._index:
            self._index = index
            closed = self._enter(hour_of(now_s))
        self._since_open_s += seconds
        if closed or self._since_open_s >= OPEN_EVERY_S:
            self.show()
        return closed

    def _enter(self, hour: str) -> bool:
        """Begin an hour; True if that closed another one."""
        if not self.book.hour:
            self.book.begin(hour, self._counters())
            return False
        if hour == self.book.hour:
            return False  # a restart within the hour
        self.book.roll(hour, self._counters(), self._describe())
        return True

    def show(self) -> None:
        """Write the open hour's line as it is now."""
        self._since_open_s = 0.0
        try:
            self._files.write_open(self.book.line(self._counters(), self._describe()), self._write)
        except OSError as error:
            log.warning("%s: the open hour cannot be written: %s", self._files.folder, error)

    def flush(self) -> None:
        """Append closed hours to their file; what cannot be written is tried again with the next hour."""
        try:
            self._files.append(self.book.unwritten)
        except OSError as error:
            log.error("%s: an hour cannot be written: %s", self._files.folder, error)
        else:
            self.book.unwritten = []
