"""The console in a real Chromium, on a real server: it loads, follows, and is readable on a phone."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.http import HTTP
from loadtest.served import Served, serve
from models.store import Store
from tests.support.browser import PHONE, Tab, chromium
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

KEY = "olgas-key-for-this-test"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Served]:
    """A server that everybody may look at and that olga may tune; only where there is a browser."""
    folder = tmp_path_factory.mktemp("console")
    store = Store(folder / "store")
    publish_tiny_family(store)
    (folder / "admins").write_text(f"olga: sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
    (folder / "admins").chmod(0o600)
    settings = {
        "server.admin_keys_file": folder / "admins",
        "model.store": store.root,
        "model.family": "tiny",
        "grid.static_grams_per_kwh": 200,
        "energy.source": "estimated",
    }
    with serve(folder, settings, edge=True) as served:
        yield served


def ask(edge: Served, texts: int) -> None:
    for n in range(texts):
        reply = HTTP.post(f"{edge.url}/predict", json={"inputs": f"refund w{n % 50} w{n // 50}"})
        assert reply.status_code == 200


def open_console(browser: Any, edge: Served, **options: Any) -> Tab:
    tab = Tab(browser, f"{edge.url}/console", **options)
    tab.wait("document.querySelector('#live').textContent === 'live'")
    return tab


def test_it_loads_from_this_server_alone_and_complains_of_nothing(browser: Any, edge: Served) -> None:
    tab = open_console(browser, edge)
    tab.wait("document.querySelector('#tile-watts [data-value]').textContent !== '–'")
    assert tab.complaints == []
    assert {url.split("/console")[0] for url in tab.asked if not url.startswith("data:")} == {edge.url}
    tab.page.close()


def test_it_shows_point_grid_and_front(browser: Any, edge: Served) -> None:
    tab = open_console(browser, edge)
    assert tab.text("#dial-point") == "full"
    assert tab.text("#grid .big") == "200 gCO2e/kWh"
    assert re.match(r"static · \d+ s old · static", tab.text("#grid-note"))
    front = tab.page.get_attribute("#front svg", "aria-label")
    assert "lite: 95% of the teacher at 1 CPU-seconds per 1,000 texts" in front
    assert "the stated intensity is clean: 200 g/kWh, below 300" in tab.text("#changes")
    tab.page.close()


def test_its_figures_follow_the_load_without_a_reload(browser: Any, edge: Served) -> None:
    tab = open_console(browser, edge)
    before = tab.text("#tile-joules .big")
    ask(edge, 60)
    tab.wait("Number.parseFloat(document.querySelector('#tile-rate [data-value]').textContent) > 0")
    tab.wait("document.querySelectorAll('#share-legend li strong')[0].textContent === '100%'")
    tab.wait("/J$/.test(document.querySelector('#tile-joules .big').textContent)")
    assert re.fullmatch(r"[\d.]+ [mµ]?J", after := tab.text("#tile-joules .big")), (before, after)
    assert "p99" in tab.text("#tile-rate [data-note]")
    assert tab.complaints == []
    tab.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_keeps_its_text_readable(browser: Any, edge: Served, scheme: str) -> None:
    tab = open_console(browser, edge, viewport=PHONE, scheme=scheme)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    smallest = tab.page.evaluate(
        "Math.min(...[...document.querySelectorAll('p, td, th, dd, dt, label, text')]"
        ".filter((one) => one.textContent.trim() && one.checkVisibility())"
        ".map((one) => Number.parseFloat(getComputedStyle(one).fontSize)))"
    )
    assert smallest >= 12
    tab.page.evaluate("document.querySelector('#tile-rate [data-value]').textContent = '1,234'")
    assert tab.page.evaluate(
        "[...document.querySelectorAll('.tile .big')].every((one) => one.clientHeight < 1.5 * parseFloat("
        "getComputedStyle(one).lineHeight))"
    ), "a figure and its unit stand on one line"
    assert tab.page.evaluate("getComputedStyle(document.querySelector('#front text')).paintOrder").startswith("stroke")
    assert tab.complaints == []
    tab.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser: Any, edge: Served, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = open_console(browser, edge, scheme=scheme)
    found = axe.Axe().run(tab.page)
    assert found.violations_count == 0, found.generate_report()
    tab.page.close()


def test_it_says_so_when_the_server_is_gone_and_comes_back(browser: Any, edge: Served) -> None:
    tab = open_console(browser, edge)
    tab.page.context.set_offline(True)
    tab.wait("document.querySelector('#live').textContent === 'the server does not answer'")
    tab.page.context.set_offline(False)
    tab.wait("document.querySelector('#live').textContent === 'live'")
    tab.page.close()


def unlocked(browser: Any, edge: Served) -> Tab:
    tab = open_console(browser, edge)
    tab.page.fill("#key", KEY)
    tab.page.press("#key", "Enter")
    tab.wait("!document.querySelector('#set-batching-max_rows').disabled")
    return tab


def in_force(edge: Served) -> dict[str, Any]:
    tunables: dict[str, Any] = HTTP.get(f"{edge.url}/info").json()["tunables"]
    return tunables


def on_record(edge: Served) -> int:
    """The version that was tuned last; replicas follow it a moment later."""
    told = HTTP.get(f"{edge.url}/admin/tuning", headers={"Authorization": f"Bearer {KEY}"})
    version: int = told.raise_for_status().json()["version"]
    return version


def test_without_a_good_key_nothing_can_be_changed(browser: Any, edge: Served) -> None:
    tab = open_console(browser, edge)
    assert tab.page.is_disabled("#set-batching-max_rows")
    assert tab.page.is_disabled("#apply")
    tab.page.fill("#key", "somebody-elses")
    tab.page.click("#unlock")
    tab.wait("document.querySelector('#tuned').textContent.includes('not known here')")
    assert tab.page.is_disabled("#set-batching-max_rows")
    assert not any("somebody-elses" in url for url in tab.asked)
    tab.page.close()


def test_an_administrator_tunes_goes_back_and_is_on_record(browser: Any, edge: Served) -> None:
    tab = unlocked(browser, edge)
    before = in_force(edge)["batching"]["max_rows"]
    tab.page.fill("#set-batching-max_rows", "7")
    assert tab.text("#pending") == "1 changed: batching.max_rows"
    tab.page.click("#apply")
    tab.wait("document.querySelector('#tuned').textContent.startsWith('Taken as version')")
    deadline = time.monotonic() + 20
    while in_force(edge)["batching"]["max_rows"] != 7:
        assert time.monotonic() < deadline, "the server did not follow"
        time.sleep(0.2)
    assert "olga" in tab.text("#entries tr:first-child")
    assert f"batching.max_rows: {before} → 7" in tab.text("#entries tr:first-child")
    tab.page.click("#undo")
    tab.wait(f"document.querySelector('#set-batching-max_rows').value === '{before}'")
    assert tab.complaints == []
    tab.page.close()


def test_a_wrong_value_is_named_at_its_field_and_changes_nothing(browser: Any, edge: Served) -> None:
    tab = unlocked(browser, edge)
    version = on_record(edge)
    tab.page.select_option("#set-shaping-policy", "threshold")
    tab.page.fill("#set-shaping-clean_below_grams_per_kwh", "900")
    tab.page.fill("#set-batching-max_rows", "many")
    tab.page.click("#apply")
    tab.wait("document.querySelector('#tuned').textContent.includes('Nothing was changed')")
    assert "'many' is wrong" in tab.text("#set-batching-max_rows-problem")
    assert tab.page.get_attribute("#set-batching-max_rows", "aria-invalid") == "true"
    assert tab.page.input_value("#set-shaping-clean_below_grams_per_kwh") == "900"  # what was typed stays
    tab.page.click("#discard")
    assert tab.page.input_value("#set-batching-max_rows") != "many"
    assert on_record(edge) == version
    tab.page.close()


def test_it_can_be_used_by_keyboard_alone(browser: Any, edge: Served) -> None:
    tab = open_console(browser, edge)
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        reached.add(tab.page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
    assert {"key", "unlock", "every", "Last decisions of the policy"} <= reached
    tab.page.close()
