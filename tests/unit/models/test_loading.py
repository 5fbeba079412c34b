from __future__ import annotations

import pytest
import torch

from entropy_rft.sampling import load_model_and_tokenizer


def test_a_directory(random_model_dir):
    model, tokenizer = load_model_and_tokenizer(random_model_dir, dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("own_tokenizer", [True, False])
def test_a_lora_adapter(random_model_dir, random_model, random_tokenizer, tmp_path, own_tokenizer):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(random_model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    adapted.save_pretrained(tmp_path)
    if own_tokenizer:
        random_tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load_model_and_tokenizer(tmp_path, device="cpu")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, adapted.eval()(ids).logits)
    assert len(tokenizer) == len(random_tokenizer)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "runs/a/checkpoint-3", "owner/nowhere"])
def test_a_missing_model_is_one_line(name):
    with pytest.raises(ValueError, match=name) as caught:
        load_model_and_tokenizer(name)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        load_model_and_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="float8"):
        load_model_and_tokenizer(tmp_path, dtype="float8")
