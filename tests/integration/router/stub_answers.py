"""What the stub backend is asked and what it answers."""

from __future__ import annotations

import base64
import json
from array import array
from dataclasses import dataclass
from typing import Any, Literal

HEAD = -1  # as a place to stop: before the answer's first byte
REASONS = {
    200: b"OK",
    400: b"Bad Request",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    503: b"Unavailable",
}


def _event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "stub-1", "object": "chat.completion.chunk", "created": 0, "model": "stub", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def stream_events(words: int = 16) -> tuple[bytes, ...]:
    """The events of a streamed chat completion, each as one piece."""
    middle = [_event({"content": f"word{i} "}) for i in range(words)]
    return (_event({"role": "assistant", "content": ""}), *middle, _event({}, "stop"), b"data: [DONE]\n\n")


PLAIN = json.dumps(
    {
        "id": "stub-1",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
    }
).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "stub"}]}).encode()


@dataclass(frozen=True)
class Request:
    """What the stub was asked; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Behaviour:
    """What the stub does with one request.

    `pieces` go out one write each, `between` seconds apart; the head `head_after` seconds after the request. Before the
    piece number `stop_before` (`HEAD`: before the head) it stops: at a `gate` until `Stub.release()`, with a reset
    (`abort`), with an orderly end (`close`), or for ever (`hang`). `raw` goes out instead of HTTP, and then the end.
    """

    pieces: tuple[bytes, ...] = (PLAIN,)
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    framing: Literal["length", "chunked"] = "length"
    head_after: float = 0.0
    between: float = 0.0
    stop_before: int | None = None
    stop: Literal["gate", "abort", "close", "hang"] = "gate"
    raw: bytes | None = None

    @classmethod
    def stream(cls, pieces: tuple[bytes, ...] | None = None, **options: Any) -> Behaviour:
        """Server-sent events in chunks."""
        pieces = stream_events() if pieces is None else pieces
        return cls(pieces, content_type="text/event-stream; charset=utf-8", framing="chunked", **options)

    @classmethod
    def error(
        cls, status: int, message: str = "stub", headers: tuple[tuple[str, str], ...] = (), **options: Any
    ) -> Behaviour:
        """An error as vLLM words it."""
        error = {"message": message, "type": "stub_error", "param": None, "code": status}
        return cls((json.dumps({"error": error}).encode(),), status, headers=headers, **options)

    @classmethod
    def json(cls, value: Any, **options: Any) -> Behaviour:
        return cls((json.dumps(value).encode(),), **options)

    def head(self) -> bytes:
        lines = [b"HTTP/1.1 %d %s" % (self.status, REASONS.get(self.status, b"Stub"))]
        lines.append(b"content-type: " + self.content_type.encode())
        if self.framing == "chunked":
            lines.append(b"transfer-encoding: chunked")
        else:
            lines.append(b"content-length: %d" % sum(map(len, self.pieces)))
        lines += [f"{name}: {value}".encode() for name, value in self.headers]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def frame(self, piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self.framing == "chunked" else piece

    @property
    def last(self) -> bytes:
        return b"0\r\n\r\n" if self.framing == "chunked" else b""


def pooled(request: Request, width: int = 128) -> Behaviour:
    """States as vLLM's pooling runner gives them, different for different last tokens."""
    entries = []
    for index, token_ids in enumerate(request.json["input"]):
        state = array("f", [0.1 + 0.01 * ((token_ids[-1] + i) % 7) for i in range(width)])
        entries.append({"index": index, "object": "pooling", "data": base64.b64encode(state.tobytes()).decode()})
    return Behaviour.json({"id": "pool-1", "object": "list", "created": 0, "model": "stub", "data": entries})
