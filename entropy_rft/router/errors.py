"""Errors in OpenAI's format, ready to send."""

from __future__ import annotations

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

    def body(self) -> bytes:
        """The answer's JSON."""
        return error_body(self.status, self.message, self.code, self.param)

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


def error_event(status: int, message: str, code: str | None = None) -> bytes:
    """The same as a server-sent event, for a stream that has begun."""
    return b"data: " + error_body(status, message, code) + b"\n\n"


def in_openai_shape(status: int, body: bytes) -> bytes:
    """A backend's error: unchanged where it has OpenAI's shape, else its text in that shape."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = " ".join(body[:500].decode("utf-8", "replace").split())
        return error_body(status, f"the backend answered with status {status}: {text}" if text else _bare(status))
    error = data.get("error") if isinstance(data, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return body
    found = error or (data.get("message") or data.get("detail") if isinstance(data, dict) else None)
    text = " ".join((found if isinstance(found, str) else orjson.dumps(found or data).decode())[:500].split())
    return error_body(status, text or _bare(status))


def _bare(status: int) -> str:
    return f"the backend answered with status {status}"
