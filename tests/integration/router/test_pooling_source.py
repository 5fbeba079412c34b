"""`VLLMPooling` against a server that answers as vLLM 0.31 does, and as it must not (`test_vllm_features.py` has the
real one)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from stub_source import SourceServer

from entropy_rft.router.features import FeatureError
from entropy_rft.router.vllm_pooling import VLLMPooling

pytestmark = pytest.mark.integration

WIDTH = 4


def always() -> bool:
    return True


def state_of(token_ids: list[int]) -> np.ndarray:
    return np.array([len(token_ids), sum(token_ids), 3.5, -1e-3], dtype="<f4")


class Server(SourceServer):
    """A pooling server whose `pooling` a test may replace."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.pooling: Callable[[dict[str, Any]], Awaitable[web.Response] | web.Response] = self.good
        super().__init__("/pooling", self._pooling, [{"id": "tiny", "max_model_len": 20}, {"id": "other"}])

    def good(self, body: dict[str, Any]) -> web.Response:
        if any(token >= 1000 for row in body["input"] for token in row):
            return web.json_response({"error": {"message": "Token id is out of vocabulary", "code": 400}}, status=400)
        data = [
            {"index": index, "object": "pooling", "data": base64.b64encode(state_of(row).tobytes()).decode()}
            for index, row in enumerate(body["input"])
        ]
        return web.json_response({"data": data[::-1], "usage": {}})  # in no particular order

    async def _pooling(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(request.headers)
        answer = self.pooling(body)
        return answer if isinstance(answer, web.Response) else await answer


def run(test: Callable[[Server, VLLMPooling], Awaitable[None]], start: bool = True, **options: Any) -> None:
    async def main() -> None:
        server = Server()
        url = await server.start()
        states = VLLMPooling(f"{url}/v1/", **{"width": WIDTH, **options})
        try:
            if start:
                await states.start()
            await test(server, states)
        finally:
            await states.close()
            await server.stop()

    asyncio.run(main())


def test_token_ids_in_and_states_out() -> None:
    async def test(server: Server, states: VLLMPooling) -> None:
        assert await states.ready()
        questions = [[n, n + 1] for n in range(10)]
        found = await asyncio.gather(*(states.state(question, always) for question in questions))
        assert all(np.array_equal(f, state_of(q)) for f, q in zip(found, questions, strict=True))
        first, *later = server.requests
        assert first["input"] == [[1]]  # looked at before it is trusted
        assert sum(len(request["input"]) for request in later) == 10
        assert len(later) < 10  # some came together
        assert {key: later[0][key] for key in ("model", "use_activation", "task")} == {
            "model": "tiny",
            "use_activation": False,
            "task": "embed",
        }
        assert server.headers[-1]["Authorization"] == "Bearer secret"

    run(test, api_key="secret", concurrency=2)


def test_one_bad_question_spoils_no_other() -> None:
    async def test(server: Server, states: VLLMPooling) -> None:
        found = await asyncio.gather(*(states.state([n], always) for n in (5, 6, 1000, 7)), return_exceptions=True)
        assert [isinstance(value, FeatureError) for value in found] == [False, False, True, False]
        assert "Token id is out of vocabulary" in str(found[2])
        with pytest.raises(FeatureError, match="21 tokens, a pooling server takes 20"):
            await states.state([5] * 21, always)

    run(test, concurrency=1)


def answer(data: Any, status: int = 200) -> Callable[[dict[str, Any]], web.Response]:
    return lambda body: web.json_response(data, status=status)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        (answer({"error": {"message": "engine\ndead"}}, 500), "status 500: engine dead"),
        (answer({"error": {"message": "no key"}}, 401), "status 401: no key"),
        (answer({"data": []}), "0 states for 1 questions"),
        (answer({"data": [{"index": 0, "data": "%%%"}]}), "something other than states"),
        (answer({"data": [{"index": 0, "data": [1.0]}]}), "something other than states"),
        (answer([]), "something other than states"),
        (lambda body: web.Response(text="<html>"), "without JSON"),
        (lambda body: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), "status 302"),
    ],
)
def test_answers_that_are_no_states(pooling: Any, message: str) -> None:
    async def test(server: Server, states: VLLMPooling) -> None:
        server.pooling = pooling
        with pytest.raises(FeatureError, match=message):
            await states.state([5], always)
        server.pooling = server.good
        assert len(await states.state([5], always)) == WIDTH

    run(test)


def test_a_server_that_hangs() -> None:
    async def test(server: Server, states: VLLMPooling) -> None:
        release = asyncio.Event()

        async def hang(body: dict[str, Any]) -> web.Response:
            await release.wait()
            return server.good(body)

        server.pooling = hang
        with pytest.raises(FeatureError, match=r"did not answer in 0\.2 s"):
            await asyncio.wait_for(states.state([5], always), 30)
        release.set()

    run(test, timeout=0.2)


def test_a_server_that_comes_later_or_goes() -> None:
    async def test(server: Server, states: VLLMPooling) -> None:
        server.models = []
        await states.start()
        assert not await states.ready()
        with pytest.raises(FeatureError, match="does not name its model"):
            await states.state([5], always)
        server.models = [{"id": "tiny"}]
        with pytest.raises(FeatureError, match="does not name its model"):  # not asked again at once
            await states.state([5], always)
        assert await states.ready()
        assert len(await states.state([5], always)) == WIDTH
        server.healthy = False
        assert not await states.ready()
        await server.stop()
        assert not await states.ready()
        with pytest.raises(FeatureError, match="cannot be reached"):
            await states.state([5], always)

    run(test, start=False)


def test_questions_do_not_queue_for_a_server_that_was_never_there() -> None:
    async def test(server: Server, states: VLLMPooling) -> None:
        release = asyncio.Event()

        async def hang(body: dict[str, Any]) -> web.Response:
            await release.wait()
            return server.good(body)

        server.pooling = hang
        started = asyncio.ensure_future(states.start())
        while not server.requests:
            await asyncio.sleep(0.001)
        for _ in range(100):
            with pytest.raises(FeatureError, match="being checked"):
                await states.state([5], always)
        release.set()
        await started
        assert len(await states.state([5], always)) == WIDTH

    async def cold(server: Server, states: VLLMPooling) -> None:
        await server.stop()
        await states.start()
        with pytest.raises(FeatureError, match="cannot be reached"):
            await states.state([5], always)

    run(test, start=False)
    run(cold, start=False)


def test_a_server_that_is_of_no_use_is_a_mistake_in_the_settings() -> None:
    def normalised(body: dict[str, Any]) -> web.Response:
        state = np.array([0.6, 0.8, 0, 0], dtype="<f4")
        return web.json_response({"data": [{"index": 0, "data": base64.b64encode(state.tobytes()).decode()}]})

    async def normalises(server: Server, states: VLLMPooling) -> None:
        server.pooling = normalised
        with pytest.raises(ValueError, match="normalises its states"):
            await states.start()

    async def wide(server: Server, states: VLLMPooling) -> None:
        with pytest.raises(ValueError, match="states of width 4, but the probe reads 5: serve the probe's base model"):
            await states.start()

    async def unknown(server: Server, states: VLLMPooling) -> None:
        with pytest.raises(ValueError, match=r"features\.model: .* has no model 'big', only tiny, other"):
            await states.start()

    run(normalises, start=False)
    run(wide, start=False, width=5)
    run(unknown, start=False, model="big")


def test_after_the_end() -> None:
    async def test(server: Server, states: VLLMPooling) -> None:
        await states.close()
        with pytest.raises(FeatureError, match="closed"):
            await states.state([5], always)

    run(test)
