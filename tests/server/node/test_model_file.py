from __future__ import annotations

from pathlib import Path

import pytest

from server.node.model_file import FILE_NAME, CompileCost, ModelFile, encode_costs, parse_costs

COSTS = (
    CompileCost("intents", "full", 1500.0, 400.0, "estimated", 0.5),
    CompileCost("intents", "nano", None, None, None, None),
)


def test_the_costs_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = ModelFile(tmp_path)
    assert file.costs() == ()
    (tmp_path / FILE_NAME).write_bytes(encode_costs(COSTS))
    assert file.costs() == COSTS


@pytest.mark.parametrize("content", [b"{", b"[1]", b'[{"model": "a"}]', encode_costs(COSTS).replace(b"1500.0", b"-1")])
def test_a_file_that_is_not_ours_changes_nothing(tmp_path: Path, content: bytes) -> None:
    file = ModelFile(tmp_path)
    path = tmp_path / FILE_NAME
    path.write_bytes(encode_costs(COSTS))
    file.costs()
    path.unlink()
    path.write_bytes(content)
    assert file.costs() == COSTS
    with pytest.raises(ValueError):
        parse_costs(content)
