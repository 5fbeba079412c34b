"""The probe that ships with the package belongs to the model that ships with it."""

from __future__ import annotations

import json

import pytest

from entropy_rft.assets import TINY_PROBE
from entropy_rft.difficulty import DifficultyProbe
from entropy_rft.difficulty.probe_card import model_card
from entropy_rft.difficulty.strategies import NAMES
from entropy_rft.sampling import load_model_and_tokenizer


@pytest.fixture(scope="module")
def model():
    return load_model_and_tokenizer("tiny_reasoner", device="cpu")[0]


def test_it_was_made_for_these_very_weights(model):
    """Fails when the model was made again and the probe was not: run scripts/make_tiny_probe."""
    probe = DifficultyProbe.from_pretrained(TINY_PROBE, base_model=model)
    assert (probe.base_model, probe.layer, probe.width) == ("tiny_reasoner", -1, model.config.hidden_size)


def test_it_says_what_strategies_cost_and_how_it_was_made():
    probe = DifficultyProbe.from_pretrained(TINY_PROBE)
    tokens = probe.metrics["mean_tokens"]
    assert set(tokens) == set(NAMES)
    assert all(1 <= value <= probe.metrics["mean_tokens_of"]["max_tokens"] for value in tokens.values())
    assert tokens["easy"] < tokens["normal"]
    assert probe.metrics["mean_tokens_of"]["task"] == "arithmetic/validation"
    assert probe.metrics["test"]["macro_f1"] > probe.metrics["baselines"]["majority"]["macro_f1"]
    provenance = json.loads((TINY_PROBE / "provenance.json").read_text())
    assert provenance["command"].startswith("scripts/make_tiny_probe")


def test_its_card_is_its_own():
    assert (TINY_PROBE / "README.md").read_text(encoding="utf-8") == model_card(
        DifficultyProbe.from_pretrained(TINY_PROBE)
    )


def test_it_is_small():
    assert sum(file.stat().st_size for file in TINY_PROBE.iterdir()) < 300_000
