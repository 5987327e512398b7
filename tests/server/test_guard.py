"""The guard lets in who has a key, as much as agreed, follows its file without a restart, and tells nobody a key."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from server.config_problems import SettingsError
from server.engine.errors import BackendFailure, NotReady, Overloaded
from server.exposure import check_exposure, is_loopback, make_guard
from server.guard import (
    Bucket,
    Guard,
    KeyFileError,
    RateLimit,
    RateLimited,
    Unauthenticated,
    read_keys,
)
from server.settings import ServerSettings, Settings

ALI, BEA = "key-of-ali-0123456789", "key-of-bea-0123456789"


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def line(name: str, key: str) -> str:
    return f"{name}: sha256:{hashlib.sha256(key.encode()).hexdigest()}\n"


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    """Replace the file in one step, as its operator should."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write(tmp_path / "keys", f"# clients\n\n{line('ali', ALI)}{line('bea', BEA)}")


def test_every_key_of_the_file_is_let_in(keys: Path) -> None:
    guard = Guard(keys, None, Clock())
    for sent in (bearer(ALI), bearer(BEA), b"bearer  " + ALI.encode() + b" "):
        guard.admit(sent, 1)
    with pytest.raises(Unauthenticated):
        guard.admit(bearer(ALI + "x"), 1)


@pytest.mark.parametrize(
    "sent",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        bearer(ALI[:-1]),
        bearer(ALI + "x"),
        b"Basic " + ALI.encode(),
        ALI.encode(),
        bearer("ali"),
        bearer(hashlib.sha256(ALI.encode()).hexdigest()),
        b"Bearer \xff\xfe",
    ],
    ids=repr,
)
def test_nothing_else_is_let_in_and_the_error_does_not_repeat_it(keys: Path, sent: bytes | None) -> None:
    with pytest.raises(Unauthenticated) as error:
        Guard(keys, None, Clock()).admit(sent, 1)
    assert ALI[:-1] not in str(error.value)


def test_a_key_is_looked_up_and_not_compared_with_all_others(keys: Path) -> None:
    guard = Guard(keys, None, Clock())
    guard.admit(bearer(ALI), 1)

    class Unlisted(dict[bytes, object]):
        """Keys that cannot be gone through."""

        def __iter__(self) -> object:  # type: ignore[override]
            raise AssertionError("every key was looked at")

        values = items = keys = __iter__  # type: ignore[assignment]

    guard._keys = Unlisted(guard._keys)  # type: ignore[assignment]
    guard.admit(bearer(BEA), 1)
    with pytest.raises(Unauthenticated):
        guard.admit(bearer("another"), 1)


def test_a_changed_file_is_followed_within_a_second(keys: Path) -> None:
    clock = Clock()
    guard = Guard(keys, None, clock)
    guard.admit(bearer(ALI), 1)
    write(keys, line("bea", BEA))
    guard.admit(bearer(ALI), 1)  # not looked at yet
    clock.now += 1
    with pytest.raises(Unauthenticated):
        guard.admit(bearer(ALI), 1)
    guard.admit(bearer(BEA), 1)


