"""What the meter costs: the process that is stopped for the measurement goes on, whatever ends it."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

STOPPING = """
import sys, uvloop
from loadtest.meter_cost import moments
from loadtest.served import interruptible
with interruptible():
    uvloop.run(moments(int(sys.argv[1]), 10))
"""


def until(process: psutil.Process, stopped: bool) -> None:
    deadline = time.monotonic() + 30
    while (process.status() == psutil.STATUS_STOPPED) is not stopped:
        assert time.monotonic() < deadline, process.status()
        time.sleep(0.01)


def test_a_measurement_that_is_ended_by_sigterm_leaves_nobody_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as metered:
        try:
            run = subprocess.Popen([sys.executable, "-c", STOPPING, str(metered.pid)], stderr=subprocess.PIPE)
            until(psutil.Process(metered.pid), stopped=True)
            run.terminate()
            said = run.communicate(timeout=30)[1]
            assert b"KeyboardInterrupt" in said
            until(psutil.Process(metered.pid), stopped=False)
        finally:
            metered.kill()
