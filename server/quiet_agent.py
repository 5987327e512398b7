"""Stands in for Ray's dashboard agent where there is no dashboard: says that nothing is on offer, then waits.

Ray's own agent collects statistics that nobody reads here, at about 0.3 CPU-seconds a minute and 80 MiB, and imports
for seconds at the start. Ray's raylet starts this one instead (see `server.lean_ray`), waits for the port files, and
ends when its agent does. Imports nothing of Ray: that alone would cost more than all it does.
"""

from __future__ import annotations

import argparse
import os
import select
from collections.abc import Sequence
from pathlib import Path

SERVICES = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
NOT_OFFERED = "-1"


def announce(session_dir: Path, node_id: str) -> None:
    """Write the port files that the raylet waits for, each with what Ray's minimal agent writes."""
    for service in SERVICES:
        target = session_dir / f"{service}_{node_id}"
        new = target.with_name(f"{target.name}.new")
        new.write_text(NOT_OFFERED)
        new.replace(target)


def wait_for_end_of(pid: int) -> None:
    """Sleep until that process ends; costs nothing meanwhile."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    waiting.poll()
    os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: takes of the dashboard agent's arguments what it needs, and ignores the rest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--session-dir", type=Path, required=True)
    parser.add_argument("--node-id", required=True)
    given, _ = parser.parse_known_args(arguments)
    raylet = os.getppid()
    announce(given.session_dir, given.node_id)
    wait_for_end_of(raylet)


if __name__ == "__main__":
    main()
