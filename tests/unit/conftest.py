"""The suite's random model, loaded, in the two variants that scoring tells apart."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def random_tokenizer(random_model_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(random_model_dir)


@pytest.fixture
def random_model(random_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(random_model_dir).eval()


@pytest.fixture
def untied_model(random_model_dir):
    """With an LM head of its own, random as well."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(random_model_dir, tie_word_embeddings=False).eval()
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model
