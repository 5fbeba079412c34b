"""The probes that ship with the package belong to the models that ship with it."""

from __future__ import annotations

import json

import pytest

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_PROBE, DEFAULT_TASK, TINY_PROBE
from entropy_rft.difficulty import DifficultyProbe
from entropy_rft.difficulty.probe_card import model_card
from entropy_rft.difficulty.strategies import NAMES
from entropy_rft.sampling import load_model_and_tokenizer

PROBES = {"tiny_reasoner": (TINY_PROBE, "arithmetic"), DEFAULT_MODEL: (DEFAULT_PROBE, DEFAULT_TASK)}
every_probe = pytest.mark.parametrize("name", PROBES)


@every_probe
def test_it_was_made_for_these_very_weights(name):
    """Fails when the model was made again and the probe was not: run scripts/make_tiny_probe --model NAME."""
    model = load_model_and_tokenizer(name, device="cpu")[0]
    probe = DifficultyProbe.from_pretrained(PROBES[name][0], base_model=model)
    assert (probe.base_model, probe.layer, probe.width) == (name, -1, model.config.hidden_size)


@every_probe
def test_it_says_what_strategies_cost_and_how_it_was_made(name):
    directory, task = PROBES[name]
    probe = DifficultyProbe.from_pretrained(directory)
    tokens = probe.metrics["mean_tokens"]
    assert set(tokens) == set(NAMES)
    assert all(1 <= value <= probe.metrics["mean_tokens_of"]["max_tokens"] for value in tokens.values())
    assert tokens["easy"] < tokens["normal"]
    assert probe.metrics["mean_tokens_of"]["task"] == f"{task}/validation"
    assert probe.metrics["test"]["macro_f1"] > probe.metrics["baselines"]["majority"]["macro_f1"]
    provenance = json.loads((directory / "provenance.json").read_text())
    assert provenance["command"].startswith("scripts/make_tiny_probe")
    assert provenance["recipe"]["model"] == name


@every_probe
def test_its_card_is_its_own(name):
    directory, _ = PROBES[name]
    assert (directory / "README.md").read_text(encoding="utf-8") == model_card(
        DifficultyProbe.from_pretrained(directory)
    )


@every_probe
def test_it_is_small(name):
    assert sum(file.stat().st_size for file in PROBES[name][0].iterdir()) < 300_000
