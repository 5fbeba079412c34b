"""Train some steps with vLLM's rollouts, and write down what test_vllm.py checks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from training_inputs import some_reward
from transformers import TrainerCallback

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer, PEARReward
from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.tasks import load_task

STEPS = 4  # with weights in sync; one more follows with the weights of the step before


class Stale(TrainerCallback):
    """After the last step in sync vLLM gets no more weights: the control that a difference would be seen."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == STEPS:
            self.trainer.vllm_generation.sync_weights = lambda: None


def main(model_dir: str, output: str, *runs: dict[str, Any]) -> None:
    """Train by each of the options, one after the other, and write what each gave."""
    Path(output).write_text(json.dumps([train(model_dir, f"{output}-run", options) for options in runs]))


def train(model_dir: str, output_dir: str, options: dict[str, Any]) -> dict[str, Any]:
    task = load_task(DEFAULT_TASK, limit=32, thinking=options.pop("thinking", True))
    lora = options.pop("lora", False)
    pear = options.pop("pear", True)
    rewards: list[Any] = [PEARReward(task.reward_funcs[0], floor=0.1)] if pear else task.reward_funcs
    if options.pop("varied", False):  # a model that is never right would learn nothing
        rewards = [*rewards, some_reward]
    peft_config = None
    if lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear")
    stale = Stale()
    trainer = EntropyGRPOTrainer(
        model=model_dir,
        reward_funcs=rewards,
        args=EntropyGRPOConfig(
            output_dir=output_dir,
            use_vllm=True,
            max_steps=STEPS + 1,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=True,
            model_init_kwargs={"dtype": "float32"},
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            **{
                "entropy_clip": "clip_b",
                "per_device_train_batch_size": 16,
                "num_generations": 8,
                "max_completion_length": 64,
                "learning_rate": 1e-2 if lora else 1e-3,
                **options,
            },
        ),
        train_dataset=task.dataset,
        peft_config=peft_config,
        callbacks=[stale],
    )
    stale.trainer = trainer
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    trainer.model.get_base_model().register_forward_hook(count) if lora else trainer.model.register_forward_hook(count)
    trainer.train()
    return {
        "backend": type(trainer.vllm_generation).__name__,
        "device": str(trainer.accelerator.device),
        "tied": trainer.model.config.tie_word_embeddings,
        "forwards": forwards,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "finite": all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters()),
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:]))