def test_the_file_is_looked_at_once_a_second_at_most(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    stat = os.stat
    clock = Clock()
    guard = Guard(keys, None, clock)
    monkeypatch.setattr("server.guard.os.stat", lambda path: looks.append(path) or stat(path))
    for _ in range(50):
        guard.admit(bearer(ALI), 1)
        clock.now += 0.1
    assert 5 <= len(looks) <= 6


BROKEN = {
    "a key in the clear": f"{line('bea', BEA)}cleo: key-of-cleo\n",
    "half a line": line("bea", BEA) + line("cleo", "c")[:-10],
    "no name": line("", BEA),
    "a name twice": line("bea", BEA) + line("bea", ALI),
    "a key twice": line("bea", BEA) + line("cleo", BEA),
    "no keys": "# none\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_keeps_the_former_keys_and_the_log_names_the_line(keys: Path, text: str) -> None:
    clock = Clock()
    guard = Guard(keys, None, clock)
    guard.admit(bearer(ALI), 1)
    write(keys, text)
    clock.now += 1
    with structlog.testing.capture_logs() as logged:
        guard.admit(bearer(ALI), 1)
        clock.now += 5
        guard.admit(bearer(ALI), 1)
    assert [entry["event"] for entry in logged] == ["api_keys_refused"]  # once for each change
    why = logged[0]["why"]
    assert str(keys) in why
    assert (", line " in why) == (text != BROKEN["no keys"])
    assert "key-of-cleo" not in str(logged)
    write(keys, line("bea", BEA))
    clock.now += 1
    with pytest.raises(Unauthenticated):
        guard.admit(bearer(ALI), 1)


def test_a_file_that_goes_away_keeps_the_former_keys(keys: Path) -> None:
    clock = Clock()
    guard = Guard(keys, None, clock)
    guard.admit(bearer(ALI), 1)
    keys.unlink()
    clock.now += 1
    with structlog.testing.capture_logs() as logged:
        guard.admit(bearer(ALI), 1)
    assert logged[0]["event"] == "api_keys_refused"


def full(*_: object) -> int:
    raise OSError(24, "Too many open files")


def test_a_file_that_could_not_be_read_once_is_read_again(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    guard = Guard(keys, None, clock)
    guard.admit(bearer(ALI), 1)
    write(keys, line("bea", BEA))
    with monkeypatch.context() as patch, structlog.testing.capture_logs() as logged:
        patch.setattr("server.guard.os.open", full)
        for _ in range(3):
            clock.now += 1
            guard.admit(bearer(ALI), 1)
    assert [entry["event"] for entry in logged] == ["api_keys_refused"]
    assert "Too many open files" in logged[0]["why"]
    clock.now += 1
    guard.admit(bearer(BEA), 1)
    with pytest.raises(Unauthenticated):
        guard.admit(bearer(ALI), 1)


def test_without_a_usable_file_from_the_start_nobody_is_let_in(tmp_path: Path) -> None:
    guard = Guard(tmp_path / "missing", None, Clock())
    with pytest.raises(Unauthenticated):
        guard.admit(bearer(ALI), 1)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_a_file_that_others_may_read_or_write_is_refused(keys: Path, mode: int) -> None:
    keys.chmod(mode)
    with pytest.raises(KeyFileError, match=r"chmod 600"):
        read_keys(keys)


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        read_keys(tmp_path)


def test_a_pipe_is_no_key_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "keys", 0o600)
    with ThreadPoolExecutor(1) as pool:
        try:
            with pytest.raises(KeyFileError, match="not a regular file"):
                pool.submit(read_keys, tmp_path / "keys").result(10)
        finally:
            os.close(os.open(tmp_path / "keys", os.O_RDWR))  # lets go of a reader that waits


def test_what_the_engine_did_not_take_is_not_paid_for(keys: Path) -> None:
    guard = Guard(keys, RateLimit(1.0, 4), Clock())
    for error in (Overloaded("full", 1.0), NotReady("stopping")):
        guard.admit(bearer(ALI), 4)
        guard.forgive(error, bearer(ALI), 4)
    guard.admit(bearer(ALI), 4)
    guard.forgive(BackendFailure("computed and failed"), bearer(ALI), 4)
    with pytest.raises(RateLimited):
        guard.admit(bearer(ALI), 1)


def test_nothing_is_returned_beyond_the_burst() -> None:
    guard = Guard(None, RateLimit(1.0, 4), Clock())
    guard.admit(None, 1)
    guard.forgive(NotReady("stopping"), None, 100)
    guard.admit(None, 4)
    with pytest.raises(RateLimited):
        guard.admit(None, 1)


def test_each_key_has_a_limit_of_its_own_and_is_told_when_to_come_back(keys: Path) -> None:
    clock = Clock()
    guard = Guard(keys, RateLimit(2.0, 4), clock)
    guard.admit(bearer(ALI), 4)
    with pytest.raises(RateLimited) as error:
        guard.admit(bearer(ALI), 1)
    assert error.value.retry_after_s == pytest.approx(0.5)
    guard.admit(bearer(BEA), 4)
    clock.now += error.value.retry_after_s
    guard.admit(bearer(ALI), 1)


def test_a_request_larger_than_the_burst_is_served_once_and_paid_off(keys: Path) -> None:
    clock = Clock()
    guard = Guard(keys, RateLimit(2.0, 4), clock)
    guard.admit(bearer(ALI), 10)
    with pytest.raises(RateLimited) as error:
        guard.admit(bearer(ALI), 1)
    assert error.value.retry_after_s == pytest.approx(3.5)  # 6 owed and 1 wanted, at 2 a second


def test_asking_for_no_text_checks_the_key_and_takes_nothing(keys: Path) -> None:
    guard = Guard(keys, RateLimit(1.0, 1), Clock())
    for _ in range(5):
        guard.admit(bearer(ALI), 0)
    guard.admit(bearer(ALI), 1)
    with pytest.raises(RateLimited):
        guard.admit(bearer(ALI), 1)


def test_without_keys_all_clients_share_one_limit() -> None:
    guard = Guard(None, RateLimit(1.0, 1), Clock())
    guard.admit(None, 1)
    with pytest.raises(RateLimited):
        guard.admit(bearer("whatever"), 1)


def test_a_key_that_left_the_file_leaves_no_bucket_behind(keys: Path) -> None:
    clock = Clock()
    guard = Guard(keys, RateLimit(1.0, 1), clock)
    guard.admit(bearer(ALI), 1)
    write(keys, line("bea", BEA))
    clock.now += 1
    guard.admit(bearer(BEA), 1)
    assert set(guard._buckets) == {"bea"}


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 500),
    asked=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 64)), max_size=60),
)
def test_no_client_gets_more_than_the_burst_and_the_rate_and_one_request(
    rate: float, burst: int, asked: list[tuple[float, int]]
) -> None:
    bucket, now, taken = Bucket(RateLimit(rate, burst), 0.0), 0.0, []
    for pause_s, texts in asked:
        now += pause_s
        wait_s = bucket.wait_s(texts, now)
        assert wait_s >= 0
        if not wait_s:
            taken.append((now, texts))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            span_s = taken[last][0] - taken[first][0]
            assert sum(texts for _, texts in taken[first:last]) <= burst + rate * span_s + 1e-6


