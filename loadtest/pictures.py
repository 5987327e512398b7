"""`make pictures`: pictures of a real server under load: the console in Chromium, and dashboards' panels from a
Prometheus that scrapes it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from loadtest.board_picture import Span, draw
from loadtest.client import closed_loop
from loadtest.demo import settings_of
from loadtest.demo_family import compile_demo_family
from loadtest.http import HTTP
from loadtest.served import Served, free_port, serve
from loadtest.texts import classes, popular, read_questions, texts_file

MOST_BYTES = 200_000
SCRAPE_S = 2
RATE_INTERVAL_S = 16
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
DESKTOP = {"width": 1360, "height": 1210}
PHONE = {"width": 390, "height": 844}
SHARES = {"standard": 0.8, "strict": 0.1, "eco": 0.1}


def say(text: str) -> None:
    """Progress."""
    print(text, flush=True)


@contextlib.contextmanager
def load(served: Served, questions: Path, seconds: float) -> Iterator[None]:
    """Eight clients in the background."""
    stream = classes(popular(read_questions(questions), seed=11, exponent=0.6), seed=12, shares=SHARES)
    end = time.monotonic() + seconds
    url = f"{served.url}/predict"
    sending = threading.Thread(
        target=lambda: asyncio.run(closed_loop(url, stream, 8, lambda: time.monotonic() > end, pause_s=0.1)),
        daemon=True,
    )
    sending.start()
    yield
    end = 0.0
    sending.join(60)


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A Prometheus that scrapes `target` (HOST:PORT); its URL. Raises RuntimeError if it does not come up."""
    program = shutil.which("prometheus")
    if program is None:
        raise RuntimeError("prometheus is not installed (Debian: apt-get install prometheus)")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "data", ignore_errors=True)
    config = folder / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: {SCRAPE_S}s}}\n"
        f"scrape_configs: [{{job_name: jouleserve, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if HTTP.get(f"http://{address}/-/ready", timeout=2).status_code == 200:
                    break
            time.sleep(0.2)
        else:
            raise RuntimeError(f"prometheus did not come up; see {folder / 'prometheus.log'}")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Raises RuntimeError if there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise RuntimeError("playwright is not installed; pip install '.[dev]'") from None
    if path is None:
        raise RuntimeError("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def small(png: bytes) -> bytes:
    """The same picture in at most `MOST_BYTES`: with a palette, if it must be. Raises RuntimeError if it cannot be."""
    from PIL import Image

    for colours in (None, 256, 96, 48):
        if colours is not None:
            buffer = io.BytesIO()
            Image.open(io.BytesIO(png)).convert("RGB").quantize(colours).save(buffer, "PNG", optimize=True)
            if len(buffer.getvalue()) <= MOST_BYTES:
                return buffer.getvalue()
        elif len(png) <= MOST_BYTES:
            return png
    raise RuntimeError(f"a picture is larger than {MOST_BYTES} bytes even with 48 colours")


def take(given: argparse.Namespace) -> None:
    """All pictures."""
    questions = given.texts or given.folder / "questions.csv"
    if given.texts is None:
        compile_demo_family(given.store, questions)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {**settings_of(given.store, given.seconds), "server.run_dir": given.folder / "run"}
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serve(given.folder, settings, edge=True))
        url = stack.enter_context(prometheus(given.folder / "prometheus", served.metrics_url.removeprefix("http://")))
        browser = stack.enter_context(chromium())
        stack.enter_context(load(served, questions, given.seconds + 60))
        say(f"a day on the grid in {given.seconds:g} s …")
        began_s = time.time()
        pages = {
            "console": browser.new_page(viewport=DESKTOP, color_scheme="light"),
            "console-dark": browser.new_page(viewport=DESKTOP, color_scheme="dark"),
            "console-phone": browser.new_page(viewport=PHONE, color_scheme="light"),
        }
        for page in pages.values():
            page.goto(f"{served.url}/console")
        next(iter(pages.values())).wait_for_timeout(given.seconds * 1000)
        for name, page in pages.items():
            path = given.out / f"{name}.png"
            path.write_bytes(small(page.screenshot()))
            say(f"written: {path} ({path.stat().st_size:,} bytes)")
        span = Span(began_s + RATE_INTERVAL_S, time.time(), SCRAPE_S, f"{RATE_INTERVAL_S}s")
        for board in sorted(given.dashboards.glob("*.json")):
            path = given.out / f"dashboard-{board.stem}.png"
            draw(board, url, span, path, given.rows)
            path.write_bytes(small(path.read_bytes()))
            say(f"written: {path} ({path.stat().st_size:,} bytes)")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--store", type=Path, default=Path("var/store"))
    parser.add_argument("--folder", type=Path, default=Path("var/pictures"))
    parser.add_argument(
        "--texts", type=texts_file, help="texts that suit the family in the store; else the demo's is compiled"
    )
    parser.add_argument("--dashboards", type=Path, default=Path("helm/jouleserve/dashboards"))
    parser.add_argument("--rows", type=int, default=27, help="height of a dashboard's picture in Grafana's grid units")
    parser.add_argument("--seconds", type=float, default=150.0, help="how long the replayed day takes")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    try:
        take(parser.parse_args())
    except (RuntimeError, subprocess.CalledProcessError, httpx.HTTPError) as error:
        say(f"no pictures: {error}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
