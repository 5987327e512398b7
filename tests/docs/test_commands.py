"""Every command of the documentation was thought of, and those that can run beside a server are run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.http import HTTP
from loadtest.pictures import MOST_BYTES, prometheus
from loadtest.served import free_port, serve
from models.store import Store
from server.api.app import OPEN_PATHS
from server.api.errors import ERRORS
from tests.support.doc_commands import DECIDED, PAGES, ROOT, Command, commands, unnamed_blocks
from tests.support.tiny_family import publish_tiny_family

ALL = [command for page in PAGES for command in commands(page)]
Beside = tuple[dict[str, str], Path, dict[str, str]]
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
KEY, ADMIN_KEY = "a-key-for-the-docs", "an-administrators-key-for-the-docs"


@pytest.mark.parametrize("command", ALL, ids=str)
def test_somebody_has_decided_where_it_can_be_run(command: Command) -> None:
    known = "\n".join(f"  {pattern}: {place} {why}" for pattern, place, why in DECIDED)
    assert command.place is not None, f"{command}\nis none of these (tests/support/doc_commands.py):\n{known}"
    assert command.mark in ("", "slow", "elsewhere"), command.mark


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_of_commands_hides_by_not_saying_its_language(page: Path) -> None:
    assert unnamed_blocks(page) == []


@pytest.mark.parametrize("command", [one for one in ALL if one.language != "python"], ids=str)
def test_a_shell_understands_it(command: Command) -> None:
    read = subprocess.run(["bash", "-n"], input=command.text, capture_output=True, text=True, timeout=20)
    assert read.returncode == 0, read.stderr


@pytest.mark.parametrize("command", [one for one in ALL if one.language == "python"], ids=str)
def test_python_understands_it(command: Command) -> None:
    compile(command.text, f"{command.page}:{command.line}", "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_to_what_is_there(page: Path) -> None:
    assert [target for target in links(page.read_text(encoding="utf-8")) if not leads_somewhere(page, target)] == []


def test_every_page_is_in_the_index() -> None:
    indexed = set(links((ROOT / "docs/README.md").read_text(encoding="utf-8")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - indexed == {"README.md"}


def test_the_readme_shows_the_console_and_a_dashboard_and_no_picture_is_large() -> None:
    shown = set(links((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"docs/pictures/console.png", "docs/pictures/dashboard-energy.png"} <= shown
    pictures = list((ROOT / "docs/pictures").iterdir())
    assert [one.name for one in pictures if one.stat().st_size > MOST_BYTES] == []


def test_the_pages_name_every_error_and_every_path_without_a_key() -> None:
    api = (ROOT / "docs/api.md").read_text(encoding="utf-8").split("## Errors")[1]
    told = {int(status) for row in re.findall(r"^\| ([\d, ]+) \|", api, re.MULTILINE) for status in row.split(",")}
    assert {row.http_status for row in ERRORS.values()} <= told
    security = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    assert [path for path in OPEN_PATHS if f"`{re.sub('/(live|ready|data)$', '', path) or path}" not in security] == []


def test_a_link_to_nothing_is_seen(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One page\n\n## What `x.y` costs, 2nd\n\n```sh\n# no heading\n```\n")
    page = tmp_path / "a.md"
    found = links("[a](b.md) ![b](c.png) [c](b.md#what-xy-costs-2nd) [d](b.md#no-heading) [e](https://x/y) [f](#g)")
    assert [target for target in found if not leads_somewhere(page, target)] == ["c.png", "b.md#no-heading", "#g"]


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures; what stands in code is none."""
    return re.findall(r"\]\(([^)\s]+)\)", _FENCED.sub("", text))


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a file and the heading named after # are there; other hosts are taken for granted."""
    if "://" in target:
        return True
    path, _, heading = target.partition("#")
    file = page.parent / path if path else page
    if not heading:
        return file.exists()
    return file.is_file() and heading in headings(file.read_text(encoding="utf-8"))


