from __future__ import annotations

from pathlib import Path

import pytest

from server.node.settings import NodeSettings


def test_a_command_line_turns_back_into_the_settings_it_came_from() -> None:
    settings = NodeSettings(
        run_dir=Path("/run/x"),
        host="0.0.0.0",
        port=1234,
        root_pid=77,
        energy_source="rapl",
        cpu_family="haswell",
        pue=1.3,
        state_path=Path("/var/x.json"),
        tick_seconds=0.5,
        persist_seconds=3.0,
        proc_root=Path("/p"),
        powercap_root=Path("/c"),
    )
    assert NodeSettings.from_arguments(settings.to_arguments()) == settings
    plain = NodeSettings(run_dir=Path("/run/x"))
    assert NodeSettings.from_arguments(plain.to_arguments()) == plain
    assert plain.state_file == Path("/run/x/node.json")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"run_dir": Path("/" + "x" * 120)}, "run_dir"),
        ({"port": -1}, "port"),
        ({"root_pid": -1}, "root_pid"),
        ({"energy_source": "solar"}, "energy_source"),
        ({"pue": 0.9}, "pue"),
        ({"tick_seconds": 0.0}, "tick_seconds"),
        ({"persist_seconds": 0.0}, "persist_seconds"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        NodeSettings(**{"run_dir": Path("/run/x"), **changes})  # type: ignore[arg-type]
