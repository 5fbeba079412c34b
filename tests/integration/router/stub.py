"""A stand-in for a vLLM server: fast, scriptable, and it remembers what it was asked.

In a test it runs in a thread (`with Stub() as stub`); `python stub.py` runs it as a process of its own, for the
benchmark and for tests that kill it. By default every request gets the same completion, with two or three string
searches and one write. `stub.script(...)` says what the next requests get instead.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from stub_answers import HEAD, MODELS, PLAIN, Behaviour, Request, pooled, stream_events

_STREAM = re.compile(rb'"stream"\s*:\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class Stub:
    """The server. Everything public may be used from any thread.

    Args:
        events: words of a streamed answer.
        answer: from a request to an answer, for every request that nothing was scripted for; ``None`` for the fast one.
        record: remember the requests (the benchmark does not).
    """

    def __init__(
        self, *, events: int = 16, answer: Callable[[Request], Behaviour | None] | None = None, record: bool = True
    ) -> None:
        self.answer = answer
        self.record = record
        self.healthy = True
        self.gets: dict[str, Behaviour] = {}  # by path, where it is not the fast one
        self.port = 0
        self.requests: list[Request] = []
        self.health_checks = 0
        self.disconnects = 0  # connections that ended while an answer was under way
        self.connections = 0
        self.closed = 0  # connections that the stub ended after a raw answer
        self.in_progress = 0
        self.written = 0  # pieces of slow answers
        self.changed = threading.Condition()
        self.plain = Behaviour()
        self.streamed = Behaviour.stream(stream_events(events))
        self.fast_plain = self.plain.head() + PLAIN
        self.fast_stream = [self.streamed.head() + self.streamed.frame(self.streamed.pieces[0])]
        self.fast_stream += [self.streamed.frame(piece) for piece in self.streamed.pieces[1:]]
        self.fast_stream[-1] += self.streamed.last
        self._script: deque[Behaviour] = deque()
        self._gate: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._transports: set[Any] = set()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, *answers: Behaviour) -> None:
        """What the next requests get, one after the other."""
        self._script.extend(answers)

    def release(self) -> None:
        """Let go on whatever waits at a gate, now and from now on."""
        assert self._loop is not None
        assert self._gate is not None
        self._loop.call_soon_threadsafe(self._gate.set)

    def wait_for(self, condition: Callable[[Stub], Any], timeout: float = 30.0) -> None:
        """Wait until `condition(stub)`, looking at it whenever something changed."""
        with self.changed:
            held = self.changed.wait_for(lambda: condition(self), timeout)
        assert held, f"in vain: {len(self.requests)} requests, {self.in_progress} in progress, {self.disconnects} lost"

    def refuse(self) -> None:
        """Stop listening and drop every connection; `listen` undoes it, on the same port."""
        self._call(self._close())

    def listen(self) -> None:
        self._call(self._open())

    def __enter__(self) -> Stub:
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(30)
        return self

    def __exit__(self, *exception: object) -> None:
        self._call(self._close())
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    async def serve(self) -> None:
        """Open the port in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._gate = asyncio.Event()
        await self._open()

    def next_answer(self, request: Request) -> Behaviour | None:
        if self._script:
            return self._script.popleft()
        return self.answer(request) if self.answer is not None else None

    def note(self, **changes: int) -> None:
        """Count something, and wake who waits for it."""
        with self.changed:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)
            self.changed.notify_all()

    def _run(self, started: threading.Event) -> None:
        loop = _new_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self.serve())
        started.set()
        loop.run_forever()
        loop.close()

    def _call(self, coroutine: Any) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _open(self) -> None:
        assert self._loop is not None
        listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)  # reuses the address
        self.port = listener.getsockname()[1]
        self._server = await self._loop.create_server(lambda: _Connection(self), sock=listener)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        while self._transports:  # some may have been accepted only just now
            for transport in list(self._transports):
                transport.abort()
            await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One connection; answers one request after the other."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.buffer = b""
        self.needed = 0  # bytes of the buffer that the request takes, once its head is known
        self.task: asyncio.Task[None] | None = None
        self.drained = asyncio.Event()
        self.drained.set()
        self.closing = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.stub._transports.add(transport)
        self.stub.note(connections=1)

    def connection_lost(self, exception: Exception | None) -> None:
        self.stub._transports.discard(self.transport)
        cut = self.task is not None and not self.task.done()
        if self.task is not None:
            self.task.cancel()
        self.stub.note(connections=-1, disconnects=int(cut))
        if self.closing:  # counted once the socket is closed, which asyncio does after this call
            asyncio.get_running_loop().call_soon(lambda: self.stub.note(closed=1))

    def pause_writing(self) -> None:
        self.drained.clear()

    def resume_writing(self) -> None:
        self.drained.set()

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if self.task is None:
            self.next_request()

    def next_request(self) -> None:
        buffer = self.buffer
        if not self.needed:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(buffer, 0, end)
            self.body_at = end + 4
            self.needed = self.body_at + (int(length[1]) if length else 0)
        if len(buffer) < self.needed:
            return
        self.buffer = buffer[self.needed :]
        self.needed = 0
        stub = self.stub
        if not stub.record and not stub._script and stub.answer is None and buffer.startswith(b"POST /v1/"):
            if _STREAM.search(buffer, self.body_at):
                self.task = asyncio.ensure_future(self.trickle(stub.fast_stream))
            else:
                self.transport.write(stub.fast_plain)
                if self.buffer:
                    self.next_request()
        else:
            self.answer(buffer[: len(buffer) - len(self.buffer)])

    async def trickle(self, writes: list[bytes]) -> None:
        for data in writes:
            self.transport.write(data)
            await asyncio.sleep(0)  # else the kernel makes one piece of them
        self.done()

    def answer(self, data: bytes) -> None:
        head, body = data[: self.body_at].decode("latin-1"), data[self.body_at :]
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        stub = self.stub
        if method == "GET":
            stub.note(health_checks=1)
            if not stub.healthy:
                answer = Behaviour.error(503)
            else:
                fast = replace(stub.plain, pieces=(MODELS if path.endswith("/models") else b"{}",))
                answer = stub.gets.get(path, fast)
        else:
            request = Request(method, path, headers, body)
            with stub.changed:
                if stub.record:
                    stub.requests.append(request)
                scripted = stub.next_answer(request)
                stub.in_progress += 1
                stub.changed.notify_all()
            answer = scripted or (stub.streamed if _STREAM.search(body) else stub.plain)
        self.task = asyncio.ensure_future(self.perform(answer, counted=method != "GET"))

    async def perform(self, answer: Behaviour, counted: bool) -> None:
        try:
            await asyncio.sleep(answer.head_after)
            if answer.stop_before == HEAD and not await self.stopped(answer):
                return
            if answer.raw is not None:
                self.transport.write(answer.raw)
                self.closing = True
                self.transport.close()
                return
            self.transport.write(answer.head())
            for number, piece in enumerate((*answer.pieces, None)):
                if answer.stop_before == number and not await self.stopped(answer):
                    return
                if piece is not None:
                    self.transport.write(answer.frame(piece))
                    self.stub.written += 1
                    await self.drained.wait()
                    await asyncio.sleep(answer.between)
            self.transport.write(answer.last)
        finally:
            if counted:
                self.stub.note(in_progress=-1)
        self.done()

    async def stopped(self, answer: Behaviour) -> bool:
        """Wait at the gate, or end here; false when the answer is at its end."""
        if answer.stop == "gate":
            assert self.stub._gate is not None
            await self.stub._gate.wait()
            return True
        if answer.stop == "hang":
            await asyncio.Event().wait()
        elif answer.stop == "abort":
            await asyncio.sleep(0)  # what was written before goes out
            self.transport.abort()
        else:
            self.transport.close()
        self.task = None  # not a client's doing
        return False

    def done(self) -> None:
        self.task = None
        if self.buffer:
            self.next_request()


def _new_loop() -> asyncio.AbstractEventLoop:
    with suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--events", type=int, default=16, help="words of a streamed answer")
    parser.add_argument("--hang-at", type=int, help="stop every stream for ever before this piece")
    parser.add_argument("--pooling", type=int, help="be a pooling server with states of this width")
    options = parser.parse_args()
    stub = Stub(events=options.events, record=False)
    if options.pooling is not None:
        stub.answer = lambda request: pooled(request, options.pooling)
    stub.port = options.port
    if options.hang_at is not None:
        stuck = replace(stub.streamed, stop_before=options.hang_at, stop="hang")
        stub.answer = lambda request: stuck
    loop = _new_loop()
    loop.run_until_complete(stub.serve())
    print(stub.port, flush=True)
    with suppress(KeyboardInterrupt):
        loop.run_forever()


if __name__ == "__main__":
    main()
