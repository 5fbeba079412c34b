"""Hidden states from the real vLLM with `--runner pooling`, on the CPU."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")
pytest.importorskip("aiohttp")

from processes import ServerProcess
from vllm_servers import POOLED_TOKENS, POOLING_KEY

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_PROBE
from entropy_rft.difficulty import DifficultyProbe, question_states
from entropy_rft.models.sources import model_source
from entropy_rft.router.features import FeatureError, Question, build_features
from entropy_rft.router.settings import FeatureSettings, RouterSettings
from entropy_rft.router.vllm_pooling import VLLMPooling
from entropy_rft.sampling import encode_prompt, load_model_and_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.integration]

QUESTIONS = [f"What is {a} + {b}{' - 3' * (b % 5)}?" for a in (1, 20, 99) for b in (2, 13, 19)]


def always() -> bool:
    return True


@pytest.fixture(scope="module")
def url(vllm_servers: tuple[ServerProcess, ServerProcess]) -> str:
    """The address of a pooling server of the embedded model."""
    return vllm_servers[1].url


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[Any, Any]:
    return load_model_and_tokenizer(model_source(DEFAULT_MODEL), dtype="float32", device="cpu")


def run(url: str, test: Any, **options: Any) -> None:
    async def main() -> None:
        states = VLLMPooling(url, **{"api_key": POOLING_KEY, "width": 128, **options})
        await states.start()
        try:
            assert await states.ready()
            await test(states)
        finally:
            await states.close()

    asyncio.run(main())


def test_exactly_a_plain_forward(url: str, model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": question}]) for question in QUESTIONS]
    prompts += [[5], [5] * POOLED_TOKENS, encode_prompt(tokenizer, "hello")]
    expected = question_states(model, prompts).numpy()

    async def test(states: VLLMPooling) -> None:
        assert states.max_tokens == POOLED_TOKENS
        found = np.stack(await asyncio.gather(*(states.state(prompt, always) for prompt in prompts)))
        assert np.abs(found - expected).max() < 1e-4
        again = np.stack(await asyncio.gather(*(states.state(prompt, always) for prompt in prompts)))
        assert np.abs(again - expected).max() < 1e-4  # out of vLLM's prefix cache

    run(url, test)


def test_questions_that_it_refuses(url: str) -> None:
    async def test(states: VLLMPooling) -> None:
        found = await asyncio.gather(
            *(states.state([token], always) for token in (5, 10**6, 6)), return_exceptions=True
        )
        assert [isinstance(value, FeatureError) for value in found] == [False, True, False]
        with pytest.raises(FeatureError, match=f"{POOLED_TOKENS + 1} tokens"):
            await states.state([5] * (POOLED_TOKENS + 1), always)

    run(url, test)


def test_a_wrong_key_and_a_wrong_width(url: str) -> None:
    async def main() -> None:
        wrong = VLLMPooling(url, api_key="another", width=128)
        await wrong.start()
        assert not await wrong.ready()
        with pytest.raises(FeatureError, match="401"):
            await wrong.state([5], always)
        await wrong.close()
        with pytest.raises(ValueError, match="width 128, but the probe reads 64"):
            await VLLMPooling(url, api_key=POOLING_KEY, width=64).start()

    asyncio.run(main())


def test_the_probe_says_the_same(url: str, model_and_tokenizer: tuple[Any, Any], monkeypatch: Any) -> None:
    """From the messages of a request to the probabilities, as `probe evaluate` has them."""
    monkeypatch.setenv("POOLING_KEY", POOLING_KEY)
    model, tokenizer = model_and_tokenizer
    probe = DifficultyProbe.from_pretrained(DEFAULT_PROBE)
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    expected = probe.predict_proba(question_states(model, [encode_prompt(tokenizer, c) for c in conversations]))
    settings = RouterSettings(
        probe=str(DEFAULT_PROBE), features=FeatureSettings(kind="vllm_pooling", url=url, api_key_env="POOLING_KEY")
    )

    async def main() -> np.ndarray:
        features = build_features(settings, probe)
        await features.start()
        try:
            return np.array(await asyncio.gather(*(features.proba(Question(messages=c)) for c in conversations)))
        finally:
            await features.close()

    assert np.abs(asyncio.run(main()) - expected.numpy()).max() < 1e-4
