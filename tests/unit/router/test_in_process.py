"""`ASGISession` as aiohttp's session: what an application gets, and what the asker gets of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from entropy_rft.router.in_process import CLIENT_SCOPE, ASGISession

BASE = {"app": "outer", "client": None, "asgi": {"spec_version": "2.3"}}


def run(app: Any, test: Callable[[ASGISession], Awaitable[None]], **scope: Any) -> None:
    async def main() -> None:
        session = ASGISession(app, {**BASE, **scope}, {"authorization": "Bearer own"})
        try:
            await asyncio.wait_for(test(session), 10)
        finally:
            await session.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def start(send: Any, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def piece(send: Any, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def test_the_application_gets_the_request_and_the_clients_scope() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope, message=await receive())
        await start(send, (b"X-One", b"1"), (b"content-length", b"2"), status=201)
        await piece(send, b"ok", more=False)

    async def test(session: ASGISession) -> None:
        CLIENT_SCOPE.set({"client": ("192.0.2.7", 1), "path": "/another", "headers": [(b"x-secret", b"1")]})
        async with session.request("POST", "http://s/a/b?c=%20d", data=b"{}", headers={"X-Id": "7"}) as response:
            assert (response.status, response.content_length, await response.read()) == (201, 2, b"ok")
            assert response.headers["x-one"] == "1"
        assert (seen["method"], seen["path"], seen["query_string"]) == ("POST", "/a/b", b"c=%20d")
        assert seen["message"] == {"type": "http.request", "body": b"{}", "more_body": False}
        headers = dict(seen["headers"])
        assert headers == {b"x-id": b"7", b"content-length": b"2", b"host": b"s", b"authorization": b"Bearer own"}
        assert (seen["client"], seen["app"]) == (("192.0.2.7", 1), "outer")
        response = await session.get("http://s/a", headers={"authorization": "Bearer mine"})
        assert dict(seen["headers"])[b"authorization"] == b"Bearer mine"
        response.release()

    run(app, test)


def test_pieces_arrive_as_they_are_sent_and_a_full_buffer_waits() -> None:
    sent = 0
    read = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await start(send)
        await piece(send, b"first")
        await read.wait()
        for _ in range(8):
            sent += 1
            await piece(send, b"x" * 100_000)
        await piece(send, b"", more=False)

    async def test(session: ASGISession) -> None:
        response = await session.get("http://s/")
        assert await response.content.readany() == b"first"
        assert response.content_length is None
        read.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert sent == 3  # the third is more than the buffer holds
        assert len(await response.read()) == 800_000
        assert await response.content.readany() == b""

    run(app, test)


def test_an_application_that_fails_before_and_in_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/late":
            await start(send)
            await piece(send, b"half")
        if scope["path"] != "/silent":
            raise RuntimeError("the engine is dead")

    async def test(session: ASGISession) -> None:
        for path in ("/early", "/silent"):
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.get(f"http://s{path}")
        response = await session.get("http://s/late")
        assert await response.content.readany() == b"half"
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readany()
        assert sum("RuntimeError" in (record.exc_text or "") for record in caplog.records) == 2

    run(app, test)


@pytest.mark.parametrize(("version", "raises"), [("2.3", False), ("2.4", True)])
def test_an_asker_that_leaves_is_a_client_that_disconnects(version: str, raises: bool) -> None:
    ended: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await start(send)
        await piece(send, b"first")
        ended.append(await receive())
        try:
            await piece(send, b"second")
        except OSError:
            ended.append("raised")

    async def test(session: ASGISession) -> None:
        response = await session.get("http://s/")
        response.close()
        while session._tasks:
            await asyncio.sleep(0)
        assert ended == [{"type": "http.disconnect"}, *(["raised"] * raises)]

    run(app, test, asgi={"spec_version": version})


def test_a_limit_of_time_disconnects() -> None:
    left: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        left.append(await receive())

    async def test(session: ASGISession) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await session.get("http://s/", timeout=aiohttp.ClientTimeout(total=0.01))
        while session._tasks:
            await asyncio.sleep(0)
        assert left == [{"type": "http.disconnect"}]

    run(app, test)
