"""What a cluster's parts have in common; `tests/served/test_cluster.py` runs one."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cluster import _flat, _of_this_machine, app, total
from server.config import SettingsError, nested
from server.node.figures import Figures
from server.settings import Settings


def test_the_figures_of_machines_are_added_and_what_no_machine_knows_stays_unknown() -> None:
    machines = [Figures(None, None, 5, 1.5, 10.0), Figures(2.0, None, 7, 0.5, None)]
    assert total(machines) == Figures(2.0, None, 12, 2.0, 10.0)
    assert total([]) is None


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
