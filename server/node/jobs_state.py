"""How the jobs stand, as their owner last wrote it to `jobs.json` in the run folder."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

FILE_NAME = "jobs.json"


@dataclass(frozen=True, slots=True)
class JobsState:
    """Open jobs by state; all else counts over all runs. The grams are those of the texts that were metered."""

    waiting: int
    running: int
    done: int
    cancelled: int
    late: int
    texts: int
    joules: float
    grams: float
    grams_at_once: float


def read_jobs_state(run_dir: Path) -> JobsState | None:
    """The state; None without a file, or if it cannot be understood."""
    path = run_dir / FILE_NAME
    try:
        tree = json.loads(path.read_bytes())
        return JobsState(
            *(int(tree[name]) for name in ("waiting", "running", "done", "cancelled", "late", "texts")),
            *(float(tree[name]) for name in ("joules", "grams", "grams_at_once")),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s ignored: %r", path, error)
        return None
