from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from server.node import wire
from server.node.child import node_settings
from server.node.settings import NodeSettings
from server.settings import Settings
from server.start_error import StartError
from server.usage import NodeLink, Usage


def test_a_command_line_turns_back_into_the_settings_it_came_from() -> None:
    settings = NodeSettings(
        run_dir=Path("/run/x"),
        host="0.0.0.0",
        port=1234,
        root_pid=77,
        energy_source="rapl",
        cpu_family="haswell",
        pue=1.3,
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


def test_a_long_run_folder_gets_a_short_one_for_its_sockets_that_node_and_replicas_find_alike(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    assert wire.socket_dir(deep).parent == Path(tempfile.gettempdir()).resolve()
    assert wire.socket_path(deep, "r-0123456789ab.sock") == str(wire.socket_dir(deep) / "r-0123456789ab.sock")
    assert wire.socket_dir(deep) == wire.socket_dir(deep / ".." / deep.name) != wire.socket_dir(deep / "other")
    assert NodeSettings(run_dir=deep).run_dir == deep
    assert wire.socket_dir(tmp_path) == tmp_path.resolve()


def test_a_run_folder_and_a_temporary_folder_too_long_for_sockets_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * 100)
    deep = Path("/" + "d" * 100)
    with pytest.raises(ValueError, match=r"run_dir: .* TMPDIR"):
        NodeSettings(run_dir=deep)
    with pytest.raises(ValueError, match="run_dir"):
        NodeLink(deep, Usage("intents"))
    settings = Settings.model_validate({"server": {"run_dir": deep}})
    with pytest.raises(StartError, match=r"server\.run_dir: "):
        node_settings(settings)


@pytest.mark.parametrize("trap", ["open to others", "a link", "a file"])
def test_a_socket_folder_that_is_not_ours_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(wire, "_MAX_PATH_BYTES", len(str(tmp_path)) + 60)
    deep = tmp_path / ("d" * 60)
    folder = wire.socket_dir(deep)
    assert folder.parent == tmp_path
    if trap == "a file":
        folder.touch()
    elif trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o755)
    with pytest.raises(PermissionError, match="not a folder of this user alone"):
        wire.own_socket_dir(deep)


def test_the_socket_folder_is_for_its_user_alone_and_goes_when_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(wire, "_MAX_PATH_BYTES", len(str(tmp_path)) + 60)
    deep = tmp_path / ("d" * 60)
    folder = wire.own_socket_dir(deep)
    assert wire.own_socket_dir(deep) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "node.sock").touch()
    wire.drop_socket_dir(deep)
    assert folder.exists()
    (folder / "node.sock").unlink()
    wire.drop_socket_dir(deep)
    assert not folder.exists()
