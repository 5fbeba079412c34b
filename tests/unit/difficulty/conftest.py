"""A scripted sampler and a small task, and traces made of invented numbers."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def model_and_tokenizer(random_model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(random_model_dir), AutoTokenizer.from_pretrained(random_model_dir)
