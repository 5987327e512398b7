"""What a cluster's parts have in common; `tests/served/test_cluster.py` runs one."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import cluster
from server.cluster import Growth, _flat, _of_this_machine, app
from server.config import SettingsError, nested
from server.node.figures import Figures
from server.settings import Settings


def grown(*told: tuple[str, float | None, int]) -> Figures | None:
    growth = Growth()
    for node, joules, texts in told:
        growth.take(Figures(None, None, texts, 0.5 * texts, joules, texts, node))
    return growth.figures()


def test_what_machines_count_is_added_from_when_they_were_first_heard_of() -> None:
    assert grown() is None
    assert grown(("a", 2e8, 70)) == Figures(None, None, 0, 0.0, 0.0, 0)
    found = grown(("a", 2e8, 70), ("b", 5.0, 1), ("a", 2e8 + 30, 75), ("b", 7.0, 3))
    assert found == Figures(None, None, 7, 3.5, 32.0, 7)


def test_a_machine_that_comes_back_is_not_counted_twice_and_one_that_went_back_goes_on_from_there() -> None:
    found = grown(("a", 2e8, 70), ("b", 1e8, 10), ("a", 2e8 + 30, 70), ("a", 2e8 + 25, 60), ("a", 2e8 + 28, 62))
    assert found == Figures(None, None, 2, 1.0, 33.0, 2)


def test_what_no_machine_knows_stays_unknown() -> None:
    found = grown(("a", None, 0), ("a", None, 4))
    assert found is not None
    assert found.joules is None
    found = grown(("a", None, 0), ("a", 50.0, 0), ("a", 51.0, 0))
    assert found is not None
    assert found.joules == 1.0


def test_only_so_many_machines_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MAX_NODES", 2)
    found = grown(("a", 1.0, 0), ("b", 1.0, 0), ("a", 2.0, 0), ("c", 1.0, 0), ("b", 900.0, 0), ("c", 2.0, 0))
    assert found is not None
    assert found.joules == 2.0


def test_each_machine_has_a_run_folder_and_a_metrics_port_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOULESERVE_SERVER__RUN_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("JOULESERVE_SERVER__METRICS_PORT", "9999")
    settings = _of_this_machine(Settings().model_dump(mode="json"))
    assert (settings.server.run_dir, settings.server.metrics_port) == (tmp_path / "mine", 9999)


def test_wrong_settings_are_refused_before_anything_is_deployed() -> None:
    with pytest.raises(SettingsError, match=r"server\.prot: unknown key"):
        app({"settings": {"server": {"prot": 8000}}})


def test_a_tree_of_settings_is_the_same_flat_and_nested() -> None:
    tree = {"server": {"port": 1}, "shaping": {"floors": {"eco": 0.5}, "policy": "off"}}
    assert nested(_flat(tree)) == tree
