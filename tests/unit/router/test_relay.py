"""Streams of backends that are broken in every way: what can be passed on is, and the client's stream ends rightly."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sse import events

from entropy_rft.router import relay as relay_module
from entropy_rft.router.dialects import DIALECTS, Dialect
from entropy_rft.router.relay import Relay

End = Literal["chunked", "connection", "reset", "silence"]
LONGEST = 200  # in place of a mebibyte
STREAMING = [dialect for dialect in DIALECTS.values() if dialect.routed]


@dataclass
class Backend:
    name: str = "b"
    failures: int = 0

    def failed(self, now: float, gone: bool = False) -> None:
        self.failures += 1


class Answer:
    """A streamed answer whose pieces a test gives, in place of `Upstream`."""

    def __init__(self, pieces: Sequence[bytes], end: End) -> None:
        self.backend = Backend()
        self.status, self.headers, self.length = 200, [(b"content-type", b"text/event-stream")], None
        self.stream, self.closed = True, False
        self._pieces, self._end = list(pieces), end
        self.body = self._pieces.pop(0) if self._pieces else b""
        self.complete = not self.body
        self.given = len(self.body)
        self.at_read = lambda: None

    async def read(self) -> bytes:
        self.at_read()
        if self._pieces:
            piece = self._pieces.pop(0)
            self.given += len(piece)
            return piece
        if self._end == "reset":
            raise aiohttp.ClientPayloadError("reset")
        if self._end == "silence":
            raise aiohttp.SocketTimeoutError
        self.complete = True
        return b""

    def ends_with_connection(self) -> bool:
        return self._end == "connection"

    def close(self) -> None:
        self.closed = True


@dataclass
class Outcome:
    body: bytes
    relay: Relay
    answer: Answer
    most_held: int


def passed_on(dialect: Dialect, pieces: Sequence[bytes], end: End) -> Outcome:
    """What the client gets, after a look at the form of the messages."""
    sent: list[dict[str, Any]] = []
    answer = Answer(pieces, end)
    held = [0]
    answer.at_read = lambda: held.append(answer.given - sum(len(message.get("body", b"")) for message in sent))

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def run() -> Relay:
        relay = Relay(send, [(b"x-request-id", b"1")], dialect)
        await relay.pass_on(answer)  # type: ignore[arg-type]
        return relay

    relay = asyncio.run(run())
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert [message["more_body"] for message in bodies] == [True] * (len(bodies) - 1) + [False]
    assert answer.closed
    return Outcome(b"".join(message["body"] for message in bodies), relay, answer, max(held))


def check_error(dialect: Dialect, event: tuple[str, str], code: str) -> None:
    """The event that ends a broken stream, in the dialect's own shape."""
    kind, value = event[0], json.loads(event[1])
    if dialect.name == "responses":
        assert kind == value["type"] == "error"
        assert value["code"] == code
        assert value.keys() == {"type", "code", "message", "param", "sequence_number"}
        assert type(value["sequence_number"]) is int
    elif dialect.name == "messages":
        assert kind == value["type"] == "error"
        assert value["error"].keys() == {"type", "message"}
    else:
        assert kind == "message"
        assert value["error"].keys() == {"message", "type", "param", "code"}
        assert value["error"]["code"] == code


LAST = {
    "chat": b"data: [DONE]",
    "completions": b"data: [DONE]",
    "responses": b'event: response.completed\ndata: {"type": "response.completed", "sequence_number": 9}',
    "messages": b'event: message_stop\ndata: {"type": "message_stop"}',
}
FRAGMENTS = [
    *(b"\n\n", b"\n", b"\r\n", b"\r\n\r\n", b"\r", b"\n\r\n", b"\r\r", b"\n\r"),
    *(b"data: ", b"data:", b"event: error", b"event:", b": a comment", b"id: 7", b"retry: 1", b":", b"dat"),
    *(b'{"choices": []}', b'{"sequence_number": 3}', b'"usage": {"completion_tokens": 5}', b"{", b"}", b"[DONE]"),
    *(b"\xff\xfe", b"\x80", b"\xf0\x9f\xa4", b"\0", b"\xef\xbb\xbf", "é🤖".encode(), b"x" * 70, b"y" * 300),
]


