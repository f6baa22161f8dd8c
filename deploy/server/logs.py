"""The server's log: one JSON object a line, on standard error.

A log that cannot be written (a full disk, a closed pipe) never stops a request.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

LOGGER = "samegraph.server"


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str)


class _Stream(logging.StreamHandler):  # type: ignore[type-arg]  # its stream is standard error
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Lose the line: there is no place left to say that it is lost."""


def start_log(level: str) -> None:
    """Send the server's log to standard error."""
    handler = _Stream(sys.stderr)
    handler.setFormatter(_Lines())
    for name in (LOGGER, "asyncio", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper() if name == LOGGER else logging.WARNING)
