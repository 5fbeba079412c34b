"""Training on a real language model: 49,152 tokens, a chat template of its own, tied embeddings, 30 layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gsm8k import gsm8k
from warm import warm_run

pytestmark = [pytest.mark.integration, pytest.mark.smollm2]

# An example of the form, twice: within 16 tokens the model then writes the marker in one answer of three.
FORM = "Answer in one line, such as: 3 + 4 = 7 #### 7"


def length_reward(completions: list, **kwargs: Any) -> list[float]:
    return [float(len(str(completion)) % 7) for completion in completions]


def run(trainer_class: type, config_class: type, model_dir: Path, output: Path, **options: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    args = config_class(
        output_dir=str(output),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        max_steps=2,
        learning_rate=1e-3,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    questions = [[{"role": "user", "content": f"What is {i} + {i}?"}] for i in range(4)]
    completions: list[list[int]] = []

    def recording_reward(completion_ids: Any = None, **kwargs: Any) -> list[float]:
        completions.extend(completion_ids)
        return length_reward(**kwargs)

    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        reward_funcs=recording_reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": questions}),
        processing_class=AutoTokenizer.from_pretrained(model_dir, padding_side="left"),
    )
    trainer.train()
    losses = [
        (entry["loss"], entry["grad_norm"], entry["entropy"]) for entry in trainer.state.log_history if "loss" in entry
    ]
    return losses, completions, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def check_that_none_is_trls(model_dir: Path, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer

    theirs = run(GRPOTrainer, GRPOConfig, model_dir, tmp_path / "trl")
    ours = run(EntropyGRPOTrainer, EntropyGRPOConfig, model_dir, tmp_path / "ours", entropy_clip="none")
    assert len(theirs[0]) == 2
    assert any(norm > 0 for _, norm, _ in theirs[0])
    assert ours[:2] == theirs[:2]
    assert ours[2].keys() == theirs[2].keys()
    for name, parameter in theirs[2].items():
        assert torch.equal(ours[2][name], parameter), name


def test_none_is_bit_identical_to_trl(short_smollm2_dir: Path, tmp_path: Path) -> None:
    check_that_none_is_trls(short_smollm2_dir, tmp_path)


@pytest.mark.soak
def test_none_is_bit_identical_to_trl_with_all_layers(smollm2_dir: Path, tmp_path: Path) -> None:
    check_that_none_is_trls(smollm2_dir, tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Clip_V with PEAR on GSM8K; the second reward differs between answers whatever they say."""
    (tmp_path / "varied.py").write_text(
        "def text_reward(completions, **_):\n    return [float(sum(map(ord, str(c))) % 101) for c in completions]\n"
    )
    fields = {
        "model_name_or_path": "smollm2",
        "dtype": "float32",
        "task": "gsm8k",
        "task_path": str(gsm8k("train", tmp_path)),
        "task_limit": 4,
        "task_options": {"answer_format": FORM, "instruction": FORM},
        "think_end_token": "####",
        "rewards": ["pear", "varied:text_reward"],
        "pear_floor": 0.1,
        "entropy_clip": "clip_v",
        "entropy_clip_mu_low": 1.0,
        "entropy_clip_max_fraction": 0.2,
        "output_dir": "run",
        "max_steps": 2,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 6,  # of 12 such answers some have the marker
        "num_generations": 3,
        "max_completion_length": 20,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file


def trained(recipe: Path, *flags: object) -> list[dict[str, Any]]:
    done = warm_run(["train", "--config", recipe, *map(str, flags)], recipe.parent)
    assert done.returncode == 0, done.stderr
    lines = (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def check_metrics(logs: list[dict[str, Any]]) -> None:
    assert [entry["step"] for entry in logs] == [1, 2]
    assert any(entry["grad_norm"] > 0 for entry in logs)  # three answers may begin with the same 16 tokens
    for entry in logs:
        assert 0.5 < entry["entropy/thinking"] < 8  # nats; a uniform choice among 49,152 tokens has 10.8
        assert 0 < entry["entropy_clip/sigma"] < 5
        assert 0 < entry["pear/penalty"] < 11
        assert entry["completions/thinking_length"] + entry["completions/answer_length"] <= 20


def test_clip_v_with_pear_and_the_models_own_marker(smollm2_dir: Path, recipe: Path) -> None:
    logs = trained(recipe)
    check_metrics(logs)
    assert sum(entry["completions/answer_length"] for entry in logs) > 0
    assert any("entropy/answer" in entry for entry in logs)
    run = recipe.parent / "run"
    assert json.loads((run / "run.json").read_text())["processes"] == 1
    from safetensors import safe_open

    with safe_open(run / "model.safetensors", "pt") as new, safe_open(smollm2_dir / "model.safetensors", "pt") as old:
        assert set(new.keys()) == set(old.keys())  # the head is the embedding, and saved once
        moved = new.get_tensor("model.embed_tokens.weight") - old.get_tensor("model.embed_tokens.weight")
        assert 0 < moved.abs().max() < 1e-2


def test_lora(short_smollm2_dir: Path, recipe: Path) -> None:
    """An adapter that is trained, evaluated by its directory, and named after its base."""
    flags = ["--model_name_or_path", short_smollm2_dir, "--use_peft", "true", "--lora_r", 4]
    logs = trained(recipe, *flags, "--lora_target_modules", "q_proj", "v_proj", "--learning_rate", "1e-3")
    check_metrics(logs)
    run = recipe.parent / "run"
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(short_smollm2_dir)
    assert (run / "adapter_model.safetensors").stat().st_size < 1 << 20
    words = ["--task", "gsm8k", "--path", gsm8k("test", recipe.parent), "--limit", "2", "--samples", "2"]
    done = warm_run(["evaluate", "--model", run, *words, "--max_tokens", "8"], recipe.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluation-gsm8k-test.json").read_text())["questions"] == 2
