"""What the page's script makes of reasons and of several nodes' figures, in a real Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest

from server.shaping import policy
from tests.support.browser import chromium

Run = Callable[[str], Any]

REASONS = sorted(
    set(re.findall(r"`([a-z][a-z0-9-]*(?::[^`]+)?)`", (policy.__doc__ or "").split("Reasons are short")[1]))
)
"""As the policy's own list has them."""
NO_REASONS = {"dwell:<code>", "code", "code:detail", "percentile", "load-spike", "p99-guard"}
"""Words of that list; the last two are told of single answers alone."""


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs an expression beside the page's functions."""
    parts = files("server.console")
    code = "\n".join(
        parts.joinpath(name).read_text("utf-8") for name in ("exposition.js", "figures.js", "draw.js", "panels.js")
    )
    with chromium() as browser:
        page = browser.new_page()
        yield lambda expression: page.evaluate(f"(() => {{ {code}\nreturn {expression}; }})()")


@pytest.mark.parametrize("reason", [one for one in REASONS if one not in NO_REASONS])
def test_every_reason_of_the_policy_is_told_in_words(run: Run, reason: str) -> None:
    words = run(f"explain({json.dumps(reason)})")
    assert words != reason
    assert not re.search("undefined|NaN|  |\\( ", words), words


@pytest.mark.parametrize("reason", [one for one in REASONS if one.startswith(("grid-", "static-", "rank-"))])
def test_a_reason_that_waits_for_the_dwell_has_no_figures_to_tell(run: Run, reason: str) -> None:
    words = run(f"explain({json.dumps(f'dwell:{policy.code(reason)}')})")
    assert words.startswith("waits for the minimum dwell; then: ")
    assert not re.search("undefined|NaN|  |: g/kWh", words), words


def two_nodes(run: Run, expression: str) -> Any:
    """Of a history in which two nodes were looked at twice."""
    exposition = (
        "jouleserve_dial_switches_total {switches}\n"
        "jouleserve_grid_age_seconds {age}\n"
        "jouleserve_energy_conservation_error_ratio {error}\n"
        'jouleserve_shed_requests_total{{class="eco"}} 0\n'
        'jouleserve_energy_joules_total{{domain="package",source="rapl"}} {joules}\n'
        "jouleserve_replicas 1\n"
    )
    looks = [
        ("a", 0, exposition.format(switches=7, age=300, error=0, joules=10)),
        ("b", 1, exposition.format(switches=7, age=9000, error=0.002, joules=100)),
        ("a", 10, exposition.format(switches=7, age=310, error=0, joules=60)),
        ("b", 11, exposition.format(switches=7, age=9010, error=0.002, joules=200)),
    ]
    takes = "".join(f"h.take({json.dumps(n)}, {at}, distil(new Samples({json.dumps(text)})));" for n, at, text in looks)
    return run(f"(() => {{ const h = new History(); {takes} return {expression}; }})()")


def test_what_nodes_draw_is_added_up_and_what_they_are_told_alike_is_not(run: Run) -> None:
    assert two_nodes(run, "h.rate('metered')") == pytest.approx(5 + 10)
    assert two_nodes(run, "h.gauge('replicas')") == 2
    assert two_nodes(run, "h.told('switches')") == 7
    assert two_nodes(run, "h.told('conservation')") == 0.002
    assert two_nodes(run, "h.told('gridAge', Math.min)") == 300 + 10
    assert two_nodes(run, "h.told('gridGrams')") is None, "what nobody tells is not 0"


def test_that_nothing_was_refused_is_known_from_the_beginning(run: Run) -> None:
    assert two_nodes(run, "h.rate('shed')") == 0
