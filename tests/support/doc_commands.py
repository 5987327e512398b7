"""The commands of the documentation: which there are, and where each can be run.

`python -m tests.support.doc_commands` lists those that no test and no `make docs-check` runs here, and why.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
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
    (r"make (test|check|clean|lock|docs-check)\b", "elsewhere", "would run this very test, or undo the environment"),
    (r"make (bench-peers|runtimes)\b", "elsewhere", "installs two gigabytes of other servers"),
    (r"make bench-compile\b", "elsewhere", "takes hours, and wants text sets that are not in the repository"),
    (r"make load ARRIVALS=\S+\.(csv|parquet)", "elsewhere", "names a recording of the reader's"),
    (r"make (demo|bench|chaos|soak|fuzz|load|curves|pictures)\b", "slow", "minutes"),
    (r"jouleserve-compile run \S*banking77", "elsewhere", "wants text sets that are not in the repository"),
    (r"jouleserve-compile run .*--by\b", "elsewhere", "waits for half a day"),
    (r"jouleserve-compile (run|data|report --family mine)\b|for split in", "slow", "minutes"),
    (r"jouleserve up .*energy\.source=rapl", "elsewhere", "wants a machine with RAPL"),
    (r"jouleserve up\b", "slow", "starts a server, which the command waits for"),
    (r"(mypy|lint-imports|ruff|pytest)\b", "elsewhere", "make test runs it"),
    (r"helm install \S+ helm/jouleserve\b", "elsewhere", "wants a cluster; tests/helm renders what it asks for"),
    (r"(helm|kubectl)\b", "elsewhere", "wants a Kubernetes cluster"),
    (r"(ls /sys|sudo)\b", "elsewhere", "wants a machine with RAPL, and its root"),
    (r"git clone\b", "elsewhere", "names the reader's copy of the repository"),
    (r"jouleserve calibrate --watts-command\b", "elsewhere", "wants a machine with a meter"),
    (r"(curl|python -m|jouleserve|grpcurl|printf|\(umask 077)\b", "here", ""),
)  # fmt: skip
"""By the first that matches: where a command runs, and why not here."""

NEEDS = ((r"grpcurl\b", "grpcurl"), (r".*--prometheus\b", "prometheus"), (r".*\bopenssl\b", "openssl"))
"""Programs that are no part of the installation: where one is missing, its commands are left out."""

_FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELLS = ("sh", "bash", "console")
LANGUAGES = (*_SHELLS, "python")


@dataclass(frozen=True)
class Command:
    """One command of a page, or one whole piece of Python."""

    page: str
    """The path in the repository."""
    block: int
    """The line that its block begins in."""
    line: int
    language: str
    text: str
    mark: str
    """What stands behind the language: `slow`, `elsewhere` or nothing."""

    @property
    def place(self) -> Place | None:
        """Where it can be run; None if nobody has decided."""
        return self._decided()[0]

    @property
    def why(self) -> str:
        """Why it is not run within a test; empty if it is."""
        missing = self.missing
        return f"{missing} is not installed" if self.place == "here" and missing else self._decided()[1]

    @property
    def missing(self) -> str | None:
        """The program that it wants and that is not here."""
        wanted = next((program for pattern, program in NEEDS if re.match(pattern, self.text)), None)
        return None if wanted is None or shutil.which(wanted) else wanted

    def _decided(self) -> tuple[Place | None, str]:
        found = next(((place, why) for pattern, place, why in DECIDED if re.match(pattern, self.text)), None)
        if self.mark in ("slow", "elsewhere"):
            reason = found[1] if found and found[0] == self.mark else "its block is marked so"
            return ("slow" if self.mark == "slow" else "elsewhere"), reason
        if self.language == "python":
            return "here", ""
        return found or (None, "")

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def commands(page: Path) -> list[Command]:
    """All of a page, in order. Lines that end in a backslash go on; comments and shown output are none."""
    content = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
    found = []
    for fence in _FENCE.finditer(content):
        language, mark, body = fence[1], fence[2].strip(), fence[3]
        first = content[: fence.start()].count("\n") + 2
        if language == "python":
            found.append(Command(name, first, first, language, body, mark))
        elif language in _SHELLS:
            found += [Command(name, first, line, language, text, mark) for line, text in _shell(body, first)]
    return found


def unnamed_blocks(page: Path) -> list[str]:
    """Blocks without a language whose first line looks like a command: no test would see it."""
    fences = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [fence[3].splitlines()[0] for fence in fences if not fence[1] and _COMMAND.match(fence[3])]


_COMMAND = re.compile(r"\$ |(curl|make|jouleserve|jouleserve-compile|python|pip|helm|kubectl|docker) ")


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
        going_on = line.endswith("\\")
    return lines


def main() -> None:
    """Print which commands run where."""
    every = [command for page in PAGES for command in commands(page)]
    left_out = [one for one in every if one.place == "elsewhere" or (one.place == "here" and one.missing)]
    for one in left_out:
        print(f"not run: {one}   ({one.why})")
    places = Counter(str(one.place) for one in every if one not in left_out)
    print(
        f"{len(every)} commands: {places['here']} run within the tests, {places['slow']} by make docs-check,"
        f" {len(left_out)} not here"
    )


if __name__ == "__main__":
    main()
