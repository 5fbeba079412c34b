"""Connections to backends that end the answer's body when what a backend sends can no longer be read."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError


class ReportingHandler(ResponseHandler):
    """aiohttp's protocol; an error in a body's chunks also reaches who reads the body.

    aiohttp's parser in C drops the body before it raises, and then nobody is told: a reader would wait for ever,
    without a time-out, and keep its place among the requests (aiohttp 3.14).
    """

    def set_exception(self, exc: Any, *cause: Any) -> None:
        body = self._payload
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError(f"the answer cannot be read: {exc.message}"))


def reporting(connector: aiohttp.BaseConnector) -> aiohttp.BaseConnector:
    """The connector, whose connections are `ReportingHandler`s from now on; to be called in the running loop."""
    connector._factory = partial(ReportingHandler, loop=asyncio.get_running_loop())  # type: ignore[assignment]
    return connector
