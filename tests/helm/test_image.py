"""The Dockerfile: what it promises, and its steps in a clean directory, as far as that goes without an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.store import Store
from tests.support.tiny_family import publish_tiny_family

ROOT = Path(__file__).parents[2]
BASE = "python:3.11-slim@sha256:" + "0" * 64
NEEDS_AN_ENGINE = ("apt-get ", "groupadd ")
"""Steps that change the base image itself."""


@dataclass(frozen=True)
class Step:
    """One instruction of a stage."""

    word: str
    text: str


def stages() -> list[list[Step]]:
    """The instructions by stage, those before the first FROM left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found: list[list[Step]] = []
    for line in filter(None, map(str.strip, lines)):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append(Step(word, rest.strip()))
    return found


def words(stage: list[Step], word: str) -> list[str]:
    return [step.text for step in stage if step.word == word]


def test_the_image_has_two_stages_on_one_base_that_must_be_given_by_digest(tmp_path: Path) -> None:
    build, final = stages()
    assert (words(build, "FROM"), words(final, "FROM")) == (["${BASE} AS build"], ["${BASE}"])
    assert (ROOT / "Dockerfile").read_text().count("ARG BASE\n") == 2, "a default would pin what nobody looked up"
    check = words(build, "RUN")[0]
    for base, taken in ((BASE, True), ("python:3.11-slim", False), ("python@sha256:123", False), ("", False)):
        done = subprocess.run(["sh", "-c", check], env={"BASE": base}, capture_output=True, check=False)
        assert (done.returncode == 0) is taken, base


def test_the_image_is_not_roots_and_knows_the_charts_user() -> None:
    _, final = stages()
    values = (ROOT / "helm/jouleserve/values.yaml").read_text()
    assert words(final, "USER") == ["10001:10001"]
    assert final.index(Step("USER", "10001:10001")) > max(i for i, step in enumerate(final) if step.word == "RUN")
    assert "runAsUser: 10001" in values
    assert "runAsGroup: 10001" in values
    assert json.loads(words(final, "ENTRYPOINT")[0]) == ["jouleserve"]


def test_nothing_but_what_is_installed_comes_from_the_build_stage() -> None:
    _, final = stages()
    assert words(final, "COPY") == ["--from=build /opt/jouleserve /opt/jouleserve"]


def test_only_tracked_sources_are_sent_to_the_engine() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for text in words(stages()[0], "COPY") for name in text.split()[:-1]}
    assert copied == allowed


def _copy(text: str, where: Path) -> None:
    *sources, target = text.split()
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, where / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, where / target)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build stage's steps, in a folder that stands for the root of its file system."""
    root = tmp_path_factory.mktemp("image")
    source = root / "src"
    source.mkdir()
    arguments = {"BASE": BASE}
    for step in stages()[0]:
        if step.word == "ARG" and "=" in step.text:
            name, _, value = step.text.partition("=")
            arguments[name] = value.strip('"')
        if step.word == "COPY":
            _copy(step.text, source)
        if step.word == "RUN":
            # Wheels that are here already, no byte code, and a pip that weighs all the versions there are in a third of
            # the time that the interpreter's own takes: the same files sooner.
            command = step.text.replace("--no-cache-dir", "--no-compile").replace("/opt/", f"{root}/opt/")
            if step.text.startswith("python3 -m venv"):
                command += f" && {root}/opt/jouleserve/bin/python -m pip install --no-compile --quiet 'pip>=26'"
            command = command.replace("python3 -m venv", f"{sys.executable} -m venv")
            path = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), **arguments}
            done = subprocess.run(
                ["sh", "-c", command], cwd=source, env=path, capture_output=True, text=True, timeout=900, check=False
            )
            assert done.returncode == 0, f"{step.text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return root


def test_the_steps_run_in_a_clean_folder_and_what_they_install_works_outside_it(image: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish_tiny_family(store)
    program = image / "opt/jouleserve/bin/jouleserve"
    place = ["--set", f"model.store={store.root}", "--set", "model.family=tiny"]

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "is sound" in run(str(program), "models", "verify", *place)
    elsewhere = ["--set", f"model.store={tmp_path / 'other'}", "--set", "model.family=tiny"]
    assert "is sound and current" in run(str(program), "models", "fetch", store.root.as_uri(), *elsewhere)
    python = str(image / "opt/jouleserve/bin/python")
    parts = (
        "server.cluster, server.pod, server.leave, server.edge, server.console, server.rpc.server, server.node.service"
    )
    run(python, "-c", f"import {parts}")
    files = "console/console.html rpc/proto/open_inference.proto"
    run(
        python,
        "-c",
        f"import server, pathlib as p; [(p.Path(server.__file__).parent / f).stat() for f in '{files}'.split()]",
    )


def test_every_step_is_either_run_here_or_needs_an_engine() -> None:
    _, final = stages()
    assert all(text.startswith(NEEDS_AN_ENGINE) for text in words(final, "RUN"))
    assert not any(text.startswith(NEEDS_AN_ENGINE) for text in words(stages()[0], "RUN"))
