"""Small trainings of the embedded model that the stages compare with one another."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from training_inputs import prompts, scripted_rollout
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer
from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.entropy import TokenStatistics
from entropy_rft.models.sources import model_source
from entropy_rft.training import micro_batch

# A training makes three full collections, and each would take a third of a second to walk through what is imported.
gc.freeze()

STATISTICS = ("log_prob", "entropy", "expected_discriminant")
ROWS = 8  # completions of a step


def model_directory() -> str:
    return str(model_source(DEFAULT_MODEL))


def options(device: str, precision: str, directory: Path, steps: int) -> dict[str, Any]:
    """Fields of a recipe that all the trainings share; `precision` is float32 or bfloat16 (autocast)."""
    return {
        "output_dir": str(directory),
        "per_device_train_batch_size": ROWS,
        "num_generations": 4,
        "max_completion_length": 24,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "bf16": precision == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": device == "cpu",
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def length_reward(completions: list, **columns: Any) -> list[float]:
    """Different within every group, and the same for the same text."""
    return [float(len(str(completion)) % 7) for completion in completions]


def train_plain(ours: bool, fields: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer, or ours without a rule, with generation; what it logged, sampled and learned."""
    sampled: list[list[int]] = []

    def recording_reward(completion_ids: Any = None, **columns: Any) -> list[float]:
        sampled.extend(completion_ids)
        return length_reward(**columns)

    args = EntropyGRPOConfig(**fields, entropy_clip="none") if ours else GRPOConfig(**fields)
    trainer = (EntropyGRPOTrainer if ours else GRPOTrainer)(
        model=AutoModelForCausalLM.from_pretrained(model_directory(), dtype=torch.float32),
        reward_funcs=recording_reward,
        args=args,
        train_dataset=prompts(),
        processing_class=AutoTokenizer.from_pretrained(model_directory(), padding_side="left"),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {
        "logs": [(log["loss"], log["grad_norm"], log["entropy"]) for log in trainer.state.log_history if "loss" in log],
        "completions": sampled,
        "parameters": {name: p.detach().cpu() for name, p in trainer.model.named_parameters()},
    }


class Batch(NamedTuple):
    """What the rule saw of a step and what it did: ``(B, T)`` tensors on the CPU."""

    statistics: TokenStatistics
    valid: torch.Tensor
    dropped: torch.Tensor
    rows: list[int]


class Watched(EntropyGRPOTrainer):
    """Keeps the statistics of every step's batch, and which of its tokens the rule dropped."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        self.seen: list[Batch] = []

    def _prepare_step(self, batches: list[Any]) -> list[dict[str, Any]]:
        prepared = super()._prepare_step(batches)
        for inputs in prepared:
            advantages, valid = inputs["advantages"], inputs["completion_mask"] != 0
            learned = (advantages != 0).any(1, keepdim=True)  # a group of equal rewards has none anyway
            self.seen.append(
                Batch(
                    TokenStatistics(*(inputs[name].detach().cpu() for name in micro_batch.STATISTICS)),
                    valid.cpu(),
                    ((advantages == 0) & learned & valid).cpu(),
                    inputs["completion_ids"][:, 0].tolist(),
                )
            )
        return prepared

    def dropped(self) -> list[list[list[int]]]:
        """Of each step: ``[row, position]`` of every dropped token; a row is named by its first token."""
        return [sorted([b.rows[row], at] for row, at in b.dropped.nonzero().tolist()) for b in self.seen]


def watched_trainer(rule: str, fields: dict[str, Any], callbacks: tuple[TrainerCallback, ...] = ()) -> Watched:
    """With completions that are given, so that two runs can differ in the numbers only."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory(), padding_side="left")
    torch.manual_seed(0)
    trainer = Watched(
        model=model_directory(),
        reward_funcs=_first_token_reward,
        args=EntropyGRPOConfig(
            **fields,
            model_init_kwargs={"dtype": "float32"},
            entropy_clip=rule,
            entropy_clip_mu_low=0.2,
            entropy_clip_mu_high=0.2,
            entropy_clip_advantages="all",
            entropy_clip_max_fraction=0.1 if rule == "clip_v" else None,
        ),
        train_dataset=prompts(),
        processing_class=tokenizer,
        rollout_func=scripted_rollout(_completions(tokenizer)),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _completions(tokenizer: Any) -> Callable[[int], list[int]]:
    generator = torch.Generator().manual_seed(0)
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("</think>")}
    ordinary = [number for number in range(len(tokenizer)) if number not in special]
    drawn = torch.randint(len(ordinary), (ROWS, 20), generator=generator).tolist()

    def completion(row: int) -> list[int]:
        row %= ROWS
        words = [ordinary[number] for number in drawn[row][: 12 + row]]
        # Rows of one group begin differently, which the reward reads.
        return [ordinary[row], *words, tokenizer.convert_tokens_to_ids("</think>"), ordinary[3], tokenizer.eos_token_id]

    return completion


def _first_token_reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(ids[0] % 3) for ids in completion_ids]
