"""Connections to backends that tell what aiohttp's own do not: an answer that cannot be read, and an end just now."""

from __future__ import annotations

import asyncio
import select
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

# Ended by the other side, also where something is left to be read. Only Linux reports the first of them.
_ENDED = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


class ReportingHandler(ResponseHandler):
    """aiohttp's protocol; an error in a body's chunks also reaches who reads the body, and an end is seen at once.

    aiohttp's parser in C drops the body before it raises, and then nobody is told: a reader would wait for ever,
    without a time-out, and keep its place among the requests (aiohttp 3.14).

    An idle connection whose backend has died is known to have ended only when the loop has read that. A busy loop
    would first send another request on it, which fails and must not be repeated, because for all that the router can
    see it may have been begun. So the system is asked before a connection is used again.
    """

    _poll: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        found = transport.get_extra_info("socket")
        if found is not None and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(found.fileno(), _ENDED)

    def is_connected(self) -> bool:
        return super().is_connected() and (self._poll is None or not self._poll.poll(0))

    def set_exception(self, exc: Any, *cause: Any) -> None:
        body = self._payload
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError(f"the answer cannot be read: {exc.message}"))


def reporting(connector: aiohttp.BaseConnector) -> aiohttp.BaseConnector:
    """The connector, whose connections are `ReportingHandler`s from now on; to be called in the running loop."""
    connector._factory = partial(ReportingHandler, loop=asyncio.get_running_loop())  # type: ignore[assignment]
    return connector
