"""Clients that say exactly what a test wants, over a plain socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}).encode()
STREAM = json.dumps(
    {"model": "m", "stream": True, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
).encode()
PATIENCE = 30.0  # seconds after which a test says that something hangs


@dataclass(frozen=True)
class Reply:
    """One answer; `whole` tells whether it was complete by HTTP's own rules."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def error(self) -> dict[str, Any]:
        """The error in it, after a look at its shape."""
        return checked_error(self.body)

    @property
    def events(self) -> list[str]:
        """The data of its server-sent events, after a look at their form."""
        text = self.body.decode()
        assert text.endswith("\n\n"), text[-200:]
        events = [event for event in text.split("\n\n")[:-1] if not event.startswith(":")]
        assert all(event.startswith("data: ") and "\n" not in event for event in events), events[-2:]
        return [event.removeprefix("data: ") for event in events]


def checked_error(body: bytes | str) -> dict[str, Any]:
    """The inside of an error in OpenAI's shape."""
    value = json.loads(body)
    assert list(value) == ["error"], value
    error = value["error"]
    assert isinstance(error, dict), value
    assert {"message", "type", "param", "code"} <= error.keys(), error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    return error


def request(
    body: bytes = BODY,
    *,
    path: str = "/v1/chat/completions",
    headers: tuple[tuple[str, str], ...] = (),
    length: int | None = None,
    method: str = "POST",
) -> bytes:
    """A request's bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: router", "content-type: application/json"]
    lines += [f"content-length: {len(body) if length is None else length}"] if length != -1 else []
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        yield connection


def exchange(port: int, data: bytes) -> Reply:
    """Send `data` and read one answer. A server that closes while it is being told is no mistake, if it answers."""
    with connected(port) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return read_reply(connection)


def read_head(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, and what came of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        assert piece, f"the connection ended before an answer: {data!r}"
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return int(first.split(" ")[1]), headers, rest


def read_reply(connection: socket.socket) -> Reply:
    status, headers, rest = read_head(connection)
    return read_body(connection, status, headers, rest)


def read_body(connection: socket.socket, status: int, headers: dict[str, str], rest: bytes) -> Reply:
    """The rest of an answer."""
    pieces = [rest]

    def more() -> bool:
        try:
            piece = connection.recv(262144)
        except ConnectionResetError:
            piece = b""
        pieces.append(piece)
        return bool(piece)

    if "content-length" in headers:
        length = int(headers["content-length"])
        missing = length - len(rest)
        while missing > 0 and more():
            missing -= len(pieces[-1])
        return Reply(status, headers, b"".join(pieces), missing == 0)
    if headers.get("transfer-encoding") == "chunked":
        while not rest.endswith(b"0\r\n\r\n") and more():
            rest = (rest + pieces[-1])[-16:]
        return Reply(status, headers, *unchunked(b"".join(pieces)))
    while more():
        pass
    return Reply(status, headers, b"".join(pieces), True)


def unchunked(data: bytes) -> tuple[bytes, bool]:
    """The body in chunks, and whether the last one was there."""
    body = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return b"".join(body), False
        size = int(data[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(body), data[end:] == b"\r\n\r\n"
        body.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
        if at > len(data):
            return b"".join(body), False


def get(port: int, path: str) -> Reply:
    return exchange(port, request(b"", path=path, length=-1, method="GET"))
