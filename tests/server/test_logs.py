"""What fails unexpectedly is in the log, what clients sent is not, and the level of the settings counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from server.logs import set_up_logging
from server.settings import Settings

SECRET = b"Bearer a-secret-of-the-client"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    level = logging.getLogger("server").level
    yield
    structlog.reset_defaults()
    logging.getLogger("server").setLevel(level)


def fail(authorization: bytes) -> None:
    body = authorization * 2
    raise RuntimeError(f"{len(body)} bytes")


def test_a_traceback_shows_no_variables(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    try:
        fail(SECRET)
    except RuntimeError:
        structlog.get_logger("server.api").exception("a request failed unexpectedly")
    said = capsys.readouterr().err
    assert "a request failed unexpectedly" in said
    assert "in fail" in said
    assert f"{2 * len(SECRET)} bytes" in said
    assert "a-secret-of-the-client" not in said


def test_what_is_below_the_level_is_not_logged_by_either_kind_of_logger(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("error")
    structlog.get_logger("server.guard").warning("not said")
    assert not logging.getLogger("server.engine").isEnabledFor(logging.WARNING)
    structlog.get_logger("server.guard").error("said", number=7)
    assert "not said" not in (said := capsys.readouterr().err)
    assert "said" in said
    assert "number" in said


def test_a_replica_of_ray_logs_as_its_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a process of its own, which the command has told nothing."""
    deployment = pytest.importorskip("server.deployment")
    levels: list[str] = []
    monkeypatch.setattr(deployment, "set_up_logging", levels.append)
    monkeypatch.setattr("server.lean_ray.in_replica", lambda: None)
    monkeypatch.setattr("server.replica.Replica", lambda settings, **_: None)
    ours = deployment._Ingress.__mro__[1]  # below what Serve makes of it
    settings = Settings.model_validate({"server": {"log_level": "error"}})
    ours.__init__(object.__new__(ours), settings.model_dump(mode="json"))
    assert levels == ["error"]
