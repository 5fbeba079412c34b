"""A model of another size, made by the maker of the tiny reasoner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from studies.assets import make
from studies.methods import models
from studies.methods.models import Size, build_model, identified, make_model
from studies.methods.plan import Plan

SMALL = {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "key_value_heads": 1, "head_dim": 8,
         "drill_steps": 1, "steps": 1, "batch_size": 2}  # fmt: skip


def test_the_defaults_are_the_tiny_reasoner(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    from entropy_rft.assets import TINY_REASONER

    tokenizer = AutoTokenizer.from_pretrained(TINY_REASONER)
    own, theirs = build_model(Size(), tokenizer), make.make_model(tokenizer, 0)
    assert own.config.to_dict() == theirs.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), theirs.parameters(), strict=True))
    default = make.ModelSettings()
    assert (Size().drill_steps, Size().steps, Size().batch_size) == (
        default.drill_steps, default.steps, default.batch_size,
    )  # fmt: skip


def test_a_small_one_is_made_and_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from entropy_rft.sampling import load_model_and_tokenizer

    monkeypatch.setattr(make, "_TOKENIZER_TRACES", 300)
    count = make_model(tmp_path / "model", SMALL, device="cpu")
    model, tokenizer = load_model_and_tokenizer(tmp_path / "model", device="cpu")
    assert sum(p.numel() for p in model.parameters()) == count
    assert tokenizer.convert_tokens_to_ids("</think>") is not None


def test_weights_are_part_of_a_runs_identity(plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = identified(plan)
    assert len(known.model["weights"]) == 16
    assert known.starts()[0].digest != plan.starts()[0].digest
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(models, "model_source", lambda name: str(tmp_path))
    assert identified(plan).model["weights"] != known.model["weights"]


def test_a_mistake_in_the_size_is_named(plan: Plan) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'layer'; did you mean layers"):
        identified(replace(plan, model={"make": {"layer": 3}}))
    with pytest.raises(ValueError, match="name or make"):
        identified(replace(plan, model={}))
