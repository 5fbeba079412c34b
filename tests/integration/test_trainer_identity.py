"""With the rule off, or with nothing to do, and ordinary rewards the trainer is TRL's, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer

pytestmark = pytest.mark.integration

CASES: dict[str, dict[str, Any]] = {
    "dapo": {},
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "iterations": {"num_iterations": 2},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "misaligned": {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "per_device_train_batch_size": 4},
    "reference": {"beta": 0.1},
    "lora": {"lora": True},
    "lora with reference": {"lora": True, "beta": 0.1},
    "evaluation in between": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8},
    "sequence level": {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2},
    "vespo": {"loss_type": "vespo"},
    "masked truncated": {"mask_truncated_completions": True},
    "two generations a step": {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 1,
        "per_device_train_batch_size": 4,
    },
}


def length_reward(completions: list, **kwargs: Any) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def run(trainer_class: type, config_class: type, model_dir: Path, output: Path, options: dict[str, Any]) -> Any:
    options = dict(options)
    peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if options.pop("lora", False) else None
    args = config_class(
        output_dir=str(output),
        **{
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 3,
            "learning_rate": 1e-3,
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **options,
        },
    )
    dataset = Dataset.from_dict({"prompt": [f"What is {i} + {i}?" for i in range(24)]})
    completions: list[list[int]] = []

    def recording_reward(completions_: Any = None, completion_ids: Any = None, **kwargs: Any) -> list[float]:
        completions.extend(completion_ids)
        return length_reward(**kwargs)

    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        reward_funcs=recording_reward,
        args=args,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(4)) if "eval_strategy" in options else None,
        processing_class=AutoTokenizer.from_pretrained(model_dir, padding_side="left"),
        peft_config=peft_config,
    )
    trainer.train()
    losses = [
        (entry["loss"], entry["grad_norm"], entry["entropy"]) for entry in trainer.state.log_history if "loss" in entry
    ]
    return losses, completions, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_none_is_bit_identical_to_trl(random_model_dir: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    check_that_both_train_alike(random_model_dir, tmp_path, options, {"entropy_clip": "none"})


def test_a_plain_config_is_told_once_what_is_switched_on(
    random_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(EntropyGRPOTrainer, GRPOConfig, random_model_dir, tmp_path, {"max_steps": 1})
    run(EntropyGRPOTrainer, EntropyGRPOConfig, random_model_dir, tmp_path, {"max_steps": 1})
    said = [record.getMessage() for record in caplog.records if record.name.startswith("entropy_rft")]
    assert said == [EntropyGRPOConfig.from_grpo(GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)).switched_on()]


KL_COV: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one update": ({}, {}),
    "one update, accumulation": ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, {}),
    "one update, lora": ({"lora": True, "loss_type": "grpo"}, {}),
    "no weight": ({"num_iterations": 2}, {"entropy_clip_beta": 0}),
    "no share": ({"steps_per_generation": 2, "per_device_train_batch_size": 4}, {"entropy_clip_share": 0}),
}


@pytest.mark.parametrize(("options", "rule"), KL_COV.values(), ids=KL_COV.keys())
def test_kl_cov_is_bit_identical_to_trl_where_it_does_nothing(
    random_model_dir: Path, tmp_path: Path, options: dict[str, Any], rule: dict[str, Any]
) -> None:
    rule = {"entropy_clip": "kl_cov", "entropy_clip_share": 0.1, **rule}
    check_that_both_train_alike(random_model_dir, tmp_path, options, rule)


def check_that_both_train_alike(
    random_model_dir: Path, tmp_path: Path, options: dict[str, Any], rule: dict[str, Any]
) -> None:
    theirs = run(GRPOTrainer, GRPOConfig, random_model_dir, tmp_path / "trl", options)
    ours = run(EntropyGRPOTrainer, EntropyGRPOConfig, random_model_dir, tmp_path / "ours", {**options, **rule})
    assert len(theirs[0]) == 3
    assert any(loss != 0 for loss, _, _ in theirs[0]) or "mask_truncated_completions" in options
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]
    assert ours[2].keys() == theirs[2].keys()
    for name, parameter in theirs[2].items():
        assert torch.equal(ours[2][name], parameter), name
