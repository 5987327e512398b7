"""What the pages name is there: settings, metrics, targets of make, modules, files, alerts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from server.config_problems import leaves
from server.settings import Settings
from tests.support.doc_commands import PAGES, ROOT

_SETTINGS = {key for key, _ in leaves(Settings)}
_GROUPS = {key.rpartition(".")[0] for key in _SETTINGS}
_METRICS = set(re.findall(r"^\| `(jouleserve_\w+)`", (ROOT / "docs/metrics.md").read_text("utf-8"), re.MULTILINE))
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
_SECTIONS = "|".join(Settings.model_fields)

KINDS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "setting": (
        rf"`(?:settings\.)?((?:{_SECTIONS})\.[a-z0-9_.]+?)(?:=[^`]*)?`",
        lambda name: name in _SETTINGS | _GROUPS or name.endswith((".json", ".yaml", ".py")),
    ),
    "metric": (r"\b(jouleserve_\w+)", lambda name: name in _METRICS),
    "target": (r"`make ([a-z-]+)", lambda name: name in _TARGETS),
    "module": (r"python -m ([a-z_.]+)", lambda name: _module(name)),
    "path": (
        r"`((?:server|compile|energy|models|loadtest|tests|helm)/[\w./-]+)`",
        lambda name: (ROOT / name).exists(),
    ),
}
"""Kind of name -> how it is written, and whether there is one."""
NO_SETTINGS = {"jobs.claim"}
"""Values of the chart that are called as settings are."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    assert unknown(page.read_text(encoding="utf-8")) == []


def test_a_name_of_nothing_is_seen() -> None:
    text = "`server.prt`, `shaping.floors.standard=0.9`, jouleserve_jouls_total, `make tea`, `server/nowhere.py`"
    assert unknown(text + " python -m loadtest.tea") == [
        "setting server.prt", "metric jouleserve_jouls_total", "target tea", "module loadtest.tea",
        "path server/nowhere.py",
    ]  # fmt: skip


def test_the_readme_counts_the_alerts() -> None:
    alerts = re.findall(r"^## JouleServe", (ROOT / "docs/runbook.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"- {len(alerts)} alerts," in (ROOT / "README.md").read_text(encoding="utf-8")


def unknown(text: str) -> list[str]:
    """Names in a page that are of nothing, with their kind."""
    return [
        f"{kind} {name}"
        for kind, (pattern, there) in KINDS.items()
        for name in dict.fromkeys(re.findall(pattern, text))
        if not there(name) and name not in NO_SETTINGS
    ]


def _module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
