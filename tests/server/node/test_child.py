"""The log of the node process that a server starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.node import child


def test_a_long_log_gives_way_to_a_new_one_and_one_old_log_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "LOG_BYTES", 10)
    log_file = tmp_path / "node.log"
    child.make_room(log_file)
    for text, old in (("short", None), ("first long one", "first long one"), ("second long one", "second long one")):
        log_file.write_text(text)
        child.make_room(log_file)
        assert log_file.exists() is (old is None)
        if old is not None:
            assert (tmp_path / "node.log.1").read_text() == old
    assert len(list(tmp_path.iterdir())) == 1
