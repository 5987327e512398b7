"""`python -m server.node --run-dir DIR …`: the node process."""

from __future__ import annotations

import asyncio
import logging
import sys

from energy.calibration import CalibrationError
from energy.coefficients import CoefficientError
from energy.domains import SourceUnavailable
from server.node.service import AlreadyRunning, serve
from server.node.settings import NodeSettings


def main() -> int:
    """Run; 0 after a clean stop, 2 if it could not start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    settings = NodeSettings.from_arguments()
    try:
        asyncio.run(serve(settings))
    except (AlreadyRunning, SourceUnavailable, CoefficientError, CalibrationError, OSError) as error:
        print(f"node: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
