"""How this project's processes log: to standard error, from the level of the settings on, and nothing of a request."""

from __future__ import annotations

import logging
import sys

import structlog


def set_up_logging(level: str) -> None:
    """Log what is of `level` (as in `server.log_level`) or above, in this process.

    Tracebacks are plain ones: structlog's own would show the local variables, and with them what clients sent, texts
    and keys.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("server").setLevel(number)
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.dev.set_exc_info,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
