"""The engine's side of the interface, with an engine that is made up; `test_vllm_sampling.py` has the real one."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from entropy_rft.sampling.vllm_sampler import VLLMSampler


class Tokenizer:
    chat_template = "yes"

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids if i != 0)


class Engine:
    """Answers with the last token of the prompt, as often as the sample's number says, and ends the first two."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, settings, use_tqdm):
        self.asked = list(zip(prompts, settings, strict=True))
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        index=i,
                        token_ids=(prompt["prompt_token_ids"][-1],) * (i + 1) + ((0,) if i < 2 else ()),
                        finish_reason="stop" if i < 2 else "length",
                    )
                    for i in reversed(range(own.n))
                ]
            )
            for prompt, own in self.asked
        ]


@pytest.fixture
def engine(monkeypatch):
    vllm = ModuleType("vllm")
    vllm.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return Engine()


def test_samples_come_in_order_with_their_ends(engine):
    sampler = VLLMSampler("owner/model", Tokenizer(), engine=engine)
    groups = sampler.sample(["xa", "b"], samples=3, temperature=0.7, top_p=0.9, max_tokens=5, seed=1)
    assert [[completion.text for completion in group] for group in groups] == [["a", "aa", "aaa"], ["b", "bb", "bbb"]]
    assert [completion.truncated for completion in groups[0]] == [False, False, True]
    assert groups[0][1].token_ids == [97, 97, 0]
    assert groups[0][0].prompt_ids == [120, 97]
    first, second = (own for _, own in engine.asked)
    assert (first.n, first.temperature, first.top_p, first.max_tokens) == (3, 0.7, 0.9, 5)
    assert first.seed != second.seed
    sampler.sample(["xa", "b"], samples=3, seed=2)
    assert engine.asked[0][1].seed != first.seed


def test_greedy_is_drawn_once(engine):
    (group,) = VLLMSampler("owner/model", Tokenizer(), engine=engine).sample(["a"], samples=3, temperature=0)
    assert engine.asked[0][1].n == 1
    assert len(group) == 3
    assert group[0] == group[2]
    assert VLLMSampler("owner/model", Tokenizer(), engine=engine).sample([]) == []


def test_mistakes(engine, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="memory must be above 0"):
        VLLMSampler("owner/model", Tokenizer(), memory=0, engine=engine)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        VLLMSampler("owner/model", Tokenizer(), engine=engine).sample(["a"], samples=0)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a LoRA adapter"):
        VLLMSampler(str(tmp_path), Tokenizer(), engine=engine)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="needs vllm: pip install"):
        VLLMSampler("owner/model", Tokenizer())


@pytest.mark.parametrize(("device", "place"), [(None, {}), ("cuda", {}), ("cpu", {}), ("cuda:3", {"device_ids": [3]})])
def test_the_engine_is_where_the_model_is(device, place, engine):
    """Under torchrun each process scores on its own GPU; the engine must not crowd the first one."""
    made = []
    sys.modules["vllm"].LLM = lambda name, **settings: made.append((name, settings))
    VLLMSampler("owner/model", Tokenizer(), memory=0.5, device=device)
    ((name, settings),) = made
    assert name == "owner/model"
    assert settings == {"dtype": "auto", "gpu_memory_utilization": 0.5, "seed": 0, **place}


def test_a_vllm_without_a_choice_of_devices(engine):
    def older(name, *, dtype, gpu_memory_utilization, seed):
        return "engine"

    sys.modules["vllm"].LLM = older
    assert VLLMSampler("owner/model", Tokenizer()).engine == "engine"
    with pytest.raises(ValueError, match="this vllm cannot be put on the device 'cuda:1': install vllm"):
        VLLMSampler("owner/model", Tokenizer(), device="cuda:1")


def test_how_much_to_think_is_asked_of_the_engine(engine):
    sampler = VLLMSampler("owner/model", Tokenizer(), engine=engine, think_end_token="</think>")
    sampler.sample(["a"], thinking_tokens=5, extra_body={"top_k": 3, "top_p": 0.5})
    ((_, settings),) = engine.asked
    assert (settings.thinking_token_budget, settings.top_k, settings.top_p) == (5, 3, 0.5)
    sampler.sample(["a"])
    assert not hasattr(engine.asked[0][1], "thinking_token_budget")

    def strict(n, temperature, top_p, max_tokens, seed):
        raise AssertionError("never with an unknown field")

    sys.modules["vllm"].SamplingParams = strict
    with pytest.raises(TypeError, match=r"extra_body: .*unexpected keyword argument 'top_kk'"):
        sampler.sample(["a"], extra_body={"top_kk": 3})


def test_an_engine_learns_the_tags_only_where_thinking_is_limited(engine, monkeypatch):
    reasoning = ModuleType("vllm.config.reasoning")
    reasoning.ReasoningConfig = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.config", ModuleType("vllm.config"))
    monkeypatch.setitem(sys.modules, "vllm.config.reasoning", reasoning)
    made = []
    sys.modules["vllm"].LLM = lambda name, **settings: made.append(settings)
    VLLMSampler("owner/model", Tokenizer(), think_end_token="[/THINK]")
    VLLMSampler("owner/model", Tokenizer())
    assert made[0]["reasoning_config"] == {"reasoning_start_str": "[THINK]", "reasoning_end_str": "[/THINK]"}
    assert "reasoning_config" not in made[1]
    with pytest.raises(ValueError, match="'####' has no opening one: measure thinking_tokens without --vllm"):
        VLLMSampler("owner/model", Tokenizer(), think_end_token="####")
