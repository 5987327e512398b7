"""A closed-loop gRPC client of `jouleserve.v1.Predictor/Predict` that costs as little as Python's gRPC allows.

Messages are made and left as bytes, so that it needs no generated code. To measure a server's CPU per request:

    python -m loadtest.grpc_client 127.0.0.1:8001 --pid PID --clients 16 --requests 20000
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence

import grpc
import uvloop

from loadtest.client import percentile
from loadtest.tree import read_tree
from loadtest.wire_client import Tally

METHOD = "/jouleserve.v1.Predictor/Predict"
FIELD_TEXTS = b"\x0a"  # field 1, length-delimited
TIMEOUT_S = 30.0


def encode(text: str) -> bytes:
    """A PredictRequest of one text."""
    data = text.encode()
    length, size = bytearray(), len(data)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return FIELD_TEXTS + bytes(length) + data


async def _client(call: grpc.aio.UnaryUnaryMultiCallable, messages: Iterator[bytes], tally: Tally) -> None:
    for message in messages:
        begun = time.perf_counter()
        try:
            await call(message, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            code: int = error.code().value[0]
            tally.failures[code] = tally.failures.get(code, 0) + 1
        else:
            tally.latencies_s.append(time.perf_counter() - begun)


def run_closed_loop(target: str, texts: Sequence[str], clients: int, channels: int, timeout_s: float) -> Tally:
    """Send every text once from `clients` tasks over `channels` connections; failures are counted by gRPC status.

    Raises TimeoutError after `timeout_s` seconds.
    """
    messages = iter([encode(text) for text in texts])
    tally = Tally()

    async def run() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all channels share one connection
        open_channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(channels)]
        calls = [channel.unary_unary(METHOD) for channel in open_channels]
        started = time.perf_counter()
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(_client(calls[n % channels], messages, tally) for n in range(clients)))
        tally.wall_s = time.perf_counter() - started
        for channel in open_channels:
            await channel.close()

    uvloop.run(run())
    return tally


def main() -> None:
    """Run and print one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--pid", type=int, required=True, help="the server's process; its children count, too")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--channels", type=int, default=1, help="connections that the clients share")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument(
        "--distinct", type=int, default=100, help="distinct texts; few are cache hits but for the first"
    )
    given = parser.parse_args()
    pool = [f"please say where my parcel number {n} is" for n in range(given.distinct)]
    run_closed_loop(given.target, pool, given.clients, given.channels, 60.0)
    texts = [pool[n % len(pool)] for n in range(given.requests)]
    before = read_tree(given.pid)
    tally = run_closed_loop(given.target, texts, given.clients, given.channels, 600.0)
    cpu_s = read_tree(given.pid).since(before)
    answered = len(tally.latencies_s)
    p50_ms, p99_ms = (1000 * percentile(tally.latencies_s, share) for share in (0.5, 0.99))
    print(
        f"{answered} answered, failures {tally.failures}, {answered / tally.wall_s:.0f} requests/s, "
        f"p50 {p50_ms:.2f} ms, p99 {p99_ms:.2f} ms, "
        f"server {1000 * cpu_s / max(1, answered):.3f} CPU-s / 1,000 requests"
    )


if __name__ == "__main__":
    main()
