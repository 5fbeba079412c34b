"""An ASGI application that answers as vLLM does, and a client of the middleware around it; no socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from stub_answers import MODELS, Behaviour, Request
from stub_dialects import answered
from stub_openai import realistic

from entropy_rft.assets import DEFAULT_MODEL

METRICS = b"# TYPE vllm:something gauge\nvllm:something 1.0"
PATIENCE = 30.0


def in_any_dialect(request: Request) -> Behaviour:
    return realistic(request) if request.path.endswith("completions") else answered(request)


class StubApp:
    """The application. A behaviour's `stop` may be ``hang`` (until the client disconnects) or ``abort`` (it raises).

    Args:
        answer: to a POST.
        keys: one of them is wanted of requests below /v1.

    Attributes:
        requests: what it was asked, health checks left out.
        disconnects: requests whose client left before the end.
        ended: its lifespan is over.
        step: set by a test, so that a stream goes on by one piece.
    """

    def __init__(self, answer: Callable[[Request], Behaviour] = in_any_dialect, keys: tuple[str, ...] = ()) -> None:
        self.answer = answer
        self.keys = keys
        self.requests: list[Request] = []
        self.scopes: list[Any] = []
        self.disconnects = 0
        self.ended = asyncio.Event()
        self.step: asyncio.Semaphore | None = None
        self.state = SimpleNamespace(args=SimpleNamespace(api_key=list(keys), model=DEFAULT_MODEL, tokenizer=None))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            await send({"type": "lifespan.shutdown.complete"})
            self.ended.set()
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        request = Request(scope["method"], scope["path"], headers, body)
        behaviour = self._behaviour(request, scope)
        try:
            await self._send(behaviour, receive, send)
        except _Left:
            self.disconnects += 1

    def _behaviour(self, request: Request, scope: Any) -> Behaviour:
        if request.method == "GET":
            texts = {"/health": b"", "/v1/models": MODELS, "/metrics": METRICS}
            found = texts.get(request.path)
            return Behaviour((found,)) if found is not None else Behaviour.error(404)
        self.requests.append(request)
        self.scopes.append(scope)
        if self.keys and request.headers.get("authorization", "").removeprefix("Bearer ") not in self.keys:
            return Behaviour.error(401)
        return self.answer(request)

    async def _send(self, behaviour: Behaviour, receive: Any, send: Any) -> None:
        pieces = behaviour.pieces
        length = [] if behaviour.framing == "chunked" else [(b"content-length", b"%d" % sum(map(len, pieces)))]
        own = [(name.encode(), value.encode()) for name, value in behaviour.headers]
        await self._stop(behaviour, -1, receive)
        headers = [(b"content-type", behaviour.content_type.encode()), *length, *own]
        await send({"type": "http.response.start", "status": behaviour.status, "headers": headers})
        for number, piece in enumerate(pieces):
            await self._stop(behaviour, number, receive)
            if self.step is not None:
                await self.step.acquire()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stop(self, behaviour: Behaviour, number: int, receive: Any) -> None:
        if behaviour.stop_before != number:
            return
        if behaviour.stop == "abort":
            raise RuntimeError("the engine is dead")
        assert (await receive())["type"] == "http.disconnect"
        raise _Left


class _Left(Exception):
    """The client has."""


@dataclass
class Reply:
    """What the client got; `pieces` grows while it arrives."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)
    complete: bool = False
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def wait_for(self, condition: Callable[[Reply], Any]) -> None:
        async with self.arrived:
            await asyncio.wait_for(self.arrived.wait_for(lambda: condition(self)), PATIENCE)


class Client:
    """Asks an application as a server would.

    Args:
        app: the middleware.
    """

    def __init__(self, app: Any, outer: Any) -> None:
        self.app = app
        self.outer = outer

    async def ask(
        self,
        body: Any = None,
        path: str = "/v1/chat/completions",
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        reply: Reply | None = None,
        leave: asyncio.Event | None = None,
        **scope: Any,
    ) -> Reply:
        """The answer; after `leave` the client has disconnected."""
        reply = Reply() if reply is None else reply
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"host": "server", "content-type": "application/json", "content-length": str(len(content))}
        messages = [{"type": "http.request", "body": content, "more_body": False}]
        whole = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(n.encode(), v.encode("latin-1")) for n, v in {**given, **(headers or {})}.items()],
            "client": ("192.0.2.7", 1234),
            "server": ("192.0.2.1", 80),
            "app": self.outer,
            **scope,
        }

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await (leave or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            async with reply.arrived:
                if message["type"] == "http.response.start":
                    reply.status = message["status"]
                    reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                else:
                    if message.get("body"):
                        reply.pieces.append(message["body"])
                    reply.complete = not message.get("more_body", False)
                reply.arrived.notify_all()

        await asyncio.wait_for(self.app(whole, receive, send), PATIENCE)
        return reply

    async def metric(self, name: str, *labels: str) -> float:
        """The sum of its samples with these labels."""
        lines = (await self.ask(path="/metrics", method="GET")).body.decode().splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.split()[-1]) for line in found if all(label in line for label in labels))


@asynccontextmanager
async def live(app: Any, outer: Any) -> AsyncIterator[Client]:
    """A client of an application that has started; `AssertionError` with its message where it cannot.

    Args:
        app: the middleware.
        outer: what is ``app`` in the scopes, as Starlette sets it.
    """
    asked: asyncio.Queue[Any] = asyncio.Queue()
    said: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan", "app": outer, "state": {}}, asked.get, said.put))
    await asked.put({"type": "lifespan.startup"})
    try:
        started = await asyncio.wait_for(said.get(), PATIENCE)
        assert started["type"] == "lifespan.startup.complete", started["message"]
        yield Client(app, outer)
        await asked.put({"type": "lifespan.shutdown"})
        assert (await asyncio.wait_for(said.get(), PATIENCE))["type"] == "lifespan.shutdown.complete"
        await asyncio.wait_for(task, PATIENCE)
    finally:
        task.cancel()
