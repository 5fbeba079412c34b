"""Keys, sizes and depths."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest

from entropy_rft.router.errors import RouterError
from entropy_rft.router.security import ClientGone, Keys, check_shape, parse, read_body, request_id
from entropy_rft.router.settings_parts import LimitSettings

LIMITS = LimitSettings(max_body_bytes=10)


@pytest.mark.parametrize("given", [b"Bearer one", b"bearer two", b"BEARER  two "])
def test_keys_let_in(given: bytes) -> None:
    Keys(["one", "two"]).check({b"authorization": given})


@pytest.mark.parametrize("other", [{}, {b"authorization": b"Basic dXNlcg=="}])
def test_keys_let_in_as_anthropics_clients_send_them(other: dict[bytes, bytes]) -> None:
    Keys(["one", "two"]).check({b"x-api-key": b" two", **other})
    for wrong in (b"", b"Bearer two", b"tw"):
        with pytest.raises(RouterError, match="x-api-key"):
            Keys(["one", "two"]).check({b"x-api-key": wrong, **other})


@pytest.mark.parametrize(
    "given", [None, b"", b"Bearer", b"Bearer ", b"Bearer on", b"Basic one", b"one", b"Bearer \xff"]
)
def test_keys_keep_out(given: bytes | None) -> None:
    with pytest.raises(RouterError) as caught:
        Keys(["one", "two"]).check({} if given is None else {b"authorization": given})
    assert caught.value.status == 401
    assert (b"www-authenticate", b"Bearer") in caught.value.headers()


def test_all_keys_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time: the first one that matches does not end it."""
    import hmac

    compared = []
    real = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return real(a, b)

    monkeypatch.setattr("hmac.compare_digest", counting)
    Keys(["one", "two", "three"]).check({b"authorization": b"Bearer one"})
    assert len(compared) == 3


def test_no_keys_let_everyone_in() -> None:
    Keys([]).check({})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"abc-1.2:3", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"a b", False),
        (b'"}{', False),
        (b"\xc3\xa9", False),
        (None, False),
    ],
)
def test_request_id(given: bytes | None, kept: bool) -> None:
    assert request_id(given) == (given if kept else None)


def reading(*pieces: bytes | None, headers: dict[bytes, bytes] | None = None) -> bytes:
    """What is read of a body that comes in `pieces`; ``None`` is a client that leaves."""
    messages: list[dict[str, Any]] = [
        {"type": "http.disconnect"}
        if piece is None
        else {"type": "http.request", "body": piece, "more_body": index < len(pieces) - 1}
        for index, piece in enumerate(pieces)
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return asyncio.run(read_body(headers or {}, receive, LIMITS))


def test_body() -> None:
    assert reading(b"") == b""
    assert reading(b"1234567890") == b"1234567890"
    assert reading(b"12345", b"", b"67890") == b"1234567890"


@pytest.mark.parametrize("pieces", [(b"12345678901",), (b"123456", b"7890", b"1", b"never read")])
def test_body_too_large(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(RouterError) as caught:
        reading(*pieces)
    assert caught.value.status == 413


def test_a_large_length_is_refused_before_anything_is_read() -> None:
    with pytest.raises(RouterError) as caught:
        reading(headers={b"content-length": b"11"})
    assert caught.value.status == 413


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(RouterError) as caught:
        reading(headers={b"content-encoding": b"gzip"})
    assert caught.value.status == 415


@pytest.mark.parametrize("pieces", [(None,), (b"1", None)])
def test_a_client_that_leaves(pieces: tuple[bytes | None, ...]) -> None:
    with pytest.raises(ClientGone):
        reading(*pieces)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"a": "\xff"}', b'{"a": NaN}', b'"\\ud800"', b"[" * 100, b"{} {}"]
)
def test_no_json(body: bytes) -> None:
    with pytest.raises(RouterError) as caught:
        parse(body, 100)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def depth(value: Any) -> int:
    """The plain definition."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize(
    "value",
    [
        1,
        [],
        [[[[[[]]]]]],
        [{"a": [{}]}, [], {}, [[]]],
        {"a": "[[[[[[[[[[{{{{{{", 'b"\\': ['"]]]][[[[', "\\"]},
        {"a": [{"b": {"c": [[], {"d": []}]}}], "e": [1, 2, {"f": {}}]},
        [[[], [[], [[], [[]]]]]] * 5,
    ],
)
def test_depth_is_that_of_the_value(value: Any) -> None:
    body = json.dumps(value).encode()
    for limit in range(1, 12):
        if depth(value) <= limit:
            assert parse(body, limit) == value
        else:
            with pytest.raises(RouterError) as caught:
                parse(body, limit)
            assert caught.value.code == "too_deep"


def test_too_deep() -> None:
    assert parse(b"[" * 50 + b"]" * 50, 50)
    with pytest.raises(RouterError, match="deeper than 49") as caught:
        parse(b"[" * 50 + b"]" * 50, 49)
    assert caught.value.code == "too_deep"


def test_a_value_of_too_many_parts() -> None:
    """As text 300 KB, as a value 30 MB."""
    most = b"[" + b"{}," * 99_998 + b"{}]"
    assert len(parse(most, 100)) == 99_999
    with pytest.raises(RouterError, match="at most 100000 lists and objects") as caught:
        parse(b"[" + b"[]," * 2_000_000 + b"[]]", 100)
    with pytest.raises(RouterError, match="at most 100000 lists and objects"):
        parse(b"[" + b'["["],' * 500_000 + b"[]]", 100)
    assert (caught.value.status, caught.value.code) == (400, "too_complex")
    assert parse(json.dumps(["[]" * 200_000]).encode(), 100)  # as text they are no matter


@pytest.mark.parametrize(
    "text", [rb"\n" * 2**20, rb"\"[" * 2**19, rb"\\" * 2**20, b"[" * 2**21], ids=["n", "quote", "backslash", "bracket"]
)
def test_the_check_takes_little_memory(text: bytes) -> None:
    body = b'["' + text + b'", ' + b"[" * 98 + b"]" * 98 + b", [], [], []]"
    tracemalloc.start()
    try:
        check_shape(body, 100)  # what the parser takes is its own matter
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < 5 * len(body)


def test_many_short_strings() -> None:
    body = b"[" + b'"","[",["]"],' * 30_000 + b"0]"
    assert len(parse(body, 100)) == 90_001
