"""A replica follows its orders without losing a request, refuses a corrupt version, and works without a node."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.store import Corrupt, Store, Version, file_ref
from server.config_problems import SettingsError
from server.orders import Orders
from server.replica import Replica
from server.settings import Settings
from server.shaping.policy import DialState
from server.shaping.tunables import Tunables
from tests.support.engines import dial, until
from tests.support.tiny_family import publish_tiny_family


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("JOULESERVE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def settings_for(store: Store, **model: Any) -> Settings:
    run_dir = store.root.parent / "run"
    run_dir.mkdir(exist_ok=True)
    return Settings.model_validate(
        {
            "model": {"store": str(store.root), "family": "tiny", **model},
            "server": {"run_dir": str(run_dir), "drain_timeout_s": 5},
            "batching": {"workers": 2},
        }
    )


def orders(version: Version | str, dialled: DialState | None = None, **tuned: Any) -> Orders:
    tunables = Tunables().apply(tuned) if tuned else Tunables()
    return Orders(tunables, dialled or dial(), version if isinstance(version, str) else version.name)


@asynccontextmanager
async def replica_of(settings: Settings, first: Orders) -> AsyncIterator[tuple[Replica, httpx.AsyncClient]]:
    replica = Replica(settings)
    try:
        await replica.obey(first)
        assert replica.app is not None
        async with httpx.AsyncClient(transport=httpx.ASGITransport(replica.app), base_url="http://test") as client:
            yield replica, client
    finally:
        await replica.stop()


async def ask(client: httpx.AsyncClient, text: str = "card", quality: str = "standard") -> httpx.Response:
    reply = await client.post("/predict", json={"inputs": text, "raw_scores": True}, headers={"x-quality": quality})
    assert reply.status_code == 200, reply.text
    return reply


async def info(client: httpx.AsyncClient) -> dict[str, Any]:
    told: dict[str, Any] = (await client.get("/info")).json()
    return told


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


async def test_without_a_node_it_answers_and_is_silent_about_joules(store: Store) -> None:
    async with replica_of(settings_for(store), orders(publish_tiny_family(store))) as (_, client):
        reply, told = await ask(client, "my card"), await info(client)
    assert reply.json()[0] == {"score": 1.0, "label": "card"}
    assert not [name for name in reply.headers if "joules" in name.removeprefix("x-jouleserve")]
    assert (told["joules_per_cpu_second"], told["energy_sources"]) == (None, [])
    assert told["pid"] == os.getpid()


async def test_without_a_run_folder_it_answers_all_the_same(store: Store) -> None:
    version, settings = publish_tiny_family(store), settings_for(store)
    shutil.rmtree(settings.server.run_dir)
    async with replica_of(settings, orders(version)) as (_, client):
        assert (await ask(client)).status_code == 200


async def test_the_dial_and_the_bounds_follow_the_orders(store: Store) -> None:
    version = publish_tiny_family(store)
    async with replica_of(settings_for(store), orders(version)) as (replica, client):
        before = await ask(client, "refund")
        await replica.obey(orders(version, dial("lite", version=1), **{"batching.max_queue_requests": 9}))
        after, told = await ask(client, "parcel"), await info(client)
        strict = await ask(client, "parcel", "strict")
    points = [reply.headers["x-jouleserve-point"] for reply in (before, after, strict)]
    assert points == ["full", "lite", "full"]
    assert told["max_concurrent_requests"] == 9
    assert told["tunables"]["batching"]["max_queue_requests"] == 9


async def test_a_new_version_is_taken_while_requests_are_answered_and_none_is_lost(store: Store) -> None:
    first, second = publish_tiny_family(store), publish_tiny_family(store, scale=10)
    score = {first.name: 1.0, second.name: 10.0}
    seen: list[str] = []

    async def client_loop(client: httpx.AsyncClient, name: int) -> None:
        for number in range(40):
            reply = await ask(client, f"card w{name} w{number}")
            version = reply.headers["x-jouleserve-version"]
            assert reply.json()[0]["score"] == score[version]
            seen.append(version)

    async with replica_of(settings_for(store), orders(first)) as (replica, client):
        clients = [asyncio.create_task(client_loop(client, name)) for name in range(6)]
        for turn, version in enumerate((second, first, second), 1):
            await replica.obey(orders(version, dial(version=turn)))
        await asyncio.gather(*clients)
        last = await ask(client)
    assert len(seen) == 240
    assert last.headers["x-jouleserve-version"] == second.name


async def test_a_corrupt_version_is_refused_the_old_one_serves_on_and_the_status_says_so(store: Store) -> None:
    first, second = publish_tiny_family(store), publish_tiny_family(store, scale=10)
    flip(second.path / "full.onnx")
    async with replica_of(settings_for(store), orders(first)) as (replica, client):
        await replica.obey(orders(second, dial("lite", version=1)))
        reply, told = await ask(client), await info(client)
        third = publish_tiny_family(store, scale=3)
        await replica.obey(orders(third, dial(version=2)))
        mended = await info(client)
    assert reply.headers["x-jouleserve-version"] == first.name
    assert reply.headers["x-jouleserve-point"] == "lite"  # the rest of the orders holds
    assert (told["model_sha"], told["refused_version"]) == (first.name, second.name)
    assert (mended["model_sha"], mended["refused_version"]) == (third.name, None)


async def test_a_version_whose_model_does_not_load_is_refused_too(store: Store) -> None:
    first = publish_tiny_family(store)
    async with replica_of(settings_for(store), orders(first)) as (replica, client):
        for number, (name, content) in enumerate([("full.onnx", b"no model"), ("tokenizer.json", b"{}")], 1):
            broken = republish(store, first, name, content)
            await replica.obey(orders(broken, dial(version=number)))
            told = await info(client)
            assert (told["model_sha"], told["refused_version"]) == (first.name, broken.name)
        await ask(client)


def republish(store: Store, version: Version, name: str, content: bytes) -> Version:
    """A version with sound digests, one of whose files is no use."""
    folder = store.root.parent / f"broken-{name}"
    shutil.copytree(version.path, folder)
    (folder / name).write_bytes(content)
    ref = file_ref(folder, name)
    manifest = version.manifest
    if name == "tokenizer.json":
        manifest = manifest.model_copy(update={"tokenizer": ref})
    else:
        variants = tuple(
            variant.model_copy(update={"model": ref}) if variant.model.path == name else variant
            for variant in manifest.variants
        )
        manifest = manifest.model_copy(update={"variants": variants})
    return store.publish(manifest, folder)


async def test_a_refused_version_is_forgotten_when_the_one_in_force_is_ordered_again(store: Store) -> None:
    first, second = publish_tiny_family(store), publish_tiny_family(store, scale=10)
    flip(second.path / "full.onnx")
    async with replica_of(settings_for(store), orders(first)) as (replica, client):
        await replica.obey(orders(second, dial(version=1)))
        await replica.obey(orders(first, dial(version=2)))
        assert (await info(client))["refused_version"] is None


async def test_a_version_that_is_not_there_is_refused(store: Store) -> None:
    first = publish_tiny_family(store)
    async with replica_of(settings_for(store), orders(first)) as (replica, client):
        await replica.obey(orders("0009-0123456789ab", dial(version=1)))
        assert (await info(client))["refused_version"] == "0009-0123456789ab"


async def test_a_dial_made_for_the_points_of_a_refused_version_is_not_taken(store: Store) -> None:
    first, second = publish_tiny_family(store), publish_tiny_family(store, scale=10)
    flip(second.path / "full.onnx")
    async with replica_of(settings_for(store), orders(first, dial("lite"))) as (replica, client):
        await replica.obey(orders(second, dial("point-of-the-second", version=1)))
        reply = await ask(client)
    assert reply.headers["x-jouleserve-point"] == "lite"


async def test_orders_that_were_overtaken_do_not_undo_newer_ones(store: Store) -> None:
    first, second = publish_tiny_family(store), publish_tiny_family(store, scale=10)
    async with replica_of(settings_for(store), orders(first)) as (replica, client):
        await replica.obey(orders(second, dial("lite", version=5)))
        await replica.obey(orders(first, dial("nano", version=4), **{"batching.max_queue_requests": 9}))
        reply, told = await ask(client), await info(client)
    assert reply.headers["x-jouleserve-point"] == "lite"
    assert reply.headers["x-jouleserve-version"] == second.name
    assert told["max_concurrent_requests"] == 9  # newer than what it held


async def test_a_replica_started_on_a_corrupt_version_serves_the_one_before(store: Store) -> None:
    """As after a crash: the orders are old, and the files changed meanwhile."""
    first, second = publish_tiny_family(store), publish_tiny_family(store, scale=10)
    flip(second.path / "lite.onnx")
    async with replica_of(settings_for(store), orders(second)) as (_, client):
        told = await info(client)
        assert (await ask(client)).json()[0]["score"] == 1.0
    assert (told["model_sha"], told["refused_version"]) == (first.name, second.name)


async def test_a_replica_of_a_fixed_version_starts_with_no_other(store: Store) -> None:
    _, second = publish_tiny_family(store), publish_tiny_family(store, scale=10)
    flip(second.path / "lite.onnx")
    with pytest.raises(Corrupt, match=r"lite\.onnx"):
        async with replica_of(settings_for(store, version=second.name), orders(second)):
            pass


async def test_stopping_answers_what_was_accepted_and_ends_the_threads(store: Store) -> None:
    before = set(threading.enumerate())
    async with replica_of(settings_for(store), orders(publish_tiny_family(store))) as (replica, client):
        accepted = [asyncio.create_task(ask(client, f"card w{number}")) for number in range(30)]
        await until(lambda: replica.engine is not None and replica.engine.active == 30)
        await replica.stop()
        replies = await asyncio.gather(*accepted)
        refused = await client.post("/predict", json={"inputs": "card"})
    assert len(replies) == 30
    assert refused.status_code == 503
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("infer")]


async def test_a_replica_that_never_started_can_be_stopped(store: Store) -> None:
    replica = Replica(settings_for(store))
    await replica.stop()
    assert replica.engine is None


def test_orders_survive_the_way_through_user_config(store: Store) -> None:
    given = orders("0001-0123456789ab", dial("lite", version=3), **{"cache.ttl_s": 5})
    assert Orders.from_user_config(json.loads(json.dumps(given.to_user_config()))) == given


@pytest.mark.parametrize("part", ["tunables", "dial", "version"])
def test_orders_with_a_part_missing_or_wrong_are_refused(part: str) -> None:
    config = orders("0001-0123456789ab").to_user_config()
    with pytest.raises((KeyError, ValueError, SettingsError)):
        Orders.from_user_config({**config, part: {"bogus": 1}} if part != "version" else {"tunables": {}, "dial": {}})


def test_newer_tunables_and_an_older_dial_are_told_apart() -> None:
    held = orders("0001-0123456789ab", dial("lite", version=2))
    tuned = replace(orders("0001-0123456789ab", dial("nano", version=1)), tunables=Tunables(version=3))
    merged = tuned.after(held)
    assert (merged.dial, merged.tunables.version) == (held.dial, 3)
    assert held.after(tuned) == merged
