"""Checks a request before it is processed: its key, its size, its depth."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import orjson

from entropy_rft.router.errors import RouterError
from entropy_rft.router.settings_parts import LimitSettings

_MOST_CONTAINERS = 100_000  # lists and objects of one body; parsed, they take up to 100 times as much memory
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_STEPS = [1 if byte in b"[{" else -1 for byte in range(256)]  # of a bracket
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")

Receive = Callable[[], Awaitable[Any]]


class ClientGone(Exception):
    """The client closed its connection before its request was complete."""


class Keys:
    """The accepted keys, given as OpenAI's clients or as Anthropic's do; without keys every client is accepted.

    Digests are compared, all of them and in constant time, so that the time of a refusal shows neither a key's length
    nor how much of it is right.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Check a request's key.

        Raises:
            RouterError: 401, the key is missing or wrong.
        """
        if not self._digests:
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            key = headers.get(b"x-api-key", b"")
        given = hashlib.sha256(key.strip()).digest()
        matches = 0
        for digest in self._digests:
            matches |= hmac.compare_digest(digest, given)
        if not matches:
            raise RouterError(401, "give a valid key: Authorization: Bearer KEY, or x-api-key: KEY", "invalid_api_key")


def request_id(given: bytes | None) -> bytes | None:
    """A client's request id if it is safe in logs and headers."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limits: LimitSettings) -> bytes:
    """The whole body.

    Raises:
        RouterError: 413, it is or will be too large; 415, it is compressed.
        ClientGone: the client left.
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RouterError(415, "a compressed body cannot be read: send it uncompressed", "unsupported_encoding")
    length = headers.get(b"content-length")
    if length is not None and int(length) > limits.max_body_bytes:
        raise too_large(limits)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    if not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limits.max_body_bytes:
            raise too_large(limits)
        return body
    chunks, size = [message.get("body", b"")], len(message.get("body", b""))
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        size += len(message.get("body", b""))
        if size > limits.max_body_bytes:
            raise too_large(limits)
        chunks.append(message.get("body", b""))
    return b"".join(chunks)


def too_large(limits: LimitSettings) -> RouterError:
    """The refusal of a large body."""
    return RouterError(413, f"the body may have at most {limits.max_body_bytes} bytes", "body_too_large")


def parse(body: bytes, max_depth: int) -> Any:
    """The JSON value of a body.

    Raises:
        RouterError: it is not JSON, not UTF-8, nested deeper than `max_depth`, or has too many parts.
    """
    if body.count(b"[") + body.count(b"{") > max_depth:  # few brackets cannot nest deeply, so most bodies need no check
        check_shape(body, max_depth)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RouterError(400, f"the body is not valid JSON: {error}", "invalid_json") from None


def check_shape(body: bytes, max_depth: int) -> None:
    """Refuse a body that would take far more memory or time as a value than as text.

    It runs before parsing, in linear time. A body that is not valid JSON may pass here or be refused here. In both
    cases it does not become a value.
    """
    # First remove the escapes, so that every quote starts or ends a string. Then remove all that is neither quote nor
    # bracket, and pairs of quotes. Each string that is left has a bracket after it, except the last.
    marks = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS).replace(b'""', b"")
    too_many = marks.count(b'"') > 4 * _MOST_CONTAINERS + 2
    brackets = b"" if too_many else b"".join(marks.split(b'"')[::2])
    if too_many or len(brackets) > 2 * _MOST_CONTAINERS:
        message = f"the body may hold at most {_MOST_CONTAINERS} lists and objects"
        raise RouterError(400, message, "too_complex")
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > max_depth:
        raise RouterError(400, f"the body is nested deeper than {max_depth} levels", "too_deep")
