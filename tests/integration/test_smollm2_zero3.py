"""ZeRO-3 on a real language model whose head is its embedding, in two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import launch, needs_deepspeed
from safetensors import safe_open

pytestmark = [pytest.mark.integration, pytest.mark.smollm2]

FIELDS: dict[str, Any] = {
    "dtype": "float32",
    "task": "reasoning_gym",
    "task_limit": 8,
    "task_options": {"generator": "chain_sum", "levels": [0], "thinking": False, "answer_format": None},
    "think_end_token": ":",
    "rewards": ["task", "pear", "training_inputs:some_reward"],
    "pear_floor": 0.1,
    "entropy_clip": "clip_b",
    "entropy_clip_mu_low": 1.0,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "num_generations": 2,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}


def train(model: Path, tmp_path: Path, engine: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """What two processes of `engine` make of the model, and what they log."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model_name_or_path": str(model), **FIELDS}))
    launch(engine, ["train", "--config", recipe, "--output_dir", engine], tmp_path)
    run = tmp_path / engine
    described = json.loads((run / "run.json").read_text())
    assert (described["processes"], described["engine"]) == (2, engine)
    with safe_open(run / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logs] == [1, 2]
    return tensors, logs


def check_saved(model: Path, tensors: dict[str, torch.Tensor], logs: list[dict[str, Any]]) -> None:
    """The head is the embedding, was trained, and is loaded as such again."""
    from transformers import AutoModelForCausalLM

    assert all(entry["grad_norm"] > 0 and 0 < entry["entropy_clip/sigma"] < 5 for entry in logs)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    before = loaded.model.embed_tokens.weight.detach().clone()
    assert "lm_head.weight" not in tensors or torch.equal(
        tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    )
    trained = tensors["model.embed_tokens.weight"]
    assert trained.shape == before.shape == (49_152, 576)
    assert 0 < (trained - before).abs().max() < 1
    loaded.load_state_dict(tensors, strict=False)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_tied_embeddings_under_zero3(short_smollm2_dir: Path, tmp_path: Path) -> None:
    needs_deepspeed()
    tensors, logs = train(short_smollm2_dir, tmp_path, "zero3")
    check_saved(short_smollm2_dir, tensors, logs)


@pytest.mark.soak
def test_all_layers_under_zero3_as_under_ddp(smollm2_dir: Path, tmp_path: Path) -> None:
    needs_deepspeed()
    sharded, logs = train(smollm2_dir, tmp_path, "zero3")
    check_saved(smollm2_dir, sharded, logs)
    copied, theirs = train(smollm2_dir, tmp_path, "ddp")
    # AdamW's first step has the size of the learning rate and the gradient's sign: where a gradient is nothing but
    # rounding, the sign is rounding too. So most parameters agree to rounding, and none by more than two such steps.
    for name, tensor in copied.items():
        difference = (sharded[name] - tensor).abs()
        assert difference.max() <= 4.1e-3, name
        assert (difference < 1e-5).float().mean() > 0.9, name
    for ours, other in zip(logs, theirs, strict=True):
        for metric in ("entropy/thinking", "entropy_clip/sigma", "pear/penalty", "reward"):
            assert ours[metric] == pytest.approx(other[metric], rel=1e-2), metric
