"""A server with API keys: who has none gets nothing, keys change while it runs, and no log or file tells a secret."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from loadtest.http import HTTP
from loadtest.served import serve
from models.store import Store
from tests.support.tiny_family import publish_tiny_family

pytestmark = pytest.mark.served

OLD, NEW, WRONG, IN_THE_CLEAR = (f"secret-key-{word}-0123456789" for word in ("old", "new", "wrong", "clear"))
TEXT = "secret words of a customer"


def write_keys(path: Path, *lines: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{line}\n" for line in lines))
    fresh.chmod(0o600)
    os.replace(fresh, path)


def line(name: str, key: str) -> str:
    return f"{name}: sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_keys_are_asked_for_changed_and_never_told(tmp_path: Path) -> None:
    store, keys, run_dir = Store(tmp_path / "store"), tmp_path / "keys", tmp_path / "run"
    publish_tiny_family(store)
    write_keys(keys, line("ali", OLD))
    settings = {
        "model.store": store.root,
        "model.family": "tiny",
        "server.api_keys_file": keys,
        "server.log_level": "debug",
    }
    with serve(tmp_path, settings, edge=True) as served, httpx.Client(base_url=served.url) as client:

        def ask(key: str | None, path: str = "/predict") -> int:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return client.post(path, json={"inputs": TEXT}, headers=headers).status_code

        assert [ask(key) for key in (None, WRONG, OLD)] == [401, 401, 200]
        assert ask(WRONG, "/predict?long=1") == 401
        assert client.get("/info").status_code == 401
        assert client.get("/health").status_code == 200
        assert client.post("/predict", json={TEXT: 1}, headers={"authorization": f"Bearer {OLD}"}).status_code == 422
        write_keys(keys, line("ali", NEW))
        assert within(10, lambda: ask(NEW) == 200)
        assert ask(OLD) == 401
        write_keys(keys, f"ali: {IN_THE_CLEAR}")
        assert within(10, lambda: ask(NEW) == 200 and "api_keys_refused" in served.log.read_text())
        refused = 'outcome="refused"'
        assert within(10, lambda: refused in HTTP.get(f"{served.metrics_url}/metrics").text)
        exposed = HTTP.get(f"{served.metrics_url}/metrics").text
    written = served.log.read_text() + exposed
    written += "".join(path.read_text(errors="replace") for path in run_dir.rglob("*") if path.is_file())
    assert "line 1" in written
    for secret in (OLD, NEW, WRONG, IN_THE_CLEAR, TEXT):
        assert secret not in written
        assert hashlib.sha256(secret.encode()).hexdigest() not in written
