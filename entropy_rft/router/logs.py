"""Structured logs: one JSON object per line, or plain text. Never a question, an answer or a key."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import orjson

_logger = logging.getLogger("entropy_rft.router")
# What every record has: anything else was given as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JSONFormatter(logging.Formatter):
    """A record as a line of JSON: time, level, logger, message, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class TextFormatter(logging.Formatter):
    """The same as plain text."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        return f"{super().format(record)} {extra}".rstrip()


def configure_logs(log_format: str, level: str, names: Sequence[str] = ("entropy_rft.router", "uvicorn")) -> None:
    """Let the router and uvicorn, or the loggers that are named, write to standard error, in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter())
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    if "uvicorn" not in names:
        return
    # Below this level uvicorn logs every request that is not HTTP, so any client could fill the log.
    errors = logging.getLogger("uvicorn.error")
    errors.setLevel(max(logging.ERROR, logging.getLevelName(level.upper())))
    errors.addFilter(_not_said_elsewhere)  # once, however often it is called


def say_listening(host: str, port: int, **more: object) -> None:
    """Log that the router can be asked."""
    _logger.info("the router listens", extra={"host": host, "port": port, **more})


def say_draining(sig: int, delay_s: float) -> None:
    """Log that the router takes no new requests after `delay_s`, because of a signal."""
    _logger.info("draining", extra={"signal": signal.Signals(sig).name, "delay_s": delay_s})


def _not_said_elsewhere(record: logging.LogRecord) -> bool:
    """False for uvicorn's line that the application could not start: the command line's own line says why."""
    return record.msg != "Application startup failed. Exiting."


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
