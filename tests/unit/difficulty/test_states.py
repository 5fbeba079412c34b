from __future__ import annotations

import pytest
import torch

from entropy_rft.difficulty import question_states
from entropy_rft.difficulty.states import fingerprint

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]


@pytest.fixture(scope="module")
def model(random_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(random_model_dir)


@pytest.mark.parametrize("layer", [-1, -2, 0, 1, 2, -3])
def test_exactly_a_plain_forward(model, layer):
    model.train()
    states = question_states(model, PROMPTS, layer)
    assert model.training
    model.eval()
    assert states.dtype == torch.float32
    for ids, state in zip(PROMPTS, states, strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert torch.equal(state, hidden[layer][0, -1])


def test_lora_counts(model, random_model_dir):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(random_model_dir)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        hidden = adapted.eval()(torch.tensor([PROMPTS[0]]), output_hidden_states=True).hidden_states
    state = question_states(adapted, PROMPTS[:1])[0]
    assert torch.equal(state, hidden[-1][0, -1])
    assert not torch.allclose(state, question_states(model, PROMPTS[:1])[0])
    assert fingerprint(adapted) != fingerprint(model)


def test_what_cannot_be_read(model):
    for layer in (3, -4, True, 1.0):
        with pytest.raises(ValueError, match="layer must lie between -3 and 2"):
            question_states(model, PROMPTS, layer)
    with pytest.raises(ValueError, match="no tokens"):
        question_states(model, [[]])
    assert question_states(model, []).shape == (0, 16)


def test_a_state_that_is_not_finite(random_model_dir):
    from transformers import AutoModelForCausalLM

    broken = AutoModelForCausalLM.from_pretrained(random_model_dir)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        question_states(broken, PROMPTS)
