"""A compile that is killed in the middle of every pass, one after another, ends with the files of an unbroken one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.store import Store, Version

pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
pytestmark = pytest.mark.trains

_WAIT_SECONDS = 300
PASSES = (
    "finetune", "probe_forms", "export", "evaluate", "quantize", "teach", "drop_layers", "distil", "prune_units",
    "reconstruct", "qat", "measure", "calibrate", "answer",
)  # fmt: skip
# Figures of a clock or a meter: no two runs have the same.
MEASURED = {
    "created_utc", "cpu_seconds_per_1k", "joules_per_1k", "latency", "cost", "compile_cpu_seconds", "compile_joules",
    "compile_seconds", "break_even_requests", "form_cpu_seconds_per_1k_of_2_layers",
}  # fmt: skip
# Which points are on the front depends on those figures, and so do the cascades that were rated.
CHOSEN_BY_MEASURE = {"points", "candidates"}

# Imports once, then forks: a child is killed by itself when the pass under test has done 30 % of its work, or, where a
# pass tells nothing while it works, when its files are written and only the gates are left. The last one of the broken
# line is the user's command; the unbroken one is made beside them.
DRIVER = """
import os, shutil, signal, sys
from pathlib import Path
import compile.cli, compile.line, compile.publish, compile.report
from compile.pipeline import compile_recipe
from compile.recipe import load_recipe
from compile.runner import Silent
from models import store as models_store

recipe_path, whole, broken, *names = sys.argv[1:]

class Killer(Silent):
    def __init__(self, name):
        self.name, self.running = name, ""
    def started(self, label, pass_name):
        self.running = pass_name
    def moved(self, share, note):
        if self.running == self.name and share >= 0.3:
            os.kill(os.getpid(), signal.SIGKILL)

def die_in_publish():
    copied = []
    def copyfile(source, target, real=shutil.copyfile):
        copied.append(target)
        if len(copied) == 2:
            Path(target).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, target)
    models_store.shutil.copyfile = copyfile

def begin(folder, name):
    child = os.fork()
    if child == 0:
        try:
            store, work = Path(folder) / "store", Path(folder) / "work"
            if name == "command":
                sys.argv = ["jouleserve-compile", "run", recipe_path, "--store", str(store), "--work", str(work)]
                compile.cli.main()
            if name == "publish":
                die_in_publish()
            compile_recipe(load_recipe(Path(recipe_path)), models_store.Store(store), work, Killer(name))
        except SystemExit as left:
            os._exit(left.code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def end(child):
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

unbroken = begin(whole, "nothing")
for name in names:
    code = end(begin(broken, name))
    assert code == -signal.SIGKILL, (name, code)
    assert not models_store.Store(Path(broken) / "store").families(), name
    print("killed in", name, flush=True)
assert end(begin(broken, "command")) == 0
assert end(unbroken) == 0
"""


def make(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a variant that runs every pass there is."""
    distil = {"epochs": 2, "learning_rate": 3e-3, "batch_rows": 16}
    every = [
        {"drop_layers": {"keep": 2, "choose": "divergence", "samples": 32}},
        {"distil": distil},
        {"prune_units": {"units": 0.5, "unit_group": 8, "rounds": 2, "samples": 32}},
        {"reconstruct": {"samples": 64}},
        {"distil": {**distil, "epochs": 1}},
        {"qat": {"steps": 10, "batch_rows": 16}},
        {"quantize": {"min_agreement": 0.5, "max_fp32_matmuls": 1}},
    ]
    return {**recipe, "variants": [{"name": "full"}, {"name": "lite", "passes": every}]}


def lasting(value: Any) -> Any:
    """A manifest without what a clock or a meter decides."""
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if k not in MEASURED | CHOSEN_BY_MEASURE}
    return [lasting(one) for one in value] if isinstance(value, list) else value


def manifest(version: Version) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((version.path / "manifest.json").read_text())
    return read


def made_from(version: Version) -> list[tuple[str, list[str]]]:
    return [(c["name"], c["lineage"]) for c in manifest(version)["candidates"] if "lineage" in c]


def test_killed_in_every_pass_and_while_publishing_it_goes_on_and_ends_with_the_same_bytes(
    tiny_base: Path, keyword_csv: Path, make_recipe: Callable[[Path, Path], dict[str, Any]], tmp_path: Path
) -> None:
    recipe, driver = tmp_path / "recipe.yaml", tmp_path / "driver.py"
    recipe.write_text(yaml.safe_dump(make(make_recipe(tiny_base, keyword_csv))))
    driver.write_text(DRIVER)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [str(recipe), str(whole), str(broken), *PASSES, "publish"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, str(driver), *arguments], capture_output=True, text=True, timeout=_WAIT_SECONDS, check=False,
        env=environment,
    )  # fmt: skip
    assert killed.returncode == 0, killed.stdout + killed.stderr
    assert killed.stdout.count("killed in") == len(PASSES) + 1
    one, other = (Store(folder / "store").open("tiny") for folder in (whole, broken))
    files = sorted(path.name for path in one.path.iterdir())
    assert sorted(path.name for path in other.path.iterdir()) == files
    for name in files:
        if name != "manifest.json":
            assert (other.path / name).read_bytes() == (one.path / name).read_bytes(), name
    assert lasting(manifest(other)) == lasting(manifest(one))
    assert made_from(other) == made_from(one)
    assert [path.name for path in (broken / "store" / "tiny").iterdir() if path.name.startswith(".")] == []
    assert not (broken / "work" / "staging").exists()
