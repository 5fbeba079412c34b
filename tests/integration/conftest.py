from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def prompts(count: int = 24) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [f"What is {i} + {i}?" for i in range(count)]})


def some_reward(completions: list, **kwargs: Any) -> list[float]:
    """Ordinary, and different within every group."""
    return [float(sum(map(ord, str(completion))) % 7) for completion in completions]


def scripted_rollout(completion_ids: Callable[[int], list[int]], env_mask: Callable[[int], list[int]] | None = None):
    """A TRL rollout function with fixed completions: the n-th row of a process's batch gets ``completion_ids(n)``."""

    def rollout(prompts: list, trainer: Any) -> dict[str, Any]:
        rows = range(len(prompts))
        ids = [completion_ids(row) for row in rows]
        output: dict[str, Any] = {
            "prompt_ids": [trainer.processing_class(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(row) for row in ids],
        }
        if env_mask is not None:
            output["env_mask"] = [env_mask(row) for row in rows]
        return output

    return rollout


@pytest.fixture
def make_trainer(random_model_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """``make_trainer(**options)``: an EntropyGRPOTrainer of the random model; unknown options are config fields."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer

    def make(
        reward_funcs: Any = some_reward,
        trainer_class: type = EntropyGRPOTrainer,
        config_class: type = EntropyGRPOConfig,
        dataset: Any = None,
        trainer_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        args = config_class(
            **{
                "output_dir": str(tmp_path / "run"),
                "per_device_train_batch_size": 8,
                "num_generations": 4,
                "max_completion_length": 12,
                "max_steps": 2,
                "learning_rate": 1e-3,
                "bf16": False,
                "use_cpu": True,
                "report_to": [],
                "logging_steps": 1,
                "save_strategy": "no",
                "disable_tqdm": True,
                **options,
            }
        )
        return trainer_class(
            model=AutoModelForCausalLM.from_pretrained(random_model_dir, dtype=torch.float32),
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=prompts() if dataset is None else dataset,
            processing_class=AutoTokenizer.from_pretrained(random_model_dir, padding_side="left"),
            **(trainer_options or {}),
        )

    return make
