"""`score_completions` against plain logits in float64, family by family."""

from __future__ import annotations

import pytest
import torch

from entropy_rft.sampling import Completion, TransformersSampler, score_completions
from entropy_rft.sampling.scoring import vocabulary_size


def reference(model, completion: Completion, temperature: float):
    """log π(a), H and E[S] from `model(...).logits` in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([completion.prompt_ids + completion.token_ids])).logits[0]
    start = len(completion.prompt_ids) - 1
    logits = logits[start : start + len(completion.token_ids)].double() / temperature
    log_pi = logits.log_softmax(-1)
    pi = log_pi.exp()
    entropy = -(pi * log_pi).sum(-1)
    expected = (pi**2 * (entropy[:, None] + log_pi)).sum(-1)
    return log_pi.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0], entropy, expected


def assert_matches(model, completions, temperature=1.0, atol=2e-5, **kwargs):
    scored = score_completions(model, completions, temperature=temperature, **kwargs)
    assert len(scored) == len(completions)
    for completion, statistics in zip(completions, scored, strict=True):
        expected = reference(model, completion, temperature)
        got = (statistics.log_prob, statistics.entropy, statistics.expected_discriminant)
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.dtype == torch.float32
            assert mine.shape == (len(completion.token_ids),)
            torch.testing.assert_close(mine.double(), theirs, atol=atol, rtol=1e-4)


COMPLETIONS = [
    Completion([5, 6, 7], [8, 9, 10, 11, 12], "", False),
    Completion([20], [21], "", False),
    Completion([30, 31, 32, 33, 34, 35], [40, 41], "", True),
]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_qwen3_with_tied_head(random_model, temperature, batch_size):
    assert_matches(random_model, COMPLETIONS, temperature, batch_size=batch_size)


def test_sampled_completions(random_model, random_tokenizer):
    sampler = TransformersSampler(random_model, random_tokenizer)
    rows = sampler.sample(["12 + 34", "1"], samples=3, max_tokens=9, progress=False)
    assert_matches(random_model, [completion for row in rows for completion in row])


def test_softcapping():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0, initializer_range=0.5,
        attn_implementation="eager",
    )  # fmt: skip
    assert_matches(Gemma2ForCausalLM(config).eval(), COMPLETIONS)


def test_multiplied_logits():
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, logit_scale=0.3, initializer_range=0.5,
    )  # fmt: skip
    assert_matches(CohereForCausalLM(config).eval(), COMPLETIONS)


def test_divided_logits():
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, logits_scaling=3.0, initializer_range=0.5,
    )  # fmt: skip
    assert_matches(GraniteForCausalLM(config).eval(), COMPLETIONS)


def test_a_head_with_a_bias():
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3,
    )  # fmt: skip
    model = PhiForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    assert_matches(model, COMPLETIONS)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora(untied_model, targets):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(untied_model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    assert_matches(model, COMPLETIONS)
    with model.disable_adapter():
        assert_matches(model, COMPLETIONS)


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_other_adapters_on_the_head(untied_model, options, with_bias):
    from peft import LoraConfig, get_peft_model

    if with_bias:
        untied_model.lm_head.bias = torch.nn.Parameter(torch.randn(untied_model.lm_head.out_features))
    # PEFT cannot merge `lora_bias` into a layer without a bias.
    targets = ["lm_head"] if "lora_bias" in options else ["lm_head", "q_proj"]
    model = get_peft_model(untied_model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    before = model.get_base_model().lm_head.weight.clone()
    assert_matches(model, COMPLETIONS, atol=1e-5)
    assert torch.equal(model.get_base_model().lm_head.weight, before)
    with model.disable_adapter():
        assert_matches(model, COMPLETIONS, atol=1e-5)
    if with_bias or "lora_bias" not in options:
        model.merge_adapter()
        assert_matches(model, COMPLETIONS, atol=1e-5)


def test_a_head_trained_in_full_beside_lora(untied_model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(untied_model, config).eval()
    head = model.get_base_model().lm_head.modules_to_save["default"]
    torch.nn.init.normal_(head.weight)
    assert_matches(model, COMPLETIONS)


def test_bfloat16(random_model):
    """bf16 hidden states; the plain logits are rounded to bf16 themselves, so the comparison is loose."""
    assert_matches(random_model.to(torch.bfloat16), COMPLETIONS, atol=0.1)


def test_no_full_logits_and_the_mode_comes_back(random_model, monkeypatch):
    random_model.train()
    monkeypatch.setattr(random_model, "forward", None)  # scoring runs the backbone alone
    score_completions(random_model, COMPLETIONS)
    assert random_model.training


def test_empty_completions_and_bad_settings(random_model):
    empty = Completion([1, 2], [], "", True)
    scored = score_completions(random_model, [empty, COMPLETIONS[0]])
    assert [len(statistics.entropy) for statistics in scored] == [0, 5]
    assert score_completions(random_model, [empty])[0].log_prob.shape == (0,)
    assert score_completions(random_model, []) == []
    with pytest.raises(ValueError, match="temperature"):
        score_completions(random_model, COMPLETIONS, temperature=0.0)
    with pytest.raises(ValueError, match="batch_size"):
        score_completions(random_model, COMPLETIONS, batch_size=0)
    with pytest.raises(ValueError, match="prompt_ids"):
        score_completions(random_model, [Completion([], [1], "", False)])


def test_tokens_of_another_vocabulary_are_refused(random_model):
    size = random_model.config.vocab_size
    assert vocabulary_size(random_model) == size
    for prompt, ids, message in (
        ([1], [2, size], f"completion 1 has the token {size} in its token_ids, but .* vocabulary is 0 to {size - 1}:"),
        ([-1], [2], "completion 1 has the token -1 in its prompt_ids"),
    ):
        with pytest.raises(ValueError, match=message):
            score_completions(random_model, [Completion([1], [2], "", False), Completion(prompt, ids, "", False)])
