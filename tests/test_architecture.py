"""The house rules that a machine can check: who imports whom, and what stays out of the serving process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "ray", "onnx", "compile")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("module", ["server.engine.engine", "server.api.app", "server.replica", "server.node.service"])
def test_serving_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_the_engine_loads_no_web_framework() -> None:
    code = "import sys, server.engine.engine; print(*({'fastapi', 'starlette', 'uvicorn'} & sys.modules.keys()))"
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_the_packages_import_only_what_they_may() -> None:
    done = run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("package", ["server", "models", "energy", "compile", "loadtest"])
def test_no_module_has_grown_out_of_hand(package: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / package).rglob("*.py")}
    assert lengths
    assert {str(path): lines for path, lines in lengths.items() if lines > 480} == {}
