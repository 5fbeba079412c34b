"""`VLLMServed` against servers that answer as a vLLM with the probe does, and as they must not
(`test_vllm_one_engine.py` has the real one); and the router, which asks the one that will answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aiohttp import web
from stub_source import SourceServer

from entropy_rft.difficulty.served.wire import MARK, STATUS_OK, TOKENS, encoded
from entropy_rft.difficulty.strategies import DEFAULT_STRATEGIES, Difficulty
from entropy_rft.router.backends import Backend
from entropy_rft.router.features import FeatureError, ProbedFeatures, Question
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.pool import Pool
from entropy_rft.router.proxy import Proxy
from entropy_rft.router.routing import Routing
from entropy_rft.router.settings import BackendSettings, FeatureSettings, RouterSettings
from entropy_rft.router.vllm_served import VLLMServed

pytestmark = pytest.mark.integration

DIGEST = "0fa9c3" + 58 * "0"


def probabilities_of(token_ids: list[int]) -> tuple[float, float, float]:
    hard = (sum(token_ids) % 100) / 100
    return 0.0, 1 - hard, hard


class Server(SourceServer):
    """A vLLM server whose parts a test may replace."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.digest, self.status = DIGEST, STATUS_OK
        super().__init__("/v1/completions", self._completions, [{"id": "tiny", "max_model_len": 20}])

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        return encoded(torch.tensor([probabilities_of(token_ids)]), torch.tensor([self.status]), self.digest)[0]

    async def _completions(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if MARK not in (body.get("vllm_xargs") or {}):
            return web.json_response({"choices": [{"text": "seven", "index": 0}], "usage": {"completion_tokens": 1}})
        if max(body["prompt"]) >= 1000:
            return web.json_response({"error": {"message": "Token id is out of vocabulary", "code": 400}}, status=400)
        scores = self.logits(body["prompt"]).log_softmax(-1).tolist()
        top = {f"token_id:{token}": score for token, score in enumerate(scores)}
        return web.json_response({"choices": [{"logprobs": {"top_logprobs": [top]}}]})


def run(test: Callable[[Server, VLLMServed], Awaitable[None]], start: bool = True, **options: Any) -> None:
    async def main() -> None:
        server = Server()
        served = VLLMServed({f"{await server.start()}/v1/": "secret"}, **{"digest": DIGEST, **options})
        served.open()
        try:
            if start:
                await served.check()
            await test(server, served)
        finally:
            await served.close()
            await server.stop()

    asyncio.run(main())


def test_token_ids_in_and_probabilities_out() -> None:
    async def test(server: Server, served: VLLMServed) -> None:
        assert await served.ready()
        questions = [[n, n + 1] for n in range(10)]
        found = await asyncio.gather(*(served.probabilities(question) for question in questions))
        for row, question in zip(found, questions, strict=True):
            assert row == pytest.approx(probabilities_of(question), abs=2e-7)
        first, *later = server.requests
        assert first["prompt"] == [1]  # checked before it is trusted
        assert [request["prompt"] for request in later] == questions
        assert {request["model"] for request in later} == {"tiny"}
        assert set(server.keys) == {"Bearer secret"}

    run(test)


def test_questions_that_it_refuses() -> None:
    async def test(server: Server, served: VLLMServed) -> None:
        with pytest.raises(FeatureError, match="status 400: Token id is out of vocabulary"):
            await served.probabilities([1000])
        with pytest.raises(FeatureError, match="20 tokens, the server takes less than 20"):
            await served.probabilities([5] * 20)
        assert await served.probabilities([5] * 19)

    run(test)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "ffffff"}, "evaluates the probe ffffff, but the router has 0fa9c3: set ENTROPY_RFT_PROBE"),
        ({"logits": lambda token_ids: torch.arange(TOKENS) / 3}, "the server evaluates no probe"),
        ({"models": [{"id": "other"}]}, "has no model 'tiny', only other"),
        ({"models": []}, "does not name its model"),
        ({"status": 2}, "the request uses a LoRA adapter"),
    ],
)
def test_a_server_that_cannot_be_used(change: dict[str, Any], message: str) -> None:
    async def test(server: Server, served: VLLMServed) -> None:
        for name, value in change.items():
            setattr(server, name, value)
        assert not await served.ready()
        with pytest.raises(FeatureError, match=message):
            await served.check()
        with pytest.raises(FeatureError, match=message):  # not asked again at once
            await served.probabilities([5])

    run(test, start=False, model="tiny")


def test_another_probe_is_a_mistake_at_the_start() -> None:
    async def test(server: Server, served: VLLMServed) -> None:
        server.digest = "ffffff"
        with pytest.raises(ValueError, match="evaluates the probe ffffff"):
            await served.start()

    run(test, start=False)


def test_a_server_that_is_down_at_the_start_is_used_later(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: Server, served: VLLMServed) -> None:
        server.healthy, models, server.models = False, server.models, []
        await served.start()
        assert "not reachable yet" in caplog.text
        server.models = models
        assert not await served.ready()
        server.healthy = True
        assert await served.ready()
        assert await served.probabilities([5])

    run(test, start=False)


def test_the_backend_that_is_asked_answers() -> None:
    """Its prefix cache has the question. The others get nothing, whatever the order."""

    async def main() -> None:
        servers = [Server() for _ in range(3)]
        urls = [await server.start() for server in servers]
        settings = RouterSettings(
            probe="/unused", backends=[BackendSettings(url=url) for url in urls], features=FeatureSettings(kind="vllm")
        )
        pool = Pool(settings, [Backend(each, settings.breaker) for each in settings.backends])
        await pool.start()
        source = VLLMServed(dict.fromkeys(urls), digest=DIGEST)
        features = ProbedFeatures(lambda question: question.token_ids or [], source, None)
        await features.start()
        metrics = Metrics({}, "tiny")
        routing = Routing(settings, DEFAULT_STRATEGIES, features, pool, metrics)
        proxy = Proxy(settings, pool, metrics)
        try:
            for server in servers:
                server.requests.clear()
            for hard in range(80, 92):
                decision = await routing.decide({"prompt": [hard]}, "completions", None)
                assert decision.difficulty is Difficulty.HARD
                assert decision.confidence == pytest.approx(hard / 100, abs=1e-6)
                upstream = await proxy.ask(
                    "POST", "/v1/completions", b'{"prompt": [%d]}' % hard, {}, first=decision.backend
                )
                assert upstream.status == 200
                upstream.close()
            for server in servers:
                asked = [body["prompt"] for body in server.requests if "vllm_xargs" in body]
                answered = [body["prompt"] for body in server.requests if "vllm_xargs" not in body]
                assert len(asked) == 4
                assert asked == answered
        finally:
            await features.close()
            await pool.close()
            for server in servers:
                await server.stop()

    asyncio.run(main())


def test_another_server_for_the_probe_alone() -> None:
    settings = RouterSettings(
        probe="/unused", backends=["http://a", "http://b"], features={"kind": "vllm", "url": "http://c"}
    )
    pool = SimpleNamespace(choose=lambda now: pytest.fail("the backend is chosen when the answer is asked for"))

    class Source:
        async def proba(self, request: Question) -> tuple[float, float, float]:
            assert request.server is None
            return 0.9, 0.1, 0.0

    async def main() -> None:
        routing = Routing(settings, DEFAULT_STRATEGIES, Source(), pool, Metrics({}, "tiny"))  # type: ignore[arg-type]
        decision = await routing.decide({"prompt": [1]}, "completions", None)
        assert (decision.difficulty, decision.backend) == (Difficulty.EASY, None)

    asyncio.run(main())
