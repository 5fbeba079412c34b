"""Lines of the log: JSON for programs, text for people, and only ours."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from entropy_rft.router.logs import JSONFormatter, TextFormatter, configure_logs
from entropy_rft.router.settings import load_settings


@pytest.fixture
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("entropy_rft.router", "uvicorn", "uvicorn.error")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    yield
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers = handlers
        each.setLevel(level)
        each.propagate = propagate


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("entropy_rft.router", logging.WARNING, __file__, 1, message, arguments, None)
    vars(made).update(extra)
    return made


def test_json() -> None:
    line = JSONFormatter().format(
        record("backend is %s", "down", backend="b\n0", seconds=0.5, where={1: ValueError("x")})
    )
    assert "\n" not in line
    read = json.loads(line)
    assert datetime.fromisoformat(read.pop("time")).tzinfo == timezone.utc
    assert read == {
        "level": "warning",
        "logger": "entropy_rft.router",
        "message": "backend is down",
        "backend": "b\n0",
        "seconds": 0.5,
        "where": {"1": "x"},
    }


def test_json_of_an_exception() -> None:
    made = record("it failed")
    try:
        raise KeyError("a mistake")
    except KeyError as error:
        made.exc_info = (KeyError, error, error.__traceback__)
    line = JSONFormatter().format(made)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("KeyError: 'a mistake'")


def test_text() -> None:
    line = TextFormatter().format(record("backend is %s", "down", backend="b0", seconds=0.5))
    assert line.endswith(" WARNING backend is down backend=b0 seconds=0.5")


@pytest.mark.usefixtures("_loggers_as_before")
def test_one_form_for_the_router_and_uvicorn(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json", "info")
    logging.getLogger("entropy_rft.router").info("ours", extra={"status": "200"})
    logging.getLogger("entropy_rft.router").debug("not asked for")
    logging.getLogger("uvicorn").info("uvicorn's")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")  # anyone could fill the log with it
    logging.getLogger("uvicorn.error").error("worth a line")
    out, error = capsys.readouterr()
    assert out == ""
    assert [json.loads(line)["message"] for line in error.splitlines()] == ["ours", "uvicorn's", "worth a line"]


@pytest.mark.usefixtures("_loggers_as_before")
def test_the_settings_name_the_form_and_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(None, {"log_format": "text", "log_level": "debug"})
    configure_logs(settings.log_format, settings.log_level)
    configure_logs(settings.log_format, settings.log_level)  # again: still one line each
    logging.getLogger("entropy_rft.router").debug("a detail", extra={"backend": "b0"})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("DEBUG   a detail backend=b0")
    with pytest.raises(ValueError, match="log_format"):
        load_settings(None, {"log_format": "xml"})
