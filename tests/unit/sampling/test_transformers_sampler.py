from __future__ import annotations

from itertools import chain

import pytest
import torch

from entropy_rft.sampling import Completion, TransformersSampler, encode_prompt, transformers_sampler

PROMPTS = [
    [{"role": "user", "content": "What is 12 + 34?"}],
    "12",
    [{"role": "user", "content": "What is 1 + 2 + 3 + 4 + 5 + 6?"}],
]


def ids(results: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in row] for row in results]


@pytest.fixture
def sampler(random_model, random_tokenizer):
    return TransformersSampler(random_model, random_tokenizer, batch_size=4)


def sample(sampler, prompts=PROMPTS, **overrides):
    return sampler.sample(prompts, **{"samples": 3, "max_tokens": 12, "progress": False, **overrides})


def test_results_are_in_the_order_of_the_prompts(sampler, random_tokenizer):
    results = sample(sampler)
    assert [len(row) for row in results] == [3, 3, 3]
    for prompt, row in zip(PROMPTS, results, strict=True):
        expected = encode_prompt(random_tokenizer, prompt)
        assert all(completion.prompt_ids == expected for completion in row)
        assert all(
            completion.text == random_tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            for completion in row
        )


def test_a_conversation_goes_through_the_chat_template_and_text_does_not(random_tokenizer):
    assert random_tokenizer.decode(encode_prompt(random_tokenizer, PROMPTS[0])) == (
        "<|user|>What is 12 + 34?<|end|><|assistant|>"
    )
    assert random_tokenizer.decode(encode_prompt(random_tokenizer, "12")) == "12"


def test_the_same_seed_gives_the_same_completions_whatever_the_batch(random_model, random_tokenizer, sampler):
    one_by_one = TransformersSampler(random_model, random_tokenizer, batch_size=1)
    assert ids(sample(sampler)) == ids(sample(sampler)) == ids(sample(one_by_one))
    assert ids(sample(sampler)) != ids(sample(sampler, seed=1))


def test_fewer_samples_are_the_first_ones(sampler):
    assert ids(sample(sampler, samples=2)) == [row[:2] for row in ids(sample(sampler))]


def test_the_global_random_state_and_the_model_are_left_alone(sampler, random_model):
    random_model.train()
    config = random_model.generation_config
    before = torch.random.get_rng_state()
    sample(sampler)
    assert torch.equal(before, torch.random.get_rng_state())
    assert random_model.training
    assert random_model.generation_config is config


def test_a_failure_restores_the_model(sampler, random_model, monkeypatch):
    random_model.train()
    config = random_model.generation_config

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(random_model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample(sampler)
    assert random_model.training
    assert random_model.generation_config is config


def test_greedy_equals_transformers_and_is_done_once(sampler, random_model, random_tokenizer, monkeypatch):
    prompt = encode_prompt(random_tokenizer, PROMPTS[0])
    reference = random_model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt) :]
    rows = []
    forward = random_model.forward
    monkeypatch.setattr(random_model, "forward", lambda **kw: rows.append(kw["input_ids"].shape) or forward(**kw))
    results = sample(sampler, temperature=0.0)
    assert results[0][0].token_ids == reference.tolist()
    assert all(row[0] is row[1] is row[2] for row in results)
    assert sum(count for count, length in rows if length > 1) == len(PROMPTS)  # prompts that were read


def test_the_model_generation_config_adds_nothing(sampler, random_model):
    expected = ids(sample(sampler))
    random_model.generation_config.repetition_penalty = 3.0
    random_model.generation_config.top_k = 1
    assert ids(sample(sampler)) == expected


def test_samples_follow_the_distribution(sampler, random_model, random_tokenizer):
    """First tokens of 4,000 samples against softmax(logits / T), as a total variation distance."""
    sampler.batch_size = 1000
    prompt = encode_prompt(random_tokenizer, "12")
    first = torch.tensor(
        [c.token_ids[0] for c in sample(sampler, ["12"], samples=4000, max_tokens=1, temperature=0.7)[0]]
    )
    with torch.no_grad():
        expected = (random_model(torch.tensor([prompt])).logits[0, -1] / 0.7).softmax(-1)
    seen = torch.bincount(first, minlength=len(expected)) / len(first)
    # A fair sample of this size lies around sqrt(V_effective / n) / 2, i.e. below 0.1.
    assert 0.5 * (seen - expected).abs().sum() < 0.1


def test_top_p_keeps_to_the_nucleus(sampler, random_model, random_tokenizer):
    prompt = encode_prompt(random_tokenizer, "12")
    with torch.no_grad():
        probabilities, order = random_model(torch.tensor([prompt])).logits[0, -1].softmax(-1).sort(descending=True)
    nucleus = set(order[: int((probabilities.cumsum(0) < 0.3).sum()) + 1].tolist())
    rows = sample(sampler, ["12"], samples=200, max_tokens=1, top_p=0.3)[0]
    assert {row.token_ids[0] for row in rows} <= nucleus


def test_an_end_of_sequence_token_ends_a_completion(sampler, random_model, random_tokenizer):
    """Every token but one ends the sequence: the completions stop at their first end token, which they include."""
    keep = encode_prompt(random_tokenizer, "1")[0]
    random_model.generation_config.eos_token_id = [i for i in range(len(random_tokenizer)) if i != keep]
    for completion in chain.from_iterable(sample(sampler)):
        assert not completion.truncated
        assert set(completion.token_ids[:-1]) <= {keep}
    random_model.generation_config.eos_token_id = None
    end = random_tokenizer.eos_token_id
    for completion in chain.from_iterable(sample(sampler)):
        assert completion.truncated == (end not in completion.token_ids)
        assert len(completion.token_ids) == 12 or not completion.truncated


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ({"samples": 0}, "samples"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_settings_out_of_range_are_named(sampler, override, name):
    with pytest.raises(ValueError, match=name):
        sample(sampler, **override)


def test_prompts_that_cannot_be_encoded(sampler, random_model, random_tokenizer):
    with pytest.raises(ValueError, match="no tokens"):
        sample(sampler, [""])
    with pytest.raises(TypeError, match="int"):
        sample(sampler, [3])
    with pytest.raises(ValueError, match="batch_size"):
        TransformersSampler(random_model, random_tokenizer, batch_size=0)


def test_nan_weights_are_an_error(sampler, random_model):
    with torch.no_grad():
        random_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        sample(sampler)


def test_no_prompts_give_no_results(sampler):
    assert sample(sampler, []) == []


def test_a_device_without_float64_draws_possible_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The highest uniform number in float64 is 1 in float32."""
    monkeypatch.setattr(transformers_sampler, "wide", lambda values: torch.float32)
    uniforms = torch.tensor([[0.0], [0.7], [1 - 2**-53]], dtype=torch.float64)
    picker = transformers_sampler._TokenPicker(uniforms, 1, 1.0, 1.0, lambda step: None)
    scores = torch.tensor([float("-inf"), 0.0, 0.0, float("-inf")]).repeat(3, 1)
    assert picker(torch.zeros(3, 1, dtype=torch.long), scores).argmax(-1).tolist() == [1, 2, 2]
