"""What a reload is made of: sources that share their states, decisions that end, files that are looked at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty
from entropy_rft.router.features import ProbedFeatures, Question
from entropy_rft.router.metrics import Metrics
from entropy_rft.router.pool import Pool
from entropy_rft.router.reloading import RELOADABLE, watched
from entropy_rft.router.routing import Routing
from entropy_rft.router.settings import EMBEDDED, FeatureSettings, RouterSettings


class States:
    def __init__(self) -> None:
        self.asked = 0
        self.closed = False

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.closed = True

    async def ready(self) -> bool:
        return True

    async def state(self, token_ids: list[int], wanted: Any) -> Any:
        self.asked += 1
        return np.zeros(1, dtype=np.float32)


class Probe:
    def __init__(self, *proba: float) -> None:
        self.proba = proba

    def predict_proba(self, state: Any) -> Any:
        return np.array([self.proba])


def test_a_successor_shares_the_states_and_not_the_results() -> None:
    async def main() -> None:
        states, question = States(), Question(text="2+2?")
        old = ProbedFeatures(lambda question: [1, 2], states, Probe(1, 0, 0), 7)  # type: ignore[arg-type]
        assert await old.proba(question) == (1, 0, 0)
        new = old.with_probe(Probe(0, 0, 1))  # type: ignore[arg-type]
        assert (new.hits, new.misses) == (0, 1)
        assert await new.proba(question) == (0, 0, 1)
        assert states.asked == 2
        await old.retire()
        assert not states.closed
        assert await new.proba(question) == (0, 0, 1)
        assert (new.hits, new.misses) == (1, 2)
        await new.close()
        assert states.closed

    asyncio.run(main())


def test_a_routing_is_idle_after_its_last_decision() -> None:
    release = asyncio.Event()

    class Slow:
        async def proba(self, request: Question) -> tuple[float, float, float]:
            await release.wait()
            return 0.0, 0.0, 1.0

    async def main() -> None:
        settings = RouterSettings(features=FeatureSettings(deadline_ms=30_000))
        routing = Routing(settings, DEFAULT_STRATEGIES, Slow(), Pool(settings, []), Metrics())  # type: ignore[arg-type]
        await routing.idle()
        body = {"messages": [{"role": "user", "content": "2+2?"}]}
        decisions = [asyncio.create_task(routing.decide(body, "chat", None)) for _ in range(2)]
        await asyncio.sleep(0)
        idle = asyncio.create_task(routing.idle())
        await asyncio.sleep(0)
        assert not idle.done()
        release.set()
        await asyncio.wait_for(idle, 30)
        assert [(await each).difficulty for each in decisions] == [Difficulty.HARD] * 2

    asyncio.run(main())


def test_what_was_learned_is_taken_over() -> None:
    settings = RouterSettings()
    old = Routing(settings, DEFAULT_STRATEGIES, None, Pool(settings, []), Metrics())
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "2+2?"}]}
    request = {"messages": [{"role": "system", "content": "Be short."}, *body["messages"]]}
    old.learn_system_role(body, request, "chat", known=False)
    new = Routing(settings, DEFAULT_STRATEGIES, None, Pool(settings, []), Metrics(), before=old)
    assert new.placement == "user_end"


def test_the_files_that_count() -> None:
    probe = [Path("p/probe.json"), Path("p/probe.safetensors")]
    assert list(watched(RouterSettings(probe="p"), None)) == probe
    assert list(watched(RouterSettings(probe="p", strategies="s.yaml"), "r.yaml")) == [
        Path("r.yaml"),
        Path("s.yaml"),
        *probe,
    ]
    assert list(watched(RouterSettings(probe=EMBEDDED, strategies={}), None)) == []


def test_reloadable_settings_exist() -> None:
    assert set(RELOADABLE) <= set(RouterSettings.model_fields)


def test_the_metrics_name_one_probe() -> None:
    metrics = Metrics({"easy": 100.0, "normal": 300.0})
    metrics.watch_probe({"easy": 100.0, "normal": 250.0}, "a" * 64)
    metrics.watch_probe({"easy": 100.0, "normal": 200.0}, "b" * 64)
    get = metrics.registry.get_sample_value
    assert get("entropy_rft_probe_info", {"digest": "a" * 12}) == 0
    assert get("entropy_rft_probe_info", {"digest": "b" * 12}) == 1
    metrics.answered("easy", b"", 1)
    assert get("entropy_rft_tokens_saved_estimate_total") == 100.0
    metrics.answered("easy", b"", 1, "shadow")
    assert get("entropy_rft_tokens_saved_estimate_total") == 100.0
    metrics.reloaded(False)
    assert get("entropy_rft_reloads_total", {"result": "error"}) == 1
    assert get("entropy_rft_reloads_total", {"result": "ok"}) == 0
