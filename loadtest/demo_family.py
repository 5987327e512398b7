"""The demo family and questions for it, made by the compiler as a user would make them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RECIPE = Path("models/recipes/support-intents.yaml")
FAMILY = "support-intents"
QUESTIONS = 6000


def compile_demo_family(store: Path, questions: Path) -> None:
    """Run the compiler (seconds if the family is in the store) and write labelled texts that it never trained on.

    Raises subprocess.CalledProcessError if either fails; the compiler has said why.
    """
    compiler = [sys.executable, "-m", "compile.cli"]
    subprocess.run([*compiler, "run", str(RECIPE), "--store", str(store)], check=True)
    asked = ["data", str(RECIPE), "--split", "test", "--rows", str(QUESTIONS), "--out", str(questions)]
    subprocess.run([*compiler, *asked], check=True)
