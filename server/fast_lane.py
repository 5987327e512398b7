"""A way past Ray Serve's per-request bookkeeping for the one route that is asked all the time.

Serve wraps each request in middlewares, metadata, context variables and metrics, which costs more CPU than HTTP itself
and tells nothing that the engine does not know (to compare, set `server.fast_lane` to false). The replica's own uvicorn
server is told to speak `server.api.fast_http` on new connections: `/predict` goes straight to the engine, every other
path through Serve as before. uvicorn waits for the requests of both lanes when it shuts down, so draining is as before.
Serve counts none of the fast lane's requests; the node process does.

This reaches into private attributes of Ray (locked version). Where they are not found, everything takes Serve's lane.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import structlog

from server.api.fast_http import Answers, FastHttp

log = structlog.get_logger(__name__)

TRIES = 300
TRY_EVERY_S = 0.1


async def open_fast_lane(answers: Answers) -> bool:
    """Wait until the replica's HTTP server runs (at most 30 s) and have it speak `FastHttp` on new connections."""
    for _ in range(TRIES):
        config = _uvicorn_config()
        if config is not None and getattr(config, "loaded", False):
            config.http_protocol_class = partial(FastHttp, answers, config.http_protocol_class)
            return True
        await asyncio.sleep(TRY_EVERY_S)
    log.warning("fast_lane_closed", why="the replica's HTTP server was not found; requests take Ray Serve's lane")
    return False


def _uvicorn_config() -> Any | None:
    from ray._private.worker import global_worker

    for actor in list(getattr(global_worker, "actors", {}).values()):
        replica = getattr(actor, "_replica_impl", None)
        server = getattr(replica, "_direct_ingress_http_server", None)
        if server is not None:
            return getattr(server, "config", None)
    return None
