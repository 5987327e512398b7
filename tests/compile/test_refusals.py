"""What cannot be compiled ends with exit code 2, the field and the remedy, and leaves the store as it was."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from compile import cli
from compile.errors import StorageError, Unfinished
from compile.pipeline import compile_recipe
from compile.recipe import parse_recipe
from models.store import Store, Version

MakeRecipe = Callable[[Path, Path], dict[str, Any]]
_WAIT_SECONDS = 300
ROWS = "text,label\n" + "".join(f"please refund {i},{i % 2}\n" for i in range(60))
CUT = {"drop_layers": {"keep": 2}}


def order(*passes: Any) -> dict[str, Any]:
    return {"variants": [{"name": "full"}, {"name": "lite", "passes": list(passes)}]}


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path, *more: str) -> str:
    """Run the command's own entry point; what it says on its way out with code 2."""
    monkeypatch.setattr(sys, "argv", ["jouleserve-compile", "run", str(recipe), *more])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    assert "Remedy: " in said
    assert "Traceback" not in said
    return said


@pytest.fixture
def write(tiny_base: Path, make_recipe: MakeRecipe, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe with changes, and its data."""

    def written(changes: dict[str, Any], rows: str = ROWS) -> Path:
        (tmp_path / "rows.csv").write_text(rows)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**make_recipe(tiny_base, tmp_path / "rows.csv"), **changes}))
        return path

    return written


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"pooling": "max"}, "pooling", "mean"),
        ({"data": "gone.csv"}, "data", "does not exist"),
        ({"base": "no-such-model"}, "base", "neither packaged"),
        ({"data": "${NO_SUCH_VARIABLE}/x"}, "data", "NO_SUCH_VARIABLE"),
        ({"max_tokens": 65}, "max_tokens", "64 positions"),
        ({"variants": [{"name": "full"}, {"name": "lite", "layers": [0, 9]}]}, "variants.1.layers", "layer 9"),
        (order({"drop_layers": {"keep": 9}}), "variants.1.passes.0.drop_layers.keep", "9 of 3 layers"),
        (order({"drop_layers": {"layers": [0, 1]}}, {"drop_layers": {"layers": [2]}}),
         "variants.1.passes.1.drop_layers.layers", "layers 0 to 1"),
        (order(CUT, {"shrink": {}}), "variants.1.passes.1.shrink", "no such pass"),
        (order({"prune_units": {"units": 0.5}}, CUT), "variants.1.passes.1", "layers leave before units"),
        (order(CUT, "quantize", "distil"), "variants.1.passes.2", "put 'quantize' last"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_before_anything_is_written(
    write: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    field: str,
    words: str,
) -> None:
    recipe = write(changes)
    said = refused(capsys, monkeypatch, recipe, "--store", str(tmp_path / "store"), "--work", str(tmp_path / "work"))
    assert f"jouleserve-compile: {field}: " in said
    assert words in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "rows.csv"]


@pytest.mark.parametrize(
    ("rows", "field", "words"),
    [
        ("text,label\n", "data.train", "no rows"),
        ("", "data.label", "no column"),
        ("text,label\n" + "a b,0\n" * 40, "data.label", "fewer than two"),
        (ROWS + "late,-1\n", "data.label", "label -1"),
        (ROWS + "late,9000000\n", "data.label", "label 9000000 of only 61 rows"),
        (ROWS + ",1\n", "data.text", "zero length, the first in row 61"),
        (ROWS + "   ,1\n", "data.text", "zero length"),
        (ROWS + "late\n", "data.label", "empty"),
    ],
)
def test_unfit_data_is_refused_before_anything_is_written(
    write: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rows: str,
    field: str,
    words: str,
) -> None:
    recipe = write({}, rows)
    said = refused(capsys, monkeypatch, recipe, "--store", str(tmp_path / "store"), "--work", str(tmp_path / "work"))
    assert f"jouleserve-compile: {field}: " in said
    assert words in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "rows.csv"]


@pytest.mark.parametrize(
    "arguments", [["report", "--out"], ["report", "--json"], ["data", "models/recipes/support-intents.yaml", "--out"]]
)
def test_a_path_that_cannot_be_written_is_named(
    tiny_version: Version,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    (tmp_path / "a-file").write_text("in the way")
    monkeypatch.setenv("JOULESERVE_STORE", str(tiny_version.path.parent.parent))
    more = ["--family", "tiny"] if arguments[0] == "report" else []
    monkeypatch.setattr(sys, "argv", ["jouleserve-compile", *arguments, str(tmp_path / "a-file" / "x"), *more])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    assert "a-file" in said
    assert "Remedy: give another path" in said


def test_without_the_packages_that_compile_the_command_says_which_to_install(write: Callable[..., Path]) -> None:
    without = "import sys; sys.modules.update(dict.fromkeys(('torch', 'safetensors', 'transformers')))\n"
    code = f"{without}from compile.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(write({}))], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "is not installed. Remedy: pip install '.[compile]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.trains
def test_a_floor_that_nothing_meets_names_the_nearest_miss_and_publishes_nothing(
    write: Callable[..., Path],
    keyword_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A teacher that has hardly learned sits between its labels, so that rounding moves some answers.
    recipe = write(
        {
            "finetune": {"epochs": 1, "learning_rate": 1e-3, "batch_rows": 16, "freeze_embeddings": False},
            "quantize": {"method": "weight_only_4bit", "min_agreement": 1.0, "max_fp32_matmuls": 0},
            "variants": [{"name": "full"}, {"name": "lite", "layers": [0], "distil": {"epochs": 1}}],
        },
        keyword_csv.read_text(),
    )
    store = tmp_path / "store"
    said = refused(capsys, monkeypatch, recipe, "--store", str(store), "--work", str(tmp_path / "work"))
    assert "quantize.min_agreement: no candidate for 'full' meets the floor" in said
    assert "The nearest miss is '" in said
    assert not store.exists()


def by_shell(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a mount namespace of its own; skips where the machine allows none."""
    if shutil.which("unshare") is None:
        pytest.skip("mounting needs unshare")
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *arguments]
    probe = subprocess.run([*inside[:3], "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("this machine lets no test mount anything")
    return subprocess.run(inside, capture_output=True, text=True, timeout=_WAIT_SECONDS, check=False)


def test_a_store_on_a_read_only_file_system_is_refused_before_any_work(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    store, work = tmp_path / "store", tmp_path / "work"
    store.mkdir()
    script = (
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$4" -m compile.cli run "$3" '
        '--store "$1" --work "$2"'
    )
    done = by_shell(script, str(store), str(work), str(write({})), sys.executable)
    assert done.returncode == 2, done.stderr
    assert "jouleserve-compile: store: " in done.stderr
    assert "cannot be written" in done.stderr
    assert list(store.iterdir()) == []
    assert not work.exists()


@pytest.mark.trains
@pytest.mark.parametrize("full", ["work", "store"])
def test_a_full_disk_ends_with_a_typed_error_and_the_store_as_it_was(
    write: Callable[..., Path], keyword_csv: Path, tmp_path: Path, full: str
) -> None:
    recipe = write(
        {
            "finetune": {"epochs": 2, "learning_rate": 3e-3, "batch_rows": 32, "freeze_embeddings": False},
            "variants": [{"name": "full"}],
            "calibrate": {"enabled": False},
        },
        keyword_csv.read_text(),
    )
    for name in ("store", "work"):
        (tmp_path / name).mkdir()
    script = (
        'mount -t tmpfs -o size=128k tmpfs "$5" && "$4" -m compile.cli run "$3" --store "$1" --work "$2"; '
        'code=$?; find "$1" -mindepth 1; exit $code'
    )
    places = [str(tmp_path / name) for name in ("store", "work")]
    done = by_shell(script, *places, str(recipe), sys.executable, str(tmp_path / full))
    assert done.returncode == 2, done.stderr
    assert f"jouleserve-compile: {full}: no space is left to write" in done.stderr
    assert "Remedy: " in done.stderr
    assert str(tmp_path / "store") not in done.stdout


@pytest.mark.trains
def test_a_disk_that_is_full_while_a_later_variant_is_exported_ends_the_run_and_the_same_command_makes_it_whole(
    tiny_base: Path,
    keyword_csv: Path,
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk says nothing of the variant: it must not be published without it."""
    import compile.passes.export as module

    recipe = parse_recipe(make_recipe(tiny_base, keyword_csv), None, {})
    store, export, exported = Store(tmp_path / "store"), module.export_form, 0

    def fails_the_second_time(*given: Any) -> None:
        nonlocal exported
        exported += 1
        if exported == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        export(*given)

    monkeypatch.setattr(module, "export_form", fails_the_second_time)
    with pytest.raises(StorageError, match="no space is left"):
        compile_recipe(recipe, store, tmp_path / "work")
    assert store.families() == []
    again = compile_recipe(recipe, store, tmp_path / "work")
    assert not again.found
    assert "lite" in {one.name for one in again.version.manifest.variants}


@pytest.mark.trains
def test_a_report_that_cannot_be_written_fails_nothing_and_is_made_up_for_by_the_next_run(
    tiny_base: Path, keyword_csv: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = parse_recipe({**make_recipe(tiny_base, keyword_csv), "variants": [{"name": "full"}]}, None, {})
    in_the_way = tmp_path / "reports"
    in_the_way.write_text("a file")
    store = Store(tmp_path / "store")
    made = compile_recipe(recipe, store, tmp_path / "work")
    assert made.report_failed
    assert store.families() == [recipe.family]
    in_the_way.unlink()
    again = compile_recipe(recipe, store, tmp_path / "work")
    assert (again.found, again.report_failed) == (True, None)
    assert again.report.is_file()


def test_a_check_that_is_killed_or_takes_too_long_says_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import compile.graph.sessions as module

    class Session:
        def run(self, *_: Any) -> list[Any]:
            return [np.zeros((1, 2))]

    monkeypatch.setattr(module, "open_session", lambda path: Session())
    monkeypatch.setattr(module, "_FRESH", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(Unfinished, match="signal 9"):
        module.fresh_process_difference(tmp_path / "x.onnx", {}, tmp_path)
    monkeypatch.setattr(module, "_FRESH", "import time; time.sleep(60)")
    monkeypatch.setattr(module, "_FRESH_SECONDS", 0.2)
    with pytest.raises(Unfinished, match="more than"):
        module.fresh_process_difference(tmp_path / "x.onnx", {}, tmp_path)
