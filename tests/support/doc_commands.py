"""The commands of the documentation: which there are, and where each can be run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parent.parent.parent
PAGES = (
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "helm/jouleserve/README.md")),
)

Place = Literal["here", "slow", "elsewhere"]
"""`here`: within a test, beside a server. `slow`: by `make docs-check`. `elsewhere`: on another machine, or never by a
machine alone."""

DECIDED: tuple[tuple[str, Place, str], ...] = (
    (r"make (test|check|clean|lock|docs-check)\b", "elsewhere", "it would run this very test, or undo the environment"),
    (r"make (bench-peers|runtimes)\b", "elsewhere", "installs two gigabytes of other servers"),
    (r"make (demo|bench|chaos|soak|fuzz|load|curves|pictures)\b", "slow", "minutes"),
    (r"jouleserve-compile run \S*banking77", "elsewhere", "wants text sets that are not in the repository"),
    (r"jouleserve-compile run\b", "slow", "minutes"),
    (r"jouleserve up\b", "slow", "starts a server, which the command waits for"),
    (r"jouleserve models use\b", "slow", "names a version of the reader's own store"),
    (r"jouleserve replay\b.*intensity\.csv", "slow", "names a recording of the reader's"),
    (r"(mypy|lint-imports|ruff|pytest)\b", "elsewhere", "make test runs them"),
    (r"(helm|kubectl|docker|grpcurl|sudo|git clone|openssl|pip install|promtool|wget)\b", "elsewhere", "needs another"
     " machine or program"),
    (r"jouleserve report\b", "elsewhere", "wants weeks of totals, or a Prometheus"),
    (r".*\bipmitool\b", "elsewhere", "wants a machine with a meter"),
    (r".*(HOST:8000|http://HOST|REGISTRY|BUCKET)", "elsewhere", "names a machine of the reader's"),
    (r"(\(umask 077; echo|KEY=)", "elsewhere", "writes a key that the reader chose"),
    (r"(curl|python -m|jouleserve|jouleserve-compile report|printf|\. \.venv|cd|export|mkdir)\b", "here", ""),
)  # fmt: skip
"""By the first that matches: where a command runs, and why not here."""

_FENCE = re.compile(r"^```(sh|bash|console|python)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a page, or one whole piece of Python."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """What stands behind the language: `slow`, `elsewhere` or nothing."""

    @property
    def place(self) -> Place | None:
        """Where it can be run; None if nobody has decided."""
        if self.mark in ("slow", "elsewhere"):
            return "slow" if self.mark == "slow" else "elsewhere"
        if self.language == "python":
            return "here"
        return next((place for pattern, place, _ in DECIDED if re.match(pattern, self.text)), None)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def commands(page: Path) -> list[Command]:
    """All of a page, in order. Lines that end in a backslash go on; comments and shown output are none."""
    content = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(content):
        language, mark, body = fence[1], fence[2].strip(), fence[3]
        first = content[: fence.start()].count("\n") + 2
        if language == "python":
            found.append(Command(page.name, first, language, body, mark))
            continue
        for line, text in _shell(body, first):
            found.append(Command(page.name, line, language, text, mark))
    return found


def _shell(body: str, first: int) -> list[tuple[int, str]]:
    lines: list[tuple[int, str]] = []
    shown = any(line.startswith("$ ") for line in body.splitlines())
    going_on = False
    for number, line in enumerate(body.splitlines(), first):
        if going_on:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]}\n{line}")
        elif line.startswith("$ "):
            lines.append((number, line[2:]))
        elif not shown and line.strip() and not line.lstrip().startswith("#"):
            lines.append((number, line.strip()))
        else:
            continue
        going_on = line.endswith("\\") or (going_on and line.endswith("\\"))
    return lines