def streams(dialect: Dialect) -> st.SearchStrategy[list[bytes]]:
    """Pieces of a stream: fragments of events in any order, cut anywhere."""
    whole = st.lists(
        st.one_of(st.sampled_from(FRAGMENTS), st.just(b"data: {}\n\n"), st.just(LAST[dialect.name] + b"\n\n")),
        min_size=1,
        max_size=25,
    ).map(b"".join)

    def cut(data: bytes, places: list[int]) -> list[bytes]:
        at = sorted({place % len(data) for place in places} | {0, len(data)})
        return [data[a:b] for a, b in pairwise(at)]

    return st.builds(cut, whole, st.lists(st.integers(0, 2**16), max_size=12))


def check(dialect: Dialect, pieces: list[bytes], end: End) -> None:
    data = b"".join(pieces)
    outcome = passed_on(dialect, pieces, end)
    assert outcome.most_held < LONGEST
    assert outcome.answer.backend.failures == int(outcome.relay.died)
    assert data.endswith(outcome.relay.tail)
    if not outcome.relay.died:
        assert outcome.body == data  # byte for byte
        if len(data) < LONGEST:
            assert end == "chunked" or dialect.stream_end.search(re.sub(rb"\r\n?", b"\n", data))
        return
    assert end != "chunked"
    *before, last = events(outcome.body)
    check_error(dialect, last, "backend_timeout" if end == "silence" else "backend_died")
    # Every whole event arrives. Of one that broke off nothing does, unless it was too long to be held.
    whole = events(data)
    assert before[: len(whole)] == whole
    assert len(before) <= len(whole) + 1
    if len(data) < LONGEST:
        assert before == whole
        assert b"\n\n" + LAST[dialect.name] + b"\n\n" not in b"\n\n" + data  # after it nothing is lost


@pytest.fixture(autouse=True)
def _short_events(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "long" not in request.node.name:
        monkeypatch.setattr(relay_module, "_LONGEST_EVENT", LONGEST)


ENDS: st.SearchStrategy[End] = st.sampled_from(("chunked", "connection", "reset", "silence"))
UNHURRIED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.name)
def test_any_stream_of_a_backend(dialect: Dialect) -> None:
    @settings(max_examples=80, derandomize=True, database=None, **UNHURRIED)
    @given(streams(dialect), ENDS)
    def any_stream(pieces: list[bytes], end: End) -> None:
        check(dialect, pieces, end)

    any_stream()


@pytest.mark.soak
@pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.name)
def test_any_stream_of_a_backend_at_length(dialect: Dialect) -> None:
    @settings(max_examples=2_000, database=None, **UNHURRIED)
    @given(streams(dialect), ENDS)
    def any_stream(pieces: list[bytes], end: End) -> None:
        check(dialect, pieces, end)

    any_stream()


@pytest.mark.parametrize("dialect", STREAMING, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_events_cut_at_any_byte(dialect: Dialect, newline: bytes) -> None:
    first = b'event: response.output_text.delta\ndata: {"sequence_number": 1, "a": "\xc3\xa9"}\n\n'
    data = (b": hello\n\n" + first + LAST[dialect.name] + b"\n\n").replace(b"\n", newline)
    for at in range(1, len(data)):
        check(dialect, [data[:at], data[at:]], "chunked")
        check(dialect, [data[:at]], "reset")
    one_by_one = [data[at : at + 1] for at in range(len(data))]
    check(dialect, one_by_one, "chunked")


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_an_event_is_passed_on_when_it_is_whole(newline: bytes) -> None:
    """Whatever ends its lines: a stream may use any of the three."""
    event = b"data: {}" + newline + newline
    for pieces in ([event] * 3, [event + b"da", b"ta: {}" + newline, newline], [event[:-1], event[-1:] + b"data: "]):
        outcome = passed_on(DIALECTS["chat"], pieces, "chunked")
        assert outcome.most_held < len(event)


def test_a_long_event_in_small_pieces_takes_linear_time() -> None:
    """20,000 pieces of one event: held, they must not be looked at from the beginning for each piece."""
    start = time.process_time()
    outcome = passed_on(DIALECTS["responses"], [b"x" * 50] * 20_000 + [b"\n\n"], "chunked")
    assert len(outcome.body) == 1_000_002
    assert outcome.most_held == 1_000_000
    assert time.process_time() - start < 2


def test_a_long_event_is_not_collected() -> None:
    outcome = passed_on(DIALECTS["chat"], [b"x" * 2**16] * 64, "chunked")
    assert len(outcome.body) == 2**22
    assert outcome.most_held < 2**20
