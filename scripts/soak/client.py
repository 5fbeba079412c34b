"""The load of the soak: requests at a fixed rate, whatever the answers do, and what became of each."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from load_generator import Answers

from soak.ledger import CAPACITY, PREFIX

_CODE = re.compile(rb'"code"\s*:\s*"([a-z_]+)"')
_CACHED = 64  # questions that half of the requests ask; the others are new


@dataclass(frozen=True)
class Failure:
    """A request without a whole answer of its own; times are the loop's.

    Attributes:
        status: of HTTP; 0: no head came.
        code: of the error that was reported; empty: the connection ended without one.
        pieces: events of the answer that came before.
    """

    number: int
    stream: bool
    start: float
    end: float
    status: int
    code: str
    pieces: int
    seen: str


@dataclass
class Tally:
    """What became of the requests."""

    sent: int = 0
    answered: int = 0
    held_back: int = 0
    failures: list[Failure] = field(default_factory=list)
    whole: bytearray = field(default_factory=lambda: bytearray(CAPACITY))  # 1 for each that was answered

    @property
    def open(self) -> int:
        return self.sent - self.answered - len(self.failures)


class _Connection(Answers):
    """One connection to the router; one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.number = -1  # of the request under way

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, number: int, stream: bool, request: bytes) -> None:
        self.expect()
        self.number, self.stream = number, stream
        self.start = self.load.loop.time()
        self.transport.write(request)

    def complete(self, answer: bytes) -> None:
        self._ended()
        self.load.idle.append(self)
        self.load.one_ended()

    def connection_lost(self, exception: Exception | None) -> None:
        if self in self.load.idle:
            self.load.idle.remove(self)
        self.load.connections.discard(self)
        if self.number >= 0:
            self._ended()
            self.load.one_ended()

    def _ended(self) -> None:
        answer, number, self.number = self.buffer, self.number, -1
        tally = self.load.tally
        name = b'"%s%d"' % (PREFIX.encode(), number)
        whole = b"data: [DONE]" in answer if self.stream else answer.endswith(b"}")
        if answer.startswith(b"HTTP/1.1 200") and whole and name in answer and b'"error"' not in answer:
            tally.answered += 1
            tally.whole[number] = 1
            return
        status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
        code = _CODE.search(answer) if b'"error"' in answer else None
        pieces = answer.count(b"data: ") - (answer.count(b'data: {"error"'))
        now = self.load.loop.time()
        seen = answer[-400:].decode("latin-1")
        found = code[1].decode() if code else ""
        tally.failures.append(Failure(number, self.stream, self.start, now, status, found, pieces, seen))


class Load:
    """The clients.

    Args:
        port: of the router.
        random: chooses plain or streamed, and the questions.
        most: requests at the same time; above it `keep` holds back, because the machine does not let the servers run.
    """

    def __init__(self, port: int, random: Random, most: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.tally = Tally()
        self.idle: list[_Connection] = []
        self.connections: set[_Connection] = set()
        self._port = port
        self._random = random
        self._most = most
        self._number = 0
        self._opening: set[asyncio.Task[None]] = set()
        self._again: Callable[[], bool] = lambda: False

    async def saturate(self, at_once: int, seconds: float) -> float:
        """A closed loop; the answers a second, of the time's second half."""
        end = self.loop.time() + seconds
        self._again = lambda: self.loop.time() < end
        for _ in range(at_once):
            self._ask()
        await asyncio.sleep(seconds / 2)
        before, since = self.tally.answered, self.loop.time()
        await asyncio.sleep(seconds / 2)
        rate = (self.tally.answered - before) / (self.loop.time() - since)
        self._again = lambda: False
        return rate

    async def keep(self, rate: float, over: asyncio.Event) -> None:
        """`rate` requests a second, at random moments, until `over` is set."""
        due = self.loop.time()
        while not over.is_set():
            now = self.loop.time()
            due = max(due, now - 1.0)  # after a standstill of this process the load does not catch up
            while due <= now:
                if self.tally.open < self._most:
                    self._ask()
                else:
                    self.tally.held_back += 1
                due += self._random.expovariate(rate)
            await asyncio.sleep(max(0.001, due - now))

    async def settled(self, patience: float) -> None:
        """Wait for the answers that are missing; what has none then is a failure."""
        end = self.loop.time() + patience
        while self.tally.open and self.loop.time() < end:
            await asyncio.sleep(0.05)
        await self.close()

    async def close(self) -> None:
        for connection in list(self.connections):
            connection.transport.close()
        while self.connections:
            await asyncio.sleep(0.01)

    def one_ended(self) -> None:
        if self._again():
            self._ask()

    def _ask(self) -> None:
        number, stream = self._number, self._random.random() < 0.5
        self._number += 1
        self.tally.sent += 1
        question = self._random.randrange(_CACHED) if self._random.random() < 0.5 else 1000 + number
        body: dict[str, Any] = {
            "model": "stub",
            "messages": [{"role": "user", "content": f"What is {question} + {question % 97}?"}],
        }
        if stream:
            body["stream"] = True
        content = json.dumps(body).encode()
        lines = ["POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{self._port}"]
        lines += ["content-type: application/json", f"x-request-id: {PREFIX}{number}"]
        head = "\r\n".join([*lines, f"content-length: {len(content)}"]).encode()
        request = head + b"\r\n\r\n" + content
        if self.idle:
            self.idle.pop().ask(number, stream, request)
            return
        task = self.loop.create_task(self._open(number, stream, request))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, number: int, stream: bool, request: bytes) -> None:
        start = self.loop.time()
        try:
            _, connection = await self.loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        except OSError as error:
            failure = Failure(number, stream, start, self.loop.time(), 0, "", 0, f"no connection: {error}")
            self.tally.failures.append(failure)
            return
        self.connections.add(connection)
        connection.ask(number, stream, request)
