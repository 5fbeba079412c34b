"""Errors in OpenAI's format, ready to send, and what a dialect with another format must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import orjson

INVALID_REQUEST = "invalid_request_error"
SERVER = "server_error"

# The type that OpenAI's clients expect with a status; any other below 500 is an invalid request.
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RouterError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one line for a person.
        code: a word for a program.
        param: the field of the request that is wrong.
        retry_after: seconds, for the header of that name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self, shape: ErrorShape | None = None) -> bytes:
        """The answer's JSON, in OpenAI's shape by default."""
        return (shape or OPENAI).body(self.status, self.message, self.code, self.param)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The content type and the status's own headers, without a length."""
        headers = [(b"content-type", b"application/json")]
        if self.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(self.retry_after))))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> bytes:
    """``{"error": {"message", "type", "param", "code"}}``."""
    kind = _TYPES.get(status, INVALID_REQUEST if status < 500 else SERVER)
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(status: int, message: str, code: str | None = None, tail: bytes = b"") -> bytes:
    """The same as a server-sent event, for a stream that has begun and whose last bytes are `tail`."""
    return b"data: " + error_body(status, message, code) + b"\n\n"


def in_openai_shape(status: int, body: bytes) -> bytes:
    """A backend's error: unchanged where it has OpenAI's shape, else its text in that shape."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    error = data.get("error") if isinstance(data, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return body
    return error_body(status, backend_message(status, body))


def backend_message(status: int, body: bytes) -> str:
    """What a backend's error says, whatever its shape, in one line of at most about 500 characters."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = " ".join(body[:500].decode("utf-8", "replace").split())
        return f"the backend answered with status {status}: {text}" if text else _bare(status)
    error = data.get("error") if isinstance(data, dict) else None
    found = error or (data.get("message") or data.get("detail") if isinstance(data, dict) else None)
    if isinstance(found, dict) and isinstance(found.get("message"), str):
        found = found["message"]
    text = " ".join((found if isinstance(found, str) else orjson.dumps(found or data).decode())[:500].split())
    return text or _bare(status)


def _bare(status: int) -> str:
    return f"the backend answered with status {status}"


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """How a dialect writes errors.

    Attributes:
        body: an answer's JSON, from the status, the message, the code and the field of the request.
        event: the event that ends a broken stream, from the status, the message, the code and the stream's last bytes.
        backend: a backend's error in the dialect's shape, from its status and body.
        statuses: the dialect's own status in place of a common one.
    """

    body: Callable[[int, str, str | None, str | None], bytes]
    event: Callable[[int, str, str | None, bytes], bytes]
    backend: Callable[[int, bytes], bytes]
    statuses: Mapping[int, int] = field(default_factory=dict)

    def status(self, status: int) -> int:
        """What a client of the dialect gets for `status`."""
        return self.statuses.get(status, status)


OPENAI = ErrorShape(error_body, error_event, in_openai_shape)
