from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_inputs import prompts, some_reward


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
