"""The embedded engine's HTTP side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from entropy_rft.errors import UserValueError
from entropy_rft.router.embedded.engine import Engine, Failed, Overloaded, Piece
from entropy_rft.router.embedded.requests import Asked, Limits, RequestError, chat_request, completion_request
from entropy_rft.router.embedded.responses import Response, error_body
from entropy_rft.router.tokenizing import ChatTokenizer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_MAX_BODY = 32 * 2**20  # bytes
_INLINE_BYTES = 16_384  # a longer body is tokenized in a thread: it would delay every other answer
_DEFAULT_CONTEXT = 4096  # tokens, for a model whose configuration does not have it
_END = None  # in the queue of pieces: the client has disconnected


class EmbeddedEngine:
    """An ASGI application: chat and text completions, plain and streamed, and /v1/models, from one model in a thread.

    Of OpenAI's protocol it supports `n`, `stop`, `seed`, `temperature` (0 is greedy), `top_p`, `logprobs`, `usage` and
    `stream_options`, and of vLLM's `top_k`, `return_token_ids` and `ignore_eos`. Unsupported fields that would
    change the answer are refused; unknown fields are ignored. A limit of tokens beyond the context is lowered to the
    context. When a client disconnects, its completions are cancelled.

    Args:
        model: a directory, a name on the hub, ``modulo_reasoner`` or ``smollm2``; loaded immediately.
        served_model_name: what clients call it; its directory's name by default.
        device: ``None`` takes the accelerator when there is one.
        max_rows: completions that are generated at the same time.

    Raises:
        ValueError: the model cannot be loaded, has no chat template, or has layers without full attention.
    """

    def __init__(
        self, model: str, *, served_model_name: str | None = None, device: str | None = None, max_rows: int = 32
    ) -> None:
        from entropy_rft.sampling import TransformersSampler, load_model_and_tokenizer

        loaded, tokenizer = load_model_and_tokenizer(model, device=device)
        loaded.eval()
        config = loaded.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise UserValueError(f"model {str(model)!r} has layers of {', '.join(sorted(kinds))}: serve it with vLLM")
        if tokenizer.chat_template is None:
            raise UserValueError(f"model {str(model)!r} has no chat template")
        temperature = getattr(loaded.generation_config, "temperature", None)
        self._limits = Limits(
            name=served_model_name or Path(str(model)).name,
            context=int(getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT),
            vocabulary=loaded.get_input_embeddings().num_embeddings,
            temperature=1.0 if temperature is None else float(temperature),
        )
        self._tokenizer = tokenizer
        self._tokenize = ChatTokenizer(tokenizer)
        self._created = int(time.time())
        eos = TransformersSampler(loaded, tokenizer).eos_token_ids
        self.engine = Engine(loaded, tokenizer, eos, max_rows=max_rows)

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self._limits.name

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        methods = {"/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/models": "GET", "/health": "GET"}
        try:
            if path not in methods:
                raise RequestError(f"there is no {path[:100]}", code="not_found", status=404)
            if method != methods[path]:
                raise RequestError(f"{path} takes {methods[path]}", code="method_not_allowed", status=405)
            if path == "/health":
                await _respond(send, 200 if self.engine.alive else 503, {})
            elif path == "/v1/models":
                await _respond(send, 200, {"object": "list", "data": [self._card()]})
            else:
                await self._complete(path == "/v1/chat/completions", receive, send)
        except RequestError as error:
            kind = "server_error" if error.status >= 500 else "invalid_request_error"
            await _respond(send, error.status, error_body(error.message, kind, error.param, error.code))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await asyncio.get_running_loop().run_in_executor(None, self.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "entropy_rft",
            "max_model_len": self._limits.context,
        }

    async def _complete(self, chat: bool, receive: Receive, send: Send) -> None:
        data = await _body(receive)
        if data is None:
            return
        asked = await self._parsed(chat, data)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[list[Piece | Failed] | None] = asyncio.Queue()

        def deliver(new: list[Piece | Failed]) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, new)

        try:
            job = self.engine.submit(asked.generation, deliver)
        except Overloaded as error:
            raise RequestError(str(error), code="overloaded", status=503) from error
        except RuntimeError as error:
            raise RequestError(str(error), code="unavailable", status=503) from error
        watcher = loop.create_task(_watch(receive, lambda: pieces.put_nowait(_END)))
        answer = Response(chat, asked, self.name, self._tokenizer)
        try:
            if asked.stream:
                await _stream(send, answer, pieces)
            else:
                await _whole(send, answer, pieces)
        finally:
            job.cancel()
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _parsed(self, chat: bool, data: bytes) -> Asked:
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from error
        parse = chat_request if chat else completion_request
        if len(data) <= _INLINE_BYTES:
            return parse(body, self._tokenize, self._limits)
        return await asyncio.to_thread(parse, body, self._tokenize, self._limits)


async def _body(receive: Receive) -> bytes | None:
    """The request's body; ``None`` when the client disconnected before its end."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MAX_BODY:
            raise RequestError(f"the body has more than {_MAX_BODY} bytes", code="body_too_large", status=413)
        if not message.get("more_body"):
            return b"".join(parts)


async def _watch(receive: Receive, gone: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone()


async def _whole(send: Send, answer: Response, pieces: asyncio.Queue[list[Piece | Failed] | None]) -> None:
    found: list[Piece] = []
    open_ends = answer.completions
    while open_ends:
        new = await pieces.get()
        if new is _END:
            return
        for piece in new:
            if isinstance(piece, Failed):
                raise RequestError(piece.message, code="engine_failed", status=500)
            found.append(piece)
            open_ends -= piece.finish_reason is not None
    await _respond(send, 200, answer.whole(found))


async def _stream(send: Send, answer: Response, pieces: asyncio.Queue[list[Piece | Failed] | None]) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def events(*data: dict[str, Any]) -> None:
        body = b"".join(b"data: " + orjson.dumps(item) + b"\n\n" for item in data)
        await send({"type": "http.response.body", "body": body, "more_body": True})

    open_ends = answer.completions
    while open_ends:
        new = await pieces.get()
        if new is _END:
            return
        chunks = []
        for piece in new:
            if isinstance(piece, Failed):
                chunks.append(error_body(piece.message, "server_error", code="engine_failed"))
                open_ends = 0
                break
            chunks += answer.chunks(piece)
            open_ends -= piece.finish_reason is not None
        await events(*chunks)
    last = answer.last_chunk()
    if last is not None:
        await events(last)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _respond(send: Send, status: int, data: dict[str, Any]) -> None:
    body = orjson.dumps(data)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
