"""The whole compile line on a tiny model: publish, find again."""

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

from models.store import Store

pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
pytestmark = pytest.mark.trains

MakeRecipe = Callable[[Path, Path], dict[str, Any]]
_WAIT_SECONDS = 120


def command(recipe: Path, store: Path, work: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "compile.cli", "run", str(recipe), "--store", str(store), "--work", str(work), *more]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=_WAIT_SECONDS, check=False, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200"}


@pytest.fixture(scope="module")
def published(
    tiny_base: Path, keyword_csv: Path, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """An unbroken run: (recipe file, folder with store and work, what it printed)."""
    folder = tmp_path_factory.mktemp("published")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(make_recipe(tiny_base, keyword_csv)))
    done = run(recipe, folder / "store", folder / "work")
    assert done.returncode == 0, done.stderr
    return recipe, folder, done.stdout


def test_a_run_publishes_sound_variants_with_their_evidence(published: tuple[Path, Path, str]) -> None:
    _, folder, _ = published
    version = Store(folder / "store").open("tiny")
    manifest = version.manifest
    assert [v.name for v in manifest.variants] == ["fp32", "full", "lite"]
    assert [p.name for p in manifest.points] == ["full", "lite"]
    assert [v.layers for v in manifest.variants] == [3, 3, 1]
    assert manifest.variant("fp32").reference
    assert manifest.teacher_accuracy > 0.9
    assert manifest.labels == ("0", "1", "2", "3")
    assert manifest.max_tokens == 64
    for variant in manifest.variants:
        shown = variant.evidence
        assert shown.accuracy_lower < shown.accuracy <= 1
        assert shown.joules_per_1k is not None
        assert shown.compile_cpu_seconds is not None
        assert shown.compile_cpu_seconds > 0
        assert len(shown.latency) > 3
        assert (version.path / variant.model.path).stat().st_size == shown.size_bytes
    for point in manifest.points:
        assert point.tokenizing_cpu_seconds_per_1k is not None
        assert point.alone_cpu_seconds_per_1k is not None
        assert point.alone_cpu_seconds_per_1k > point.tokenizing_cpu_seconds_per_1k > 0
    assert manifest.variant("lite").lineage == (
        "finetune", "teach", "drop_layers", "distil", "probe_forms", "export", "quantize"
    )  # fmt: skip
    assert manifest.variant("full").evidence.agreement_with_fp32 is not None


def test_the_published_tokenizer_leaves_padding_and_cutting_to_the_server(published: tuple[Path, Path, str]) -> None:
    version = Store(published[1] / "store").open("tiny")
    described = json.loads((version.path / "tokenizer.json").read_text())
    assert described["padding"] is None
    assert described["truncation"] is None


def test_a_variant_that_misses_its_floor_is_left_out_with_the_reason(published: tuple[Path, Path, str]) -> None:
    _, folder, printed = published
    manifest = Store(folder / "store").open("tiny").manifest
    failed = next(c for c in manifest.candidates if c["name"] == "hopeless")
    assert not failed["published"]
    assert failed["reason"].startswith("hopeless: pass '")
    assert "must be >=" in failed["reason"]
    assert "left out: hopeless" in printed


def test_the_end_of_a_run_says_what_where_and_what_next(published: tuple[Path, Path, str]) -> None:
    _, folder, printed = published
    version = Store(folder / "store").open("tiny")
    assert f"published as {version.name}" in printed
    assert str(version.path) in printed
    assert f"jouleserve up --family tiny --store {folder / 'store'}" in printed
    report = folder / "reports" / "tiny" / version.name / "report.md"
    assert "| lite | 1 | int8 |" in report.read_text()
    assert "hopeless" in report.read_text()
    assert (report.parent / "accuracy-against-joules.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_command_prints_the_table_and_writes_the_figures(
    published: tuple[Path, Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from compile import cli

    store, kept = published[1] / "store", tmp_path / "tiny.json"
    monkeypatch.setattr(sys, "argv", ["x", "report", "--family", "tiny", "--store", str(store), "--json", str(kept)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "| full | 3 | int8 |" in capsys.readouterr().out
    figures = json.loads(kept.read_text())
    evidence = Store(store).open("tiny").manifest.variant("full").evidence
    assert figures["variants"]["full"]["accuracy"] == evidence.accuracy
    assert list(figures["failed"]) == ["hopeless"]


def test_a_family_that_is_not_in_the_store_ends_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compile import cli

    monkeypatch.setattr(sys, "argv", ["x", "report", "--family", "nothing", "--store", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "no family 'nothing'" in capsys.readouterr().err


def test_a_second_run_finds_it_in_the_store_without_importing_torch(published: tuple[Path, Path, str]) -> None:
    recipe, folder, _ = published
    code = (
        "import sys; sys.argv = ['x', *sys.argv[1:]]\n"
        "from compile import cli\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    arguments = command(recipe, folder / "store", folder / "elsewhere")[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=_WAIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "in the store already" in done.stdout
    assert len(Store(folder / "store").versions("tiny")) == 1


def test_a_pair_task_compiles_in_two_stages_of_training_and_its_graphs_ask_for_token_types(
    tiny_base: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    from compile.pipeline import compile_recipe
    from compile.recipe import parse_recipe

    rows = [
        ("please the account", second, i % 2) for i in range(150) for second in [("refund now", "late parcel")[i % 2]]
    ]
    data = tmp_path / "pairs.csv"
    data.write_text("text,text_b,label\n" + "".join(f"{a},{b},{label}\n" for a, b, label in rows))
    recipe = make_recipe(tiny_base, data)
    recipe["variants"] = [{"name": "full"}]
    recipe["finetune"] = [{**recipe["finetune"], "epochs": epochs} for epochs in (2, 1)]
    recipe["average_stages"] = True
    result = compile_recipe(parse_recipe(recipe, None, {}), Store(tmp_path / "store"), tmp_path / "work")
    manifest = result.version.manifest
    assert manifest.pair
    assert manifest.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert manifest.labels == ("0", "1")
    assert manifest.teacher_accuracy > 0.9
    assert manifest.variant("fp32").lineage[:3] == ("finetune", "finetune", "average")
