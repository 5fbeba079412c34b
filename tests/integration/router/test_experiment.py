"""Shadow mode and a share of the conversations, over real sockets: what a backend gets, what a client is told, and
what is counted of each arm."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from running import PATIENCE, FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_app import Client, StubApp, live

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty
from entropy_rft.router.features import Question
from entropy_rft.router.middleware import RouterMiddleware
from entropy_rft.router.settings import load_settings

pytestmark = pytest.mark.integration

EASY = DEFAULT_STRATEGIES[Difficulty.EASY]
RAW: dict[str, bytes] = {
    "/v1/chat/completions": b'{ "model": "m", "messages": [{"role":"user","content":"2+2?"}], "x": 1.50, "seed":1e2}',
    "/v1/completions": b'{"model":"m",  "prompt": "2 + 2 ="}',
    "/v1/responses": b'{"model":"m", "input":  "2+2?", "reasoning": {"effort": "low"}}',
    "/v1/messages": b'{"model":"m", "max_tokens": 9, "messages": [{"role":"user","content":"2+2?"}]}',
}


class Counting(FixedFeatures):
    """Counts its questions."""

    asked = 0

    async def proba(self, request: Question) -> tuple[float, float, float]:
        self.asked += 1
        return await super().proba(request)


def post(router: RunningRouter, body: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(router.url + path, content=content, headers=named, timeout=PATIENCE)


@pytest.mark.parametrize("path", RAW)
def test_shadow_mode_shows_all_and_changes_nothing(stub: Stub, path: str) -> None:
    with running_router([stub.url], features=FixedFeatures((0.9, 0.06, 0.04)), mode="shadow") as router:
        answer = post(router, RAW[path], path)
        assert answer.status_code == 200
        assert stub.requests[-1].body == RAW[path]
        assert answer.headers["x-entropy-rft-arm"] == "shadow"
        assert answer.headers["x-entropy-rft-difficulty"] == "easy"
        assert answer.headers["x-entropy-rft-confidence"] == "0.9000"
        assert answer.headers["x-entropy-rft-reason"] == "probe"
        assert f"temperature={EASY.temperature}" in answer.headers["x-entropy-rft-would-apply"]
        assert "x-entropy-rft-applied" not in answer.headers
        router.wait_for_metric(1, "entropy_rft_arm_requests_total", 'arm="shadow"', 'status="200"')
        assert router.metric("entropy_rft_would_apply_total", 'field="temperature"', 'difficulty="easy"') == 1
        assert router.metric("entropy_rft_applied_total") == 0
        assert router.metric("entropy_rft_tokens_saved_estimate_total") == 0


def test_the_log_says_what_shadow_mode_would_do(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", logger="entropy_rft.router"),
        running_router(
            [stub.url], features=FixedFeatures((0.9, 0.06, 0.04)), mode="shadow", log_requests=True
        ) as router,
    ):
        post(router, RAW["/v1/chat/completions"])
        router.wait_for_metric(1, "entropy_rft_arm_requests_total")
    (record,) = [each for each in caplog.records if each.getMessage() == "answered"]
    said = vars(record)
    assert (said["arm"], said["difficulty"], said["confidence"], said["reason"]) == ("shadow", "easy", 0.9, "probe")
    assert "temperature" in said["would_apply"]


def test_shadow_mode_only_removes_what_is_the_routers(stub: Stub) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "2+2?"}], "reasoning_effort": "high", "n": 2}
    settings: dict[str, Any] = {"mode": "shadow", "client_reasoning_effort": "difficulty", "served_model_name": "real"}
    with running_router([stub.url], features=FixedFeatures((0.9, 0.06, 0.04)), **settings) as router:
        answer = post(router, {**body, "difficulty": "easy"}, x_entropy_rft_difficulty="hard")
        assert (answer.headers["x-entropy-rft-difficulty"], answer.headers["x-entropy-rft-arm"]) == ("easy", "shadow")
        assert stub.requests[-1].json == {**body, "model": "real"}
        assert post(router, {**body, "difficulty": "eassy"}).status_code == 400


def conversation(number: int, turns: int = 1) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}]
    for turn in range(1, turns):
        messages += [{"role": "assistant", "content": "4"}, {"role": "user", "content": f"go on {turn}"}]
    return {"model": "m", "messages": messages}


def test_a_share_of_the_conversations_gets_strategies(stub: Stub) -> None:
    source, count = Counting((0.9, 0.06, 0.04)), 40
    with running_router([stub.url], features=source, rollout=0.5, auth={"keys_env": None}) as router:
        arms: dict[int, str] = {}
        for number in range(count):
            answer = post(router, raw := json.dumps(conversation(number)).encode())
            arms[number] = answer.headers["x-entropy-rft-arm"]
            if arms[number] == "control":
                assert stub.requests[-1].body == raw
                assert answer.headers["x-entropy-rft-reason"] == "control"
                assert "x-entropy-rft-difficulty" not in answer.headers
                assert "x-entropy-rft-applied" not in answer.headers
            else:
                assert stub.requests[-1].json["temperature"] == EASY.temperature
        treated = sum(arm == "treatment" for arm in arms.values())
        assert 0 < treated < count
        assert set(arms.values()) == {"treatment", "control"}
        assert source.asked == treated  # the others cost the probe nothing
        for number in range(10):  # all turns, whoever sends them
            answer = post(router, conversation(number, turns=3), authorization=f"Bearer {number}")
            assert answer.headers["x-entropy-rft-arm"] == arms[number]
        again = sum(arms[number] == "treatment" for number in range(10))
        treatment, control = treated + again, count - treated + 10 - again
        router.wait_for_metric(treatment, "entropy_rft_arm_requests_total", 'arm="treatment"', 'status="200"')
        router.wait_for_metric(control, "entropy_rft_arm_requests_total", 'arm="control"', 'status="200"')
        assert router.metric("entropy_rft_arm_completion_tokens_sum", 'arm="control"') == 12 * control
        assert router.metric("entropy_rft_arm_completion_tokens_count", 'arm="treatment"') == treatment
        assert router.metric("entropy_rft_arm_prompt_tokens_total", 'arm="treatment"') == 9 * treatment
        assert router.metric("entropy_rft_arm_request_seconds_count", 'arm="control"') == control
        assert router.metric("entropy_rft_requests_total", 'difficulty="none"') == control
        assert router.metric("entropy_rft_fallbacks_total") == 0


def test_a_client_that_names_a_difficulty_gets_it_in_either_arm(stub: Stub) -> None:
    with running_router([stub.url], features=FixedFeatures((0.1, 0.1, 0.8)), rollout=0.0) as router:
        for answer in (
            post(router, {**conversation(1), "difficulty": "easy"}),
            post(router, conversation(1), x_entropy_rft_difficulty="easy"),
        ):
            assert answer.headers["x-entropy-rft-arm"] == "client"
            assert stub.requests[-1].json["temperature"] == EASY.temperature
        assert post(router, {**conversation(1), "difficulty": "auto"}).headers["x-entropy-rft-arm"] == "control"
        assert stub.requests[-1].json == conversation(1)


def test_shadow_mode_for_a_share_probes_only_that_share(stub: Stub) -> None:
    source = Counting((0.9, 0.06, 0.04))
    with running_router([stub.url], features=source, rollout=0.5, mode="shadow") as router:
        arms = []
        for number in range(30):
            body = conversation(number)
            arms.append(post(router, body).headers["x-entropy-rft-arm"])
            assert stub.requests[-1].json == body
        assert set(arms) == {"shadow", "control"}
        assert source.asked == arms.count("shadow")


def test_inside_a_server_it_is_the_same() -> None:
    app = StubApp()
    backends = [{"url": "http://this-server", "name": "vllm"}]
    settings = load_settings(None, {"mode": "shadow", "rollout": 0.5, "backends": backends})

    async def main() -> None:
        source = Counting((0.9, 0.06, 0.04))
        async with live(RouterMiddleware(app, settings, features=source), app) as client:
            await inside(client)
            assert source.asked > 0

    async def inside(client: Client) -> None:
        arms = set()
        for number in range(30):
            body = conversation(number)
            reply = await client.ask(body)
            arms.add(reply.headers["x-entropy-rft-arm"])
            assert app.requests[-1].json == body
        assert arms == {"shadow", "control"}
        assert await client.metric("entropy_rft_arm_requests_total", 'arm="control"') > 0

    asyncio.run(main())
