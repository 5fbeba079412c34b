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


@pytest.fixture
def other(random_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(random_model_dir)


def test_every_weight_is_in_the_fingerprint(model, other):
    """The smallest change of the last value of any parameter: further training, of whatever part."""
    assert fingerprint(other) == fingerprint(model)
    for parameter in other.parameters():
        last = parameter.data.view(-1)[-1:]
        before = last.clone()
        last.copy_(torch.nextafter(last, torch.tensor(float("inf"))))
        assert fingerprint(other) != fingerprint(model)
        last.copy_(before)
    assert fingerprint(other) == fingerprint(model)


def test_moving_values_is_a_change_too(model, other):
    weight = other.get_input_embeddings().weight.data
    weight[[0, -1]] = weight[[-1, 0]]  # the same values, hence the same plain sum
    assert fingerprint(other) != fingerprint(model)


def test_the_dtype_a_model_is_loaded_in_does_not_matter_unless_it_rounds(model, other):
    assert fingerprint(other.double()) == fingerprint(model)
    other.model.norm.weight.data[0] += 1e-12
    assert fingerprint(other) != fingerprint(model)
    rounded = other.bfloat16()
    assert fingerprint(rounded) != fingerprint(model)
    assert fingerprint(rounded.float()) == fingerprint(other.bfloat16())


def test_buffers_hold_weights_too(other):
    """Quantised layers keep theirs there."""
    other.register_buffer("qweight", torch.arange(5, dtype=torch.int32))
    before = fingerprint(other)
    other.qweight[4] = 9
    assert fingerprint(other) != before


def test_a_weight_larger_than_a_block(monkeypatch):
    from entropy_rft.difficulty import states

    monkeypatch.setattr(states, "_BLOCK", 8)
    states._factors.cache_clear()
    try:
        found = set()
        for place in range(20):
            linear = torch.nn.Linear(20, 1, bias=False)
            linear.weight.data.zero_()
            linear.weight.data[0, place] = 1.0
            found.add(fingerprint(linear))
        assert len(found) == 20
    finally:
        states._factors.cache_clear()


def test_a_fingerprint_of_an_earlier_version_is_still_understood(model):
    """What the package's own probe was first saved with, of the model that it still belongs to."""
    from entropy_rft.sampling import load_model_and_tokenizer

    tiny = load_model_and_tokenizer("tiny_reasoner", device="cpu")[0]
    old = "e55299fcd9348baf"
    assert fingerprint(tiny, like=old) == old != fingerprint(tiny)
    assert fingerprint(model, like=old) != old
    assert len(fingerprint(model, like=fingerprint(tiny))) == len(fingerprint(model)) == 32
