"""Run under torchrun (or alone): three steps with fixed completions; writes what rank 0 knows. See test_ranks.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from conftest import prompts, scripted_rollout
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer, PEARReward
from entropy_rft.training.trainer import _STATISTICS


def main(model_dir: str, output: str, case: str, rows: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    end, eos = tokenizer.convert_tokens_to_ids("</think>"), tokenizer.eos_token_id
    trainer: Any = None

    def completion(row: int) -> list[int]:
        row += trainer.accelerator.process_index * rows
        ids = [4 + row, *range(20, 24 + row % 3), end, 30 + row]
        # The second half of the global batch is cut off, which TRL masks: rank 1 then has no valid token at all.
        return ids if case == "masked" and row >= 4 else [*ids, eos]

    def reward(completions: list, completion_ids: list, **kwargs: Any) -> list[float]:
        return [float(ids[0] % 3) for ids in completion_ids]

    clip_v = case == "clip_v"
    trainer = EntropyGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        reward_funcs=PEARReward(reward, floor=0.1),
        args=EntropyGRPOConfig(
            output_dir=f"{output}-run",
            per_device_train_batch_size=rows,
            num_generations=4,
            max_completion_length=16,
            max_steps=3,
            learning_rate=0.05,
            optim="sgd",  # Adam turns a gradient that is nothing but rounding into a step of its own
            bf16=False,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            mask_truncated_completions=case == "masked",
            entropy_clip="clip_v" if clip_v else "clip_b",
            entropy_clip_mu_low=0.2,
            entropy_clip_advantages="all",
            entropy_clip_max_fraction=0.1 if clip_v else None,
        ),
        train_dataset=prompts(),
        processing_class=tokenizer,
        rollout_func=scripted_rollout(completion),
    )
    dropped: list[tuple[int, int, int]] = []
    compute = trainer._compute_loss

    def recording(model: Any, inputs: dict[str, Any]) -> Any:
        valid = (inputs["completion_mask"] != 0) & (inputs[_STATISTICS[1]] > 0)
        for ids, row_valid, advantages in zip(inputs["completion_ids"], valid, inputs["advantages"], strict=True):
            if (advantages != 0).any():
                where = ((advantages == 0) & row_valid).nonzero().flatten().tolist()
                dropped.extend((trainer.state.global_step, int(ids[0]), t) for t in where)
        return compute(model, inputs)

    trainer._compute_loss = recording
    trainer.train()
    gathered: list[Any] = [None] * trainer.accelerator.num_processes
    if trainer.accelerator.num_processes > 1:
        torch.distributed.all_gather_object(gathered, dropped)
    else:
        gathered = [dropped]
    if trainer.accelerator.is_main_process:
        torch.save(
            {
                "num_processes": trainer.accelerator.num_processes,
                "dropped": sorted(place for rank in gathered for place in rank),
                "parameters": {name: p.detach() for name, p in trainer.model.named_parameters()},
                "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
            },
            Path(output),
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
