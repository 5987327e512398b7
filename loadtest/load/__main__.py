"""Command line of `loadtest.load`.

python -m loadtest.load run                      three minutes of a day's course against a server of its own
python -m loadtest.load run --url http://127.0.0.1:8000 --metrics-url http://127.0.0.1:9400
python -m loadtest.load compare var/load/a var/load/b
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.load.arrivals import MADE, ArrivalsError, arrivals
from loadtest.load.compare import JUDGED, NotComparable, compare, failed_more, failed_share, load_run, spread
from loadtest.load.mix import parse_mix

if TYPE_CHECKING:
    from loadtest.load.session import Target

FOLDER = Path("var/load")
GRID_DAY = Path(__file__).parent.parent / "grid" / "day.csv"
DAY_S = 86_400
MOST_OF_ANYTHING = 1e6
MOST_REQUESTS = 5_000_000
"""A plan is made, and its outcomes kept, in memory."""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="python -m loadtest.load", description=(__doc__ or "").split("\n")[0])
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="drive a server and write a report")
    run.add_argument(
        "--arrivals",
        default="diurnal",
        help=f"{', '.join(MADE)} (made from --seed), or a recording: CSV or parquet file",
    )
    run.add_argument("--rows", metavar="FROM:TO", help="the rows of that recording to play, from 0; default: all")
    run.add_argument("--seconds", type=positive, default=180.0, help="what the course or recording is stretched to")
    run.add_argument("--rate", type=positive, default=40.0, help="mean requests a second")
    run.add_argument("--texts", type=Path, help="texts (and labels) to ask: .csv, .parquet or .txt")
    run.add_argument("--zipf", type=float, default=0.6, help="popularity of the texts: weight rank ** -ZIPF")
    run.add_argument("--unique", action="store_true", help="ask no text twice, in place of --zipf")
    run.add_argument("--mix", default="standard=8,strict=1,eco=1", help="classes of the requests, by weight")
    run.add_argument("--clients", type=int, default=64, help="most requests in flight")
    run.add_argument("--seed", type=int, default=1, help="the same seed asks the same at the same times")
    run.add_argument("--grpc", nargs="?", const="", metavar="HOST:PORT", help="ask over gRPC instead of HTTP")
    run.add_argument("--url", help="a server that runs; without it one is started, with the demo's family")
    run.add_argument("--metrics-url", default="http://127.0.0.1:9400", help="its node process")
    run.add_argument("--edge", action="store_true", help="start the server without Ray")
    run.add_argument("--set", dest="assign", action="append", default=[], help="a setting of that server; repeatable")
    run.add_argument("--store", type=Path, default=Path("var/store"), help="where that server's family is")
    run.add_argument("--slice", type=positive, default=10.0, help="seconds of a part of the run")
    run.add_argument(
        "--web", type=int, nargs="?", const=8089, metavar="PORT", help="start and watch it on locust's page"
    )
    run.add_argument("--out", type=Path, help=f"folder of the report (default: below {FOLDER}, by time)")
    two = commands.add_parser("compare", help="is B cheaper or slower than A?")
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    return top


def positive(text: str) -> float:
    """A number above 0, for argparse. Raises ValueError."""
    value = float(text)
    if not 0 < value <= MOST_OF_ANYTHING:
        raise ValueError(text)
    return value


def say(text: str) -> None:
    """Progress and results, at once even into a pipe."""
    print(text, flush=True)


def _become_gevents() -> None:
    """locust patches sockets: before anything imports what opens them. Raises RuntimeError without locust."""
    try:
        import_module("locust")
    except ImportError:
        raise RuntimeError("locust is not installed; pip install '.[loadtest]'") from None


def run(given: argparse.Namespace) -> None:
    """`run`."""
    if given.rate * given.seconds > MOST_REQUESTS:
        raise ValueError(f"--rate, --seconds: more than {MOST_REQUESTS:,} requests; lower one of them")
    if not 0 <= given.zipf < MOST_OF_ANYTHING:
        raise ValueError("--zipf: give an exponent of 0 (all texts alike) or more")
    if given.clients < 1:
        raise ValueError("--clients: give at least 1")
    times_s = arrivals(given.arrivals, given.seconds, given.rate, given.seed, given.rows)
    if not times_s:
        raise ValueError("--rate, --seconds: no request would be sent; raise one of them")
    mix = parse_mix(given.mix)
    if given.url is not None and given.texts is None:
        raise ValueError("--texts: missing; give a file of texts that suit the family at --url")
    if given.texts is not None and not given.texts.is_file():
        raise ValueError(f"--texts: {given.texts} does not exist; give a .csv, .parquet or .txt of texts")
    if given.url is not None and given.grpc == "":
        raise ValueError("--grpc: give HOST:PORT of the server at --url")
    _become_gevents()
    from loadtest.load.questions import questions
    from loadtest.load.session import PlanWords, Session
    from loadtest.texts import read_questions

    zipf = None if given.unique else given.zipf
    with contextlib.ExitStack() as stack:
        texts, target = _target(given, stack)
        asked = questions(read_questions(texts), len(times_s), zipf=zipf, shares=mix, seed=given.seed)
        words = PlanWords(
            arrivals=given.arrivals if given.rows is None else f"{given.arrivals} rows {given.rows}",
            seconds=given.seconds,
            rate_per_s=given.rate,
            seed=given.seed,
            zipf=zipf,
            mix=mix,
            texts=str(texts),
            clients=given.clients,
            protocol="HTTP" if target.grpc is None else "gRPC",
        )
        out = given.out or FOLDER / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        session = Session(target, words, times_s, asked, out, say, given.slice)
        session.check_meter()
        if given.web is not None:
            session.run_with_page(given.web)
        else:
            say(f"{len(times_s):,} requests in {given.seconds:g} s, arrivals {given.arrivals}, to {target.url}")
            session.run_headless()


def _target(given: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Path, Target]:
    """The texts and the server; one is started (and stopped when the stack ends) where none is named."""
    from loadtest.load.session import Target

    if given.url is not None:
        return given.texts, Target(given.url.rstrip("/"), given.metrics_url.rstrip("/"), given.grpc)
    served = stack.enter_context(_own_server(given))
    return given.texts or FOLDER / "questions.csv", served


@contextlib.contextmanager
def _own_server(given: argparse.Namespace) -> Iterator[Target]:
    """A server with the demo's family; its grid plays a day while the load runs."""
    from loadtest.demo_family import compile_demo_family
    from loadtest.load.session import Target
    from loadtest.served import free_port, serve

    compile_demo_family(given.store, FOLDER / "questions.csv")
    settings: dict[str, object] = {
        "model.store": given.store,
        "grid.provider": "replay",
        "grid.replay_path": GRID_DAY,
        "grid.replay_speed": DAY_S / given.seconds,
        "grid.zone": "DEMO",
        "shaping.policy": "threshold",
        "shaping.poll_period_s": max(0.5, given.seconds / 120),
        "shaping.min_dwell_s": given.seconds / 12,
    }
    settings.update(assignment.partition("=")[::2] for assignment in given.assign)
    grpc_port = free_port() if given.grpc is not None else None
    if grpc_port is not None:
        settings["server.grpc_port"] = grpc_port
    say("starting the server …")
    with serve(FOLDER / "server", settings, edge=given.edge) as served:
        yield Target(served.url, served.metrics_url, None if grpc_port is None else f"127.0.0.1:{grpc_port}")


def compare_runs(given: argparse.Namespace) -> int:
    """`compare`: 1 if B is worse in something."""
    a, b = load_run(given.a), load_run(given.b)
    verdicts = compare(a, b)
    for what, field in JUDGED.items():
        say(f"{what}: A {spread(a, field)}, B {spread(b, field)}   (median and range of the parts)")
    say(f"failed: A {failed_share(a):.2%}, B {failed_share(b):.2%}")
    say("")
    for verdict in verdicts:
        say(verdict.line())
    if failed_more(a, b):
        say("failed requests: B more: they are in no figure above, which look the better for it")
    say("what the machine did beside one run looks like a difference; a second run of A tells how much that is")
    return int(failed_more(a, b) or any(verdict.word == "more" for verdict in verdicts))


def main() -> None:
    """Entry point."""
    given = parser().parse_args()
    try:
        if given.command == "compare":
            raise SystemExit(compare_runs(given))
        run(given)
    except (ArrivalsError, NotComparable, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"the load failed: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