@given(rate=st.floats(0.1, 1000), burst=st.integers(1, 500), texts=st.lists(st.integers(1, 64), max_size=20))
def test_whoever_comes_back_when_told_to_is_served(rate: float, burst: int, texts: list[int]) -> None:
    bucket, now = Bucket(RateLimit(rate, burst), 0.0), 0.0
    for count in texts:
        wait_s = bucket.wait_s(count, now)
        if wait_s:
            now += wait_s + 1e-6
            assert bucket.wait_s(count, now) == 0


def settings_of(**server: object) -> Settings:
    return Settings.model_validate({"server": server})


def test_with_neither_keys_nor_a_limit_there_is_no_guard_to_pay_for(keys: Path) -> None:
    assert make_guard(ServerSettings()) is None
    keyed = make_guard(ServerSettings(api_keys_file=keys))
    limited = make_guard(ServerSettings(rate_limit_texts_per_s=5))
    assert (keyed is not None and keyed.needs_key, limited is not None and limited.needs_key) == (True, False)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)])
def test_an_open_server_on_the_network_is_warned_of(host: str, warned: bool) -> None:
    said: list[str] = []
    check_exposure(settings_of(host=host), said.append)
    assert any("server.api_keys_file" in one for one in said) == warned


def test_the_warning_names_every_port_that_answers() -> None:
    said: list[str] = []
    check_exposure(settings_of(host="0.0.0.0", port=8101, grpc_port=8102), said.append)
    assert "ports 8101 and 8102" in said[0]


def test_with_keys_there_is_nothing_to_warn_of(keys: Path) -> None:
    said: list[str] = []
    check_exposure(settings_of(host="0.0.0.0", api_keys_file=str(keys)), said.append)
    assert said == []


def test_a_key_file_that_cannot_be_used_stops_the_start(keys: Path) -> None:
    keys.write_text("ali: secret-in-the-clear\n")
    with pytest.raises(SettingsError, match=r"server\.api_keys_file: .*line 1") as error:
        check_exposure(settings_of(api_keys_file=str(keys)), print)
    assert "secret-in-the-clear" not in str(error.value)


@pytest.mark.parametrize("host", ["localhost", "127.9.9.9"])
def test_loopback_has_several_names(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback("example.org")
