"""One run with locust: clients, the marks that are read beside them, and the report.

Importing this module makes the process gevent's (locust patches sockets): only who runs a load imports it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from locust import User
from locust.env import Environment
from locust.html import get_html_report
from locust.stats import stats_history

# locust first: it patches what the others import.
from gevent import Greenlet, signal_handler, sleep, spawn  # isort: skip
from gevent.event import Event  # isort: skip
from httpx import HTTPError  # isort: skip

from loadtest.client import Question
from loadtest.demo_tables import Reading, read_metrics
from loadtest.load.figures import Mark, mark, run_figures, slices
from loadtest.load.plan import Plan
from loadtest.load.report import markdown
from loadtest.load.users import TIMEOUT_S, GrpcAsker, HttpAsker, PlannedArrivals, open_channel
from models.store import write_atomic

START_S = 30.0
"""What locust may take to have its clients."""
SETTLE_S = 2.5
"""The node process settles a request within two ticks."""
WEB_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Target:
    """What is asked."""

    url: str
    metrics_url: str
    grpc: str | None = None
    """HOST:PORT; None asks over HTTP."""


@dataclass(frozen=True)
class PlanWords:
    """How the plan was made: what the report says of it, and what two runs must have in common to be compared."""

    arrivals: str
    seconds: float
    rate_per_s: float
    seed: int
    zipf: float | None
    mix: dict[str, float]
    texts: str
    clients: int
    protocol: str


class Session:
    """Runs a plan against a target, once or (by locust's page) as often as somebody starts it."""

    def __init__(
        self,
        target: Target,
        words: PlanWords,
        times_s: list[float],
        asked: list[Question],
        out: Path,
        say: Callable[[str], None],
        slice_s: float = 10.0,
    ) -> None:
        """`out` is the folder that the report is written to."""
        self._target, self._words, self._out, self._say, self._slice_s = target, words, out, say, slice_s
        self._plan = Plan(times_s, asked, words.clients)
        self._marks: list[Mark] = []
        self._reading: Reading | None = None
        self._sampler: Greenlet | None = None
        self._environment = Environment(
            user_classes=[self._user_class()],
            shape_class=PlannedArrivals(self._plan),
            host=target.url,
            locustfile=f"{words.arrivals} arrivals over {words.protocol}; joules stand in report.md",
        )
        spawn(stats_history, self._environment.create_local_runner())  # the curves of locust's report
        events = self._environment.events
        events.test_start.add_listener(lambda **_: self._begin())
        events.spawning_complete.add_listener(lambda **_: self._all_there())
        events.test_stop.add_listener(lambda **_: self._end())

    def check_meter(self) -> None:
        """Raises RuntimeError where the metrics are none of ours: the run would have no joules, or never begin."""
        url = self._target.metrics_url
        try:
            names = read_metrics(url).names()
        except (HTTPError, ValueError) as error:
            raise RuntimeError(f"--metrics-url: {url} does not answer as a node process does ({error})") from None
        if "jouleserve_build_info" not in names:
            raise RuntimeError(
                f"--metrics-url: {url} is no node process; give the one of the server, port 9400 by default"
            )

    def run_headless(self) -> None:
        """Run once; returns when the report is written. Raises RuntimeError if requests never end."""
        runner: Any = self._environment.runner
        runner.start_shape()
        # What was due last may wait for a client, and then for its reply.
        deadline_s = time.perf_counter() + self._words.seconds + START_S + 2 * TIMEOUT_S + SETTLE_S
        while not self._plan.over or self._sampler is not None:
            if time.perf_counter() > deadline_s:
                unanswered = len(self._plan.times_s) - len(self._plan.outcomes)
                raise RuntimeError(
                    f"{unanswered} requests have not ended long after they were due; is the server alive?"
                )
            sleep(0.2)
        runner.quit()

    def run_with_page(self, port: int) -> None:
        """Serve locust's page until Ctrl-C; each test that is started there writes its report."""
        sys.argv = sys.argv[
            :1
        ]  # the page takes the command line for locust's own, and ends where it knows an option not
        page = self._environment.create_web_ui(WEB_HOST, port)
        self._say(f"locust's page: http://{WEB_HOST}:{port}/ (Start takes the whole plan; Ctrl-C ends)")
        stopping = Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal_handler(number, stopping.set)
        stopping.wait()
        self._say("stopping …")
        runner: Any = self._environment.runner
        runner.quit()
        page.stop()

    def _user_class(self) -> type[User]:
        if self._target.grpc is None:
            return type("HttpAsker", (HttpAsker,), {"plan": self._plan})
        channel = open_channel(self._target.grpc)
        return type("GrpcAsker", (GrpcAsker,), {"plan": self._plan, "channel": channel})

    def _begin(self) -> None:
        self._marks = []
        self._plan.reset()

    def _all_there(self) -> None:
        """Every client waits for its first request."""
        if self._plan.began_s is None:
            self._reading = read_metrics(self._target.metrics_url)
            self._marks = [mark(0.0, self._reading)]
            self._plan.begin()
            self._sampler = spawn(self._sample)

    def _sample(self) -> None:
        """Read the server's counters between the parts of the run."""
        began_s = self._plan.began_s
        assert began_s is not None
        for turn in count(1):
            # At set times, however long a reading takes: the parts of two runs must be the same stretches of the plan.
            sleep(max(0.0, began_s + turn * self._slice_s - time.perf_counter()))
            if self._plan.over:
                return
            try:
                reading = read_metrics(self._target.metrics_url)
            except HTTPError as error:
                self._say(f"a reading is missing: {self._target.metrics_url} does not answer ({error})")
                continue
            self._marks.append(mark(time.perf_counter() - began_s, reading))

    def _end(self) -> None:
        if self._sampler is None:
            return  # stopped before it began
        self._plan.stop()
        self._sampler.kill()
        wall_s = max((one.ended_s for one in self._plan.outcomes), default=0.0)
        sleep(SETTLE_S)
        assert self._plan.began_s is not None
        after = read_metrics(self._target.metrics_url)
        # A mark just before the end would leave a part too short to say anything.
        if len(self._marks) > 1 and wall_s - self._marks[-1].at_s < self._slice_s / 2:
            self._marks.pop()
        self._marks.append(mark(time.perf_counter() - self._plan.began_s, after))
        try:
            self._write(after, wall_s)
        finally:
            self._sampler = None

    def _write(self, after: Reading, wall_s: float) -> None:
        run = {
            "started_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "target": asdict(self._target),
            "plan": {
                **asdict(self._words),
                "fingerprint": self._plan.fingerprint(),
                "requests": len(self._plan.times_s),
            },
            "energy": energy_words(after),
            "figures": run_figures(self._plan.outcomes, self._marks, wall_s),
            "slices": slices(self._plan.outcomes, self._marks),
        }
        self._out.mkdir(parents=True, exist_ok=True)
        text = markdown(run)
        write_atomic(self._out / "run.json", json.dumps(run, indent=1).encode() + b"\n")
        write_atomic(self._out / "report.md", text.encode())
        page = get_html_report(self._environment, show_download_link=False)
        write_atomic(self._out / "locust.html", readable(page).encode())
        self._write_outcomes()
        self._say(text)
        self._say(f"written: {self._out / 'report.md'}, run.json, locust.html (curves), outcomes.csv.gz")

    def _write_outcomes(self) -> None:
        rows = [one.to_row() for one in self._plan.outcomes]
        if rows:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
            write_atomic(self._out / "outcomes.csv.gz", gzip.compress(text.getvalue().encode()))


def readable(page: str) -> str:
    """Locust's report, on its own and on a phone: headings are not cut short, and no icon is looked for that is not
    beside it."""
    page = re.sub(r"<link rel=\"shortcut icon\"[^>]*>", "", page)
    whole = "h1,h2{white-space:normal!important;overflow-wrap:anywhere}h1{font-size:clamp(2rem,7vw,3.75rem)!important}"
    return page.replace("</head>", f'<link rel="icon" href="data:,"><style>{whole}</style></head>', 1)


def energy_words(reading: Reading) -> dict[str, Any]:
    """Whose joules they are, and how sure: all of them, and those above idling, which answers owe."""
    sources = sorted(reading.label_values("jouleserve_energy_joules_total", "source"))

    def widest(metric: str) -> float | None:
        return max((value for (name, _), value in reading.samples.items() if name == metric), default=None)

    return {
        "sources": sources,
        "relative_uncertainty": widest("jouleserve_energy_relative_uncertainty_ratio"),
        "dynamic_uncertainty": widest("jouleserve_dynamic_relative_uncertainty_ratio"),
    }
