"""The status page in a real browser, before a real router: what a person sees, and what nobody must see."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, executable, open_page
from running import FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_answers import Behaviour
from wire import exchange, request

pytestmark = pytest.mark.integration

QUESTION = "How many roads must a swordfish walk down?"
EASY = (0.9, 0.05, 0.05)
SHOWN = "!document.getElementById('board').hidden"


@pytest.fixture(autouse=True, scope="module")
def _browser() -> None:
    executable()  # skips, or fails in CI, before any router is started


@pytest.fixture
def stubs() -> Iterator[tuple[Stub, Stub]]:
    with Stub() as one, Stub() as other:
        yield one, other


@pytest.fixture
def router(stubs: tuple[Stub, Stub]) -> Iterator[RunningRouter]:
    backends = [{"url": stub.url, "name": name} for stub, name in zip(stubs, ("alpha", "beta"), strict=True)]
    with running_router(backends, features=FixedFeatures(EASY), health={"interval_s": 0.1}) as router:
        yield router


def ask(router: RunningRouter, *, difficulty: str = "auto", key: str | None = None, **body: Any) -> int:
    content = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "difficulty": difficulty, **body}
    headers = (("authorization", f"Bearer {key}"),) if key else ()
    return exchange(router.port, request(json.dumps(content).encode(), headers=headers)).status


def text_is(selector: str, wanted: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).textContent.trim() === {json.dumps(wanted)}"


def unexpected(page: Page) -> list[str]:
    """What went wrong in the page, but for answers that a test provoked."""
    return [problem for problem in page.problems() if "Failed to load resource" not in problem]


def test_it_shows_live_what_the_router_does_and_never_a_question(router: RunningRouter) -> None:
    async def look() -> None:
        async with open_page(router.url + "/") as page:
            await page.until(SHOWN)
            assert await page.text("#state") == "healthy"
            assert QUESTION not in await page.text("#first")
            assert "curl" in await page.text("#first")  # nothing has been asked yet
            for _ in range(6):
                assert ask(router) == 200
            assert [ask(router, difficulty=each) for each in ("hard", "hard", "normal")] == [200] * 3
            assert ask(router, difficulty="impossible") == 400
            image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
            assert ask(router, messages=[{"role": "user", "content": image}]) == 200
            await page.until(text_is("#requests", "11"))
            shares = [await page.text(f"#{name}") for name in ("easy", "normal", "hard")]
            assert [share.split()[:2] for share in shares] == [["60", "%"], ["20", "%"], ["20", "%"]]
            assert await page.text("#refused") == "1"
            assert await page.text("#failed") == "0"
            assert float((await page.text("#rate")).removeprefix("< ")) > 0
            assert re.fullmatch(r"\d+\.\d\d ms", await page.text("#routing-p50"))
            assert await page.text("#prompt") == "90"  # ten answers of nine tokens
            assert (await page.text("#fallbacks")).split() == ["image", "1", "1"]
            assert (await page.text("#features")).endswith("up")
            rows = await page.js("[...document.querySelectorAll('#backends tr')].map(r => r.innerText.split('\\t'))")
            assert [[row[0], row[1].split()[-1], row[2]] for row in rows] == [
                ["alpha", "up", "closed"],
                ["beta", "up", "closed"],
            ]
            assert await page.text("#first") == ""
            assert await page.js("document.querySelectorAll('#s-rate path.line').length") == 1
            assert QUESTION not in await page.js("document.documentElement.outerHTML")
            assert page.problems() == []
            assert {url for url in page.fetched() if not url.startswith("data:")} == {
                router.url + "/",
                router.url + "/status.json",
            }

    asyncio.run(look())
    with urllib.request.urlopen(router.url + "/status.json") as answer:
        assert "swordfish" not in answer.read().decode()


def test_a_backend_that_goes_and_comes_back_is_seen(router: RunningRouter, stubs: tuple[Stub, Stub]) -> None:
    async def look() -> None:
        async with open_page(router.url + "/") as page:
            await page.until(text_is("#state", "healthy"))
            stubs[1].refuse()
            await page.until(text_is("#state", "degraded"))
            assert await page.text("#reasons") == "backend beta is down"
            assert "degraded" in await page.js("document.title")
            stubs[0].refuse()
            await page.until(text_is("#state", "down"))
            assert ask(router) in (502, 503)
            await page.until(text_is("#failed", "1"))
            for stub in stubs:
                stub.listen()
            await page.until("document.querySelectorAll('#backends .good').length === 2")
            assert unexpected(page) == []

    asyncio.run(look())


def test_without_a_feature_source_nothing_is_wrong(stubs: tuple[Stub, Stub]) -> None:
    async def look(router: RunningRouter) -> None:
        async with open_page(router.url + "/") as page:
            await page.until(SHOWN)
            assert (await page.text("#state"), await page.text("#features")) == ("healthy", "off")

    with running_router([stubs[0].url]) as router:
        asyncio.run(look(router))


def test_it_says_when_the_router_is_gone(stubs: tuple[Stub, Stub]) -> None:
    async def look() -> None:
        with running_router([stubs[0].url]) as router:
            opening = open_page(router.url + "/")
            page = await opening.__aenter__()
            await page.until(SHOWN)
        try:
            await page.until("!document.getElementById('gone').hidden")
            assert await page.text("#state") == "not reachable"
            assert "connection failed" in await page.text("#gone")
            assert await page.js(SHOWN)  # the last numbers stay, and are said to be old
            assert "The numbers below are those of" in await page.text("#gone")
        finally:
            await opening.__aexit__(None, None, None)

    asyncio.run(look())


def test_a_key_is_asked_for_and_kept_in_memory_only(stubs: tuple[Stub, Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_KEYS", "sesame-1, sesame-2")

    async def look(router: RunningRouter) -> None:
        async with open_page(router.url + "/") as page:
            await page.until("!document.getElementById('ask').hidden")
            assert not await page.js(SHOWN)
            assert await page.text("#state") == "needs a key"
            await page.type("#key", "sesame-3")
            await page.press_enter()
            await page.until("document.getElementById('ask-text').textContent.includes('not accepted')")
            await page.type("#key", "sesame-2")
            await page.press_enter()
            await page.until(SHOWN)
            assert await page.text("#ask") == ""
            assert await page.js("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
            assert "sesame" not in await page.js("location.href + document.documentElement.outerHTML")
            assert await page.js("document.getElementById('key').value") == ""
            assert ask(router, key="sesame-1") == 200
            await page.until(text_is("#requests", "1"))
            assert unexpected(page) == []
            assert all("sesame" not in url for url in page.fetched())

    with running_router([stubs[0].url], auth={"keys_env": "CLIENT_KEYS"}) as router:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(router.url + "/status.json")
        asyncio.run(look(router))


def test_public_status_asks_for_no_key(stubs: tuple[Stub, Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_KEYS", "sesame")

    async def look(router: RunningRouter) -> None:
        async with open_page(router.url + "/") as page:
            await page.until(SHOWN)

    with running_router([stubs[0].url], auth={"keys_env": "CLIENT_KEYS", "public_status": True}) as router:
        asyncio.run(look(router))


def test_names_are_text_and_not_markup(stubs: tuple[Stub, Stub]) -> None:
    name = "<img src=x onerror=\"document.title='owned'\">"

    async def look(router: RunningRouter) -> None:
        async with open_page(router.url + "/") as page:
            await page.until(SHOWN)
            assert name in await page.text("#backends")
            assert await page.js("document.querySelectorAll('img').length") == 0
            # What an intruder's markup would want is refused by the policy too.
            await page.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned = 1\">')")
            await page.until("document.querySelector('img').complete")
            assert await page.js("window.owned === undefined")
            with pytest.raises(RuntimeError, match="Failed to fetch"):
                await page.js(f"fetch({json.dumps(stubs[0].url)})")

    with running_router([{"url": stubs[0].url, "name": name}]) as router:
        asyncio.run(look(router))


# For every text that is shown: the contrast of its colour with what lies behind it (WCAG 2), and its size.
CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data; };
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = [...rgba(c)].map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { while (e && rgba(getComputedStyle(e).backgroundColor)[3] < 255) e = e.parentElement;
    return e ? getComputedStyle(e).backgroundColor : "white"; };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, style = getComputedStyle(e);
    if (!texts.currentNode.textContent.trim() || !e.offsetParent || e.closest("script, style, .sr")) continue;
    const [a, b] = [light(style.color), light(behind(e))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && +style.fontWeight >= 700);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5))
      found.push([texts.currentNode.textContent, style.color, behind(e)]);
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390, 320])
def test_it_is_readable(
    scheme: str, width: int, router: RunningRouter, stubs: tuple[Stub, Stub], tmp_path: Path
) -> None:
    async def look() -> None:
        async with open_page(router.url + "/", width=width, height=844) as page:
            await page.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
            stubs[1].script(*[Behaviour.error(500)] * 3)
            for _ in range(4):
                ask(router)
            stubs[1].refuse()
            await page.until(text_is("#state", "degraded"))
            await page.until(text_is("#requests", "4"))
            assert await page.js("document.documentElement.scrollWidth") <= width
            assert await page.js(CONTRAST) == []
            moving = (
                "[...document.querySelectorAll('*')].some(e => parseFloat(getComputedStyle(e).transitionDuration) > 0)"
            )
            assert not await page.js(moving)
            # What the accessibility tree makes of it: names for all that is drawn.
            nodes = (await page.call("Accessibility.getFullAXTree"))["nodes"]
            drawn = [n for n in nodes if n.get("role", {}).get("value") in ("image", "img") and not n["ignored"]]
            assert len(drawn) >= 7
            assert all(node["name"]["value"] for node in drawn)
            roles = {node["role"]["value"] for node in nodes if "role" in node and not node["ignored"]}
            assert {"main", "heading", "status", "table", "rowheader", "columnheader"} <= roles
            picture = tmp_path / "page.png"
            await page.screenshot(picture)
            assert picture.stat().st_size > 10_000
            assert unexpected(page) == []

    asyncio.run(look())
