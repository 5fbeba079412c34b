"""A random tiny Qwen3 with a tokenizer trained on a handful of lines."""

from __future__ import annotations

import pytest
import torch

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def random_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["What is 12 + 34?", "<think>12 + 34 = 46</think>46"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_random_model(tokenizer, **overrides):
    """Four-head, two-layer Qwen3 whose logits are spread enough for greedy and sampled text to differ."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    devices: list[int] = []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(Qwen3Config(**{**settings, **overrides})).eval()


@pytest.fixture
def random_model(random_tokenizer):
    return build_random_model(random_tokenizer)


@pytest.fixture
def untied_model(random_tokenizer):
    return build_random_model(random_tokenizer, tie_word_embeddings=False)
