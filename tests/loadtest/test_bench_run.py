"""The benchmark end to end: a real quick run against edge mode, and what becomes of peers that are not there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from loadtest.bench.__main__ import main
from loadtest.bench.crew import Crew, until
from loadtest.bench.plan import QUICK
from loadtest.bench.workloads import model_files
from loadtest.peers.contestant import DidNotStart, Running, Wire, tei_body
from loadtest.peers.model import Encoder, ModelFiles
from loadtest.peers.peer import Peer
from models.store import Version

WIRE = Wire("/predict", tei_body)
BRIEF = replace(
    QUICK, slice_seconds=0.5, warm_seconds=0.2, floor_texts=100, rate_seconds=1.0, idle_seconds=1.0, cache_texts=200
)
FILES = ModelFiles("a.onnx", "t.json", ("x", "y"), 0, 64, Encoder(10, 20, 384, 1536, 6))


@pytest.mark.served
def test_a_quick_run_against_edge_mode_measures_judges_and_draws(
    tiny_version: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.bench.__main__.QUICK", BRIEF)
    words = ["card", "refund", "parcel", "please", "my", "where", *(f"w{number}" for number in range(50))]
    (tmp_path / "texts.txt").write_text("".join(f"{one} {other}\n" for one in words for other in words))
    store, folder = tiny_version.path.parent.parent, tmp_path / "bench"
    arguments = ["--quick", "--store", str(store), "--family", "tiny", "--texts", str(tmp_path / "texts.txt")]
    code = main([*arguments, "--folder", str(folder), "--only", "edge", "--clients", "1", "4"])
    written = json.loads((folder / "bench.json").read_text())
    printed = capsys.readouterr().out
    assert [(one["mix"], one["clients"]) for one in written["rounds"][0]["loads"]] == [
        ("realistic", 1),
        ("realistic", 4),
        ("uniform", 4),
    ]
    assert all(one["replies"] > 10 and not one["failures"] for one in written["rounds"][0]["loads"])
    assert [one["rate_per_s"] for one in written["rates"]] == [5, 50]
    assert 0.1 < written["cache"][0]["hit_share"] < 1
    assert written["rests"][0]["pss_mb"] > 20
    assert code == (1 if any(one["met"] is False for one in written["verdicts"]) else 0)
    assert "MISSED" in printed or code == 0
    assert "ours, edge mode" in printed
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")


@dataclass(frozen=True)
class Someone:
    """A contestant that fails in one way or another."""

    name: str
    ours: bool = False
    sleeps: bool = False
    why: str | None = None
    starts: bool = True

    def absent(self) -> str | None:
        return self.why

    @contextlib.contextmanager
    def running(self, files: ModelFiles, folder: Path) -> Iterator[Running]:
        if not self.starts:
            raise DidNotStart("no Java")
        yield Running(1, 1, WIRE, 1.0, 1.0)


def crew_of(*contestants: Someone, available_bytes: int = 10**12) -> Crew:
    return Crew(contestants, FILES, Path(), lambda running: None, lambda words: None, available_bytes)


def test_who_cannot_take_part_is_named_with_the_reason() -> None:
    crew = crew_of(Someone("a"), Someone("b", why="not installed"), Someone("c", starts=False))
    with crew.at_work():
        seen: list[str] = []
        crew.each(crew.members, lambda one, running: seen.append(one.name))
    assert seen == ["a"]
    assert crew.absent == {"b": "not installed", "c": "no Java"}


def test_one_of_ours_that_does_not_start_ends_the_run() -> None:
    with pytest.raises(DidNotStart), crew_of(Someone("a", ours=True, starts=False)).at_work():
        pass


def test_a_peer_that_fails_under_load_is_left_out_from_then_on() -> None:
    crew = crew_of(Someone("a"), Someone("b"))

    def fails(one: object, running: Running) -> None:
        raise TimeoutError("no answer")

    with crew.at_work():
        crew.each(crew.members[:1], fails)
    assert [one.name for one in crew.members] == ["b"]
    assert crew.absent == {"a": "no answer"}


def test_with_little_memory_each_runs_only_while_it_is_visited() -> None:
    started: list[str] = []
    crew = Crew([Someone("a"), Someone("b")], FILES, Path(), lambda running: started.append("x"), print, 10**9)
    with crew.at_work():
        assert started == []
        crew.each(crew.members, lambda one, running: None)
    assert started == ["x", "x"]


def test_who_bears_it_sleeps_while_others_are_measured_and_wakes_for_its_turn() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:

        @dataclass(frozen=True)
        class Sleeper(Someone):
            sleeps: bool = True

            @contextlib.contextmanager
            def running(self, files: ModelFiles, folder: Path) -> Iterator[Running]:
                yield Running(process.pid, 1, WIRE, 1.0, 1.0)

        def stopped(wanted: bool) -> bool:
            """Whether it comes to that within 5 s: a signal takes effect a moment after it was sent."""
            deadline = time.monotonic() + 5
            while (psutil.Process(process.pid).status() == psutil.STATUS_STOPPED) is not wanted:
                if time.monotonic() > deadline:
                    return not wanted
                time.sleep(0.01)
            return wanted

        states: list[bool] = []
        crew = crew_of(Sleeper("a"))
        with crew.at_work():
            crew.each(crew.members, lambda one, running: None)
            assert not stopped(False)
            crew.hush()
            assert stopped(True)
            crew.each(crew.members, lambda one, running: states.append(stopped(False)))
            assert stopped(True)
        assert not stopped(False)
        process.kill()
    assert states == [False]


def test_a_peer_whose_environment_is_missing_says_how_to_make_it(tmp_path: Path) -> None:
    peer = Peer("X", ("json",), ("-m", "x"), WIRE, python=tmp_path / "python")
    assert "make peers" in str(peer.absent())


def test_a_run_of_load_ends_after_its_time_and_asks_at_least_once() -> None:
    now = iter(range(100))
    assert list(until(iter([b"a"] * 50), 3, lambda: next(now))) == [b"a"] * 3
    assert list(until(iter([b"a"] * 50), 0, lambda: 0.0)) == [b"a"]


def test_the_files_of_a_model_come_back_as_they_were_saved(tmp_path: Path) -> None:
    for files in (FILES, ModelFiles("a", "b", ("x",), 1, 2, None)):
        files.save(tmp_path / "model.json")
        assert ModelFiles.load(tmp_path / "model.json") == files
    assert FILES.encoder is not None
    assert FILES.encoder.heads == 12


def test_a_family_that_is_no_bert_has_no_encoder_sizes(tiny_version: Version) -> None:
    files = model_files(tiny_version, "lite")
    assert files.encoder is None
    assert files.onnx.endswith("lite.onnx")
    assert files.labels == ("card", "refund", "parcel")
