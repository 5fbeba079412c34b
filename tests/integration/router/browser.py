"""A headless Chromium, driven over its DevTools protocol: real clicks and keys, real rendering, nothing to download."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PATIENCE_S = 60.0  # the machine may be busy; every wait ends as soon as what it waits for is there
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)


def executable() -> str:
    """Where Chromium is. Without one the test is skipped, but not in CI, where it is set up beforehand."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    message = "no Chromium found: install it, or name it with CHROMIUM=/path/to/chromium"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        self._loaded = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data)
            else:
                self.events.append(data)
                if data["method"] == "Page.loadEventFired":
                    self._loaded.set()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        request = {"id": number, "method": method, "params": params}
        await self._socket.send_json(request | ({"sessionId": self.session} if self.session else {}))
        data = await asyncio.wait_for(answer, PATIENCE_S)
        if "error" in data:
            raise RuntimeError(f"{method}: {data['error']}")
        return data["result"]

    async def goto(self, url: str) -> None:
        self._loaded.clear()
        result = await self.call("Page.navigate", url=url)
        assert not result.get("errorText"), result
        await asyncio.wait_for(self._loaded.wait(), PATIENCE_S)

    async def js(self, expression: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def text(self, selector: str) -> str:
        """What a person reads there; "" where it is hidden or missing."""
        shown = "e => e && e.getClientRects().length ? e.innerText : ''"
        return await self.js(f"({shown})(document.querySelector({json.dumps(selector)}))")

    async def until(self, expression: str, accept: Callable[[Any], bool] = bool, patience: float = PATIENCE_S) -> Any:
        """Wait in the page until the expression's value is accepted, and return it."""
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            value = await self.js(expression)
            if accept(value):
                return value
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"still {value!r} after {patience:.0f} s: {expression}\n{await self.text('body')}")
            # The page says when something has changed; a frame is the shortest time in which it can.
            await self.js("new Promise(done => setTimeout(done, 50))")

    async def type(self, selector: str, text: str) -> None:
        await self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def press_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    async def media(self, **features: str) -> None:
        """Emulate media features, such as ``prefers_color_scheme="dark"``."""
        names = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=names)

    async def size(self, width: int, height: int, scale: float = 1.0) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    async def screenshot(self, path: Path) -> None:
        result = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))

    def problems(self) -> list[str]:
        """What the console and the network complained about: exceptions, refused content, foreign addresses."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
        return found

    def fetched(self) -> list[str]:
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]


@contextlib.asynccontextmanager
async def open_page(url: str, width: int = 1200, height: int = 900) -> AsyncIterator[Page]:
    """A fresh browser with `url` in its only tab."""
    profile = tempfile.mkdtemp(prefix="chromium-")
    process = await asyncio.create_subprocess_exec(
        executable(),
        *FLAGS,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    drain = None
    try:
        address = await asyncio.wait_for(_address(process), PATIENCE_S)
        assert process.stderr is not None
        drain = asyncio.create_task(process.stderr.read())  # a full pipe would stop it
        async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
            page = Page(socket)
            tabs = (await page.call("Target.getTargets"))["targetInfos"]
            tab = next(tab["targetId"] for tab in tabs if tab["type"] == "page")
            page.session = (await page.call("Target.attachToTarget", targetId=tab, flatten=True))["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            await page.size(width, height)
            await page.goto(url)
            yield page
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()
        if drain is not None:
            await drain
        shutil.rmtree(profile, ignore_errors=True)


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said = []
    async for line in process.stderr:
        said.append(line.decode(errors="replace"))
        if found := re.search(r"DevTools listening on (ws://\S+)", said[-1]):
            return found[1]
    raise AssertionError("Chromium ended before it listened: " + "".join(said))
