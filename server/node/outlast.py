"""`python -m server.node.outlast --within SECONDS --port PORT`: wait until no replica reports to the node process here.

A preStop hook. Without it the meter would be the first to go, and what a draining replica still answers in no book.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

from server.node.figures import NodeAddress, node_says

POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nobody reports any more or no node process answers, 1 if somebody still did at the end of the time."""
    parser = argparse.ArgumentParser(prog="python -m server.node.outlast", description=__doc__)
    parser.add_argument("--within", type=float, required=True, help="seconds to wait at most")
    parser.add_argument("--port", type=int, required=True, help="port of /metrics")
    given = parser.parse_args(arguments)
    return 0 if asyncio.run(alone(NodeAddress("127.0.0.1", given.port), given.within)) else 1


async def alone(node: NodeAddress, within_s: float) -> bool:
    """Whether that came true."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                health = await node_says(node, "/healthz")
                if health is None or not json.loads(health)["replicas"]:
                    return True
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return False


if __name__ == "__main__":
    sys.exit(main())
