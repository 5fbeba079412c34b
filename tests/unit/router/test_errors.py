"""Errors in OpenAI's shape, also those of backends that have another one."""

from __future__ import annotations

import json

import pytest

from entropy_rft.router.errors import RouterError, error_event, in_openai_shape


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (502, "server_error"),
    ],
)
def test_shape(status: int, kind: str) -> None:
    error = json.loads(RouterError(status, "no", "a_code", "a_field").body())
    assert error == {"error": {"message": "no", "type": kind, "param": "a_field", "code": "a_code"}}


def test_retry_after_is_whole_seconds_and_never_none() -> None:
    assert (b"retry-after", b"1") in RouterError(503, "", retry_after=0.01).headers()
    assert (b"retry-after", b"8") in RouterError(503, "", retry_after=7.6).headers()


def test_event() -> None:
    event = error_event(502, "line one\nline two", "backend_died")
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:])["error"]["code"] == "backend_died"


def test_a_backends_own_error_is_untouched() -> None:
    body = b'{"error":   {"message": "too long", "type": "BadRequestError", "code": 400}, "more": 1}'
    assert in_openai_shape(400, body) is body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"object": "error", "message": "too long"}', "too long"),
        (b'{"error": "overloaded"}', "overloaded"),
        (b'{"error": {"code": 7}}', '{"code":7}'),
        (b'{"detail": [{"loc": ["body"], "msg": "bad"}]}', '[{"loc":["body"],"msg":"bad"}]'),
        (b"<html>\n<h1>502 Bad Gateway</h1>", "the backend answered with status 502: <html> <h1>502 Bad Gateway</h1>"),
        (b"\xff\xfe", "the backend answered with status 502: \ufffd\ufffd"),
        (b"", "the backend answered with status 502"),
        (b"null", "null"),
        (b"[1, 2]", "[1,2]"),
    ],
)
def test_any_other_error_is_put_into_it(body: bytes, message: str) -> None:
    error = json.loads(in_openai_shape(502, body))["error"]
    assert error["message"] == message
    assert error["type"] == "server_error"


def test_a_page_is_cut() -> None:
    assert len(in_openai_shape(500, b"x" * 10**6)) < 1000