def headings(text: str) -> set[str]:
    """As GitHub names them in addresses."""
    titles = re.findall(r"^#+ (.+)$", _FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """A server with the demo's family name, the environment in which the commands find it, a folder to run them in, and
    what to put in place of the addresses that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    store = Store(folder / "store")
    publish_tiny_family(store, family="support-intents")
    for name, key in (("keys", KEY), ("admins", ADMIN_KEY)):
        (folder / name).write_text(f"reader: sha256:{hashlib.sha256(key.encode()).hexdigest()}\n")
        (folder / name).chmod(0o600)
    grpc_port = free_port()
    settings = {
        "model.store": store.root,
        "server.grpc_port": grpc_port,
        "server.admin_keys_file": folder / "admins",
        "energy.source": "estimated",
    }
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serve(folder, settings, edge=True))
        metrics_port = served.metrics_url.rsplit(":", 1)[1]
        work = folder / "work"
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CURL_HOME": str(work),
            "KEY": KEY,
            "ADMIN_KEY": ADMIN_KEY,
            "JOULESERVE_SERVER__RUN_DIR": str(folder / "run"),
            "JOULESERVE_SERVER__PORT": str(served.port),
            "JOULESERVE_SERVER__METRICS_PORT": metrics_port,
            "JOULESERVE_MODEL__STORE": str(store.root),
            "JOULESERVE_STORE": str(store.root),
        }
        places = {
            ":8000": f":{served.port}",
            ":9400": f":{metrics_port}",
            ":8001": f":{grpc_port}",
            "0001-d9c9bd75d440": str(store.current("support-intents")),
        }
        scraping = None
        if shutil.which("prometheus"):
            target = served.metrics_url.removeprefix("http://")
            scraping = stack.enter_context(prometheus(folder / "prometheus", target))
            places[":9090"] = f":{scraping.rsplit(':', 1)[1]}"
        (work / "var").mkdir(parents=True)
        (work / ".curlrc").write_text("fail-with-body\n")  # an answer that is an error fails the command
        for name in ("models", "loadtest", "server", "docs"):
            (work / name).symlink_to(ROOT / name)
        _wait_for_the_meter(f"{served.metrics_url}/metrics")
        if scraping is not None:
            _wait_for_two_scrapes(scraping)
        yield environment, work, places


def _wait_for_the_meter(url: str) -> None:
    """A meter's first reading is a baseline: the energy series begin a second or two after the server."""
    deadline = time.monotonic() + 30
    while "jouleserve_energy_joules_total{" not in HTTP.get(url).text:
        assert time.monotonic() < deadline, "the meter gave no reading"
        time.sleep(0.2)


def _wait_for_two_scrapes(url: str) -> None:
    """What grew in an hour is known from the second scrape on that saw it grow."""
    deadline = time.monotonic() + 60
    query = {"query": "sum(increase(jouleserve_energy_joules_total[1h])) > 0"}
    while not HTTP.get(f"{url}/api/v1/query", params=query).json()["data"]["result"]:
        assert time.monotonic() < deadline, "Prometheus saw no joules"
        time.sleep(0.2)


@pytest.mark.served
@pytest.mark.parametrize("page", [page for page in PAGES if any(one.place == "here" for one in commands(page))])
def test_the_commands_of_a_page_do_what_they_say(page: Path, beside: Beside) -> None:
    """In order, each in the same folder; one that fails is named with what it said."""
    for command in commands(page):
        if command.place == "here" and not command.missing:
            _run(command, beside, timeout_s=120)


def _run(command: Command, beside: Beside, timeout_s: float) -> None:
    environment, folder, places = beside
    text = command.text
    for theirs, ours in places.items():
        for host in ("127.0.0.1", "localhost", "HOST") if theirs[0] == ":" else ("",):
            text = text.replace(f"{host}{theirs}", f"{host.replace('HOST', '127.0.0.1')}{ours}")
    interpreter = [sys.executable, "-"] if command.language == "python" else ["bash", "-euo", "pipefail", "-s"]
    done = subprocess.run(
        interpreter, input=text, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{command}\nsaid:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
