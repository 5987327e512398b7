"""Passes run once for equal work, are redone when bytes rot, and are not kept when a gate fails."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compile.artifact import Artifact, Spent
from compile.errors import Busy, GateFailed
from compile.measure.cpu import this_cpu
from compile.passes.base import Gate, Pass
from compile.passes.versions import VERSIONS
from compile.recipe import parse_recipe
from compile.run_key import run_key
from compile.runner import Runner, artifact_key, exclusive

CONTEXT: Any = type("Context", (), {})()


class Count(Pass):
    """Writes a number and remembers how often it ran."""

    name = "count"

    def __init__(self, number: int = 1, measured: float = 1.0) -> None:
        self.number, self.measured, self.calls = number, measured, 0

    def config(self) -> Mapping[str, Any]:
        return {"number": self.number}

    def call(self, inputs: Mapping[str, Artifact], out: Path, context: Any) -> dict[str, Any]:
        self.calls += 1
        (out / "number").write_text(str(self.number))
        return {"number": self.number}

    def ensures(self, inputs: Any, out: Path, meta: Any, context: Any) -> list[Gate]:
        return [Gate("measured", self.measured, 0.5)]


def source(key: str = "k") -> Artifact:
    return Artifact("data", "data", key, Path())


def test_equal_work_is_done_once_even_by_another_runner(tmp_path: Path) -> None:
    one = Count()
    first = Runner(tmp_path, CONTEXT).run("a", one, {"data": source()})
    again = Runner(tmp_path, CONTEXT).run("b", one, {"data": source()})
    assert one.calls == 1
    assert (again.path, again.key, dict(again.meta)) == (first.path, first.key, dict(first.meta))
    assert again.spent.cpu_seconds == first.spent.cpu_seconds


@pytest.mark.parametrize(
    "other",
    [
        artifact_key(Count(2), {"data": source()}),
        artifact_key(Count(1), {"data": source("other")}),
        artifact_key(Count(1), {"model": source()}),
        artifact_key(type("Count", (Count,), {"version": 2})(1), {"data": source()}),
    ],
)
def test_the_key_tells_configuration_inputs_roles_and_version_apart(other: str) -> None:
    assert artifact_key(Count(1), {"data": source()}) != other


def test_a_changed_byte_in_the_cache_is_noticed_and_the_work_redone(tmp_path: Path) -> None:
    one = Count()
    made = Runner(tmp_path, CONTEXT).run("a", one, {})
    (made.path / "number").write_text("9")
    again = Runner(tmp_path, CONTEXT).run("a", one, {})
    assert one.calls == 2
    assert (again.path / "number").read_text() == "1"


def test_a_failed_gate_names_the_miss_and_caches_nothing(tmp_path: Path) -> None:
    runner, low = Runner(tmp_path, CONTEXT), Count(measured=0.25)
    for _ in range(2):
        with pytest.raises(GateFailed, match=r"lite: pass 'count'.*measured 0\.25, must be >= 0\.5"):
            runner.run("lite", low, {})
    assert low.calls == 2
    assert not list((tmp_path / "cache").glob("*/done.json"))


def test_a_failed_gate_hands_over_what_was_made_and_what_that_cost(tmp_path: Path) -> None:
    with pytest.raises(GateFailed) as failed:
        Runner(tmp_path, CONTEXT).run("lite", Count(measured=0.25), {})
    made = failed.value.made
    assert made is not None
    assert (made.path / "number").read_text() == "1"
    assert (made.meta["number"], made.meta["gates"][0]["measured"]) == (1, 0.25)
    assert made.spent.cpu_seconds > 0


@pytest.mark.parametrize("killed", [False, True])
def test_joules_of_work_on_a_gpu_are_unknown_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    torch = pytest.importorskip("torch", reason="compiling needs torch: pip install '.[compile]'")
    from compile.device import best_device

    class Trains(Count):
        def call(self, inputs: Any, out: Path, context: Any) -> dict[str, Any]:
            if not (out / "checkpoint").exists():
                best_device()
                (out / "checkpoint").touch()
                if killed:
                    context.note_spent()
                    raise KeyboardInterrupt
            return super().call(inputs, out, context)

    runner = Runner(tmp_path, CONTEXT)
    assert runner.run("a", Count(2), {}).spent.joules is not None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            runner.run("a", Trains(), {})
    for _ in ("made", "found again"):
        spent = runner.run("a", Trains(), {}).spent
        assert spent.joules is None
        assert spent.unmeasured is not None
        assert "GPU" in spent.unmeasured
        assert (spent + Spent(1.0, 2.0)).unmeasured == spent.unmeasured
    assert runner.run("a", Count(3), {}).spent.joules is not None


def test_a_figure_that_is_not_a_number_never_meets_a_gate() -> None:
    assert not Gate("x", float("nan"), 1.0).holds
    assert not Gate("x", float("nan"), 1.0, at_most=True).holds
    assert Gate("x", 1.0, 1.0).holds
    assert Gate("x", 1.0, 1.0, at_most=True).holds


def test_what_a_killed_attempt_spent_is_added_to_the_next(tmp_path: Path) -> None:
    class Killed(Count):
        def call(self, inputs: Any, out: Path, context: Any) -> dict[str, Any]:
            if not (out / "checkpoint").exists():
                (out / "checkpoint").touch()
                sum(range(3_000_000))
                context.note_spent()
                raise KeyboardInterrupt
            return super().call(inputs, out, context)

    runner = Runner(tmp_path, CONTEXT)
    with pytest.raises(KeyboardInterrupt):
        runner.run("a", Killed(), {})
    made = runner.run("a", Killed(), {})
    whole = Runner(tmp_path / "other", CONTEXT).run("a", Count(), {})
    assert made.spent.cpu_seconds > whole.spent.cpu_seconds + 0.01


def test_spent_joules_are_unknown_as_soon_as_one_part_is() -> None:
    assert Spent(1, 2) + Spent(3, 4) == Spent(4, 6)
    assert (Spent(1, 2) + Spent(3, None)).joules is None


def test_two_runs_do_not_share_a_work_folder(tmp_path: Path) -> None:
    caught: list[type[BaseException]] = []

    def second() -> None:
        try:
            with exclusive(tmp_path):
                pass
        except Busy:
            caught.append(Busy)

    with exclusive(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=10)
    assert caught == [Busy]
    with exclusive(tmp_path):
        pass


def test_every_pass_has_its_version_in_the_table_that_a_run_s_key_is_made_of() -> None:
    pytest.importorskip("torch")
    import compile.line  # noqa: F401

    passes = [one for one in Pass.__subclasses__() if one.__module__.startswith("compile.passes.")]
    assert {one.name: one.version for one in passes} == VERSIONS


def test_a_pass_that_changed_makes_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import compile.run_key as module

    recipe = parse_recipe(
        {"family": "tiny", "data": {"source": "x.csv"}, "base": "somewhere", "variants": [{"name": "full"}]}, None, {}
    )
    base: Any = type("Base", (), {"digest": "b"})()
    before = run_key(recipe, "d", base, this_cpu())
    monkeypatch.setattr(module, "VERSIONS", {**VERSIONS, "quantize": VERSIONS["quantize"] + 1})
    assert run_key(recipe, "d", base, this_cpu()) != before
