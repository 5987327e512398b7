"""The commands of the documentation that take minutes, as a reader would run them: `make docs-check`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.support.doc_commands import PAGES, ROOT, Command, commands

pytestmark = [
    pytest.mark.served,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.environ.get("DOCS_CHECK") != "1", reason="make docs-check runs it"),
]
LONG = [command for page in PAGES for command in commands(page) if command.place == "slow"]
TIMEOUT_S, ENDS_WITHIN_S = 3500, 90
HEALTH = "http://127.0.0.1:8000/health"
UNTIL: Mapping[str, str] = {"make demo": "(Ctrl-C stops everything)", "make load LOAD='--web'": "locust's page: http"}
"""What a command that goes on until Ctrl-C says when it is there."""
JUDGES: Mapping[str, str] = {"make bench": "all figures: "}
"""What a command has said that fails, as its page has it, only because the machine of the day misses a target."""


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("command", LONG, ids=str)
def test_a_long_command_does_what_it_says_in_the_repositorys_own_folder(command: Command) -> None:
    words = next((words for start, words in UNTIL.items() if command.text.startswith(start)), None)
    if command.text.startswith("jouleserve up"):
        run_beside(command)
    elif words is not None:
        with going_on(command, lambda said: words in said):
            pass
    else:
        finish(command)


def finish(command: Command, text: str | None = None) -> None:
    """Run a command to its end."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-s"],
        input=text or command.text, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    judged = any(command.text.startswith(start) and words in done.stdout for start, words in JUDGES.items())
    assert done.returncode == 0 or judged, f"{command}\nsaid:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def run_beside(up: Command) -> None:
    """Start the server as the page says, after what its block does before, and do what it does then."""
    block = [one for page in PAGES for one in commands(page) if (one.page, one.block) == (up.page, up.block)]
    short = [one for one in block if one.place == "here"]
    for one in short:
        if one.line < up.line:
            finish(one)
    with going_on(up, lambda _: healthy()):
        for one in short:
            if one.line > up.line:
                finish(one, one.text.replace("HOST:", "127.0.0.1:").replace("curl ", "curl --fail-with-body "))


def healthy() -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(HEALTH, timeout=2).status_code == 200
    return False


@contextmanager
def going_on(command: Command, there: Callable[[str], bool]) -> Iterator[None]:
    """A command that goes on until Ctrl-C, which ends it and all that it started. make then calls that an error."""
    with tempfile.NamedTemporaryFile() as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command.text}"],
            env=environment(), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

        def said() -> str:
            return Path(output.name).read_text(errors="replace")

        try:
            wait_until(lambda: there(said()) or process.poll() is not None, TIMEOUT_S, "it is there")
            assert process.poll() is None, f"{command}\nended by itself:\n{said()[-3000:]}"
            yield
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(ENDS_WITHIN_S)
            assert code in (0, -signal.SIGINT) or command.text.startswith("make "), said()[-3000:]
            wait_until(lambda: not alive(process.pid), ENDS_WITHIN_S, "all that it started has ended")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def alive(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.5)
