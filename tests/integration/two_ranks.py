"""Run under a launcher (or alone): steps with fixed completions, case after case; writes what rank 0 has recorded.

The cases run with all weights first, and then those of ``--lora`` with LoRA alone.

See test_ranks.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from launching import CASES, STEPS
from peft import LoraConfig
from rule_matrix import loose_fields
from training_inputs import prompts, scripted_rollout
from transformers import AutoTokenizer

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer, PEARReward
from entropy_rft.entropy import RULES
from entropy_rft.run_files import LENS, LENS_TOKENS
from entropy_rft.training.micro_batch import PENALTY, STATISTICS

ACCUMULATION = 2
GLOBAL_ROWS = 8  # of one optimisation step


def run(model_dir: str, output: Path, case: str, lora: bool) -> dict[str, Any]:
    """Train by one case; every rank must call it."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = GLOBAL_ROWS // processes
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    end, eos = tokenizer.convert_tokens_to_ids("</think>"), tokenizer.eos_token_id
    masked = case.startswith("masked")
    trainer: Any = None

    def completion(row: int) -> list[int]:
        row += trainer.accelerator.process_index * rows
        ids = [4 + row, *range(20, 24 + row % 3), end, 30 + row]
        # The second half of the global batch is cut off, which TRL masks: rank 1 then has no valid token at all.
        return ids if masked and row >= GLOBAL_ROWS // 2 else [*ids, eos]

    def reward(completions: list, completion_ids: list, **kwargs: Any) -> list[float]:
        return [float(ids[0] % 3) for ids in completion_ids]

    rule = case if case in RULES else "clip_v" if case.startswith("clip_v") else "clip_b"
    torch.manual_seed(0)  # the adapters' start, the same on each rank
    args = EntropyGRPOConfig(
        output_dir=f"{output}-run",
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=rows // ACCUMULATION,
        gradient_accumulation_steps=ACCUMULATION,
        num_generations=4,
        max_completion_length=16,
        max_steps=STEPS,
        learning_rate=0.05,
        optim="sgd",  # Adam turns a gradient that is only rounding error into a full step
        bf16=False,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        mask_truncated_completions=masked,
        entropy_audit_steps=1,
        entropy_lens_steps=1,
        entropy_lens_tokens=2,
        entropy_clip_refresh=case == "refresh",
        **{"num_iterations": 2 if case == "refresh" else 1} | loose_fields(rule),
    )
    adapters = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,  # B starts at random, not at zero, so that A has a gradient from the first step on
    )
    trainer = EntropyGRPOTrainer(
        model=model_dir,  # loaded by TRL, under ZeRO-3 straight into the shards
        reward_funcs=PEARReward(reward, floor=0.1) if case.endswith("pear") else reward,
        args=args,
        train_dataset=prompts(),
        processing_class=tokenizer,
        rollout_func=scripted_rollout(completion),
        peft_config=adapters if lora else None,
    )
    # "places": of the tokens that are dropped or get a penalty
    seen: dict[str, Any] = {"places": [], "valid": [], "engines": set()}
    compute = trainer._compute_loss

    def recording(model: Any, inputs: dict[str, Any]) -> Any:
        stage = model.zero_optimization_stage() if hasattr(model, "zero_optimization_stage") else 0
        seen["engines"].add((type(model).__name__, stage))
        valid = (inputs["completion_mask"] != 0) & (inputs[STATISTICS[1]] > 0)
        seen["valid"].append(int(valid.sum()))
        for ids, row_valid, advantages in zip(inputs["completion_ids"], valid, inputs["advantages"], strict=True):
            if (advantages != 0).any():
                where = ((advantages == 0) & row_valid).nonzero().flatten().tolist()
                seen["places"].extend((trainer.state.global_step, int(ids[0]), t) for t in where)
        if PENALTY in inputs:
            for row, t in inputs[PENALTY].weight.nonzero().tolist():
                seen["places"].append((trainer.state.global_step, int(inputs["completion_ids"][row, 0]), t))
        return compute(model, inputs)

    trainer._compute_loss = recording
    before = parameters(trainer)
    trainer.train()
    after = parameters(trainer)
    ranks = [seen]
    if processes > 1:
        ranks = [None] * processes  # type: ignore[list-item]
        torch.distributed.all_gather_object(ranks, seen)
    result = {
        "num_processes": trainer.accelerator.num_processes,
        "engines": [sorted(rank["engines"]) for rank in ranks],
        "places": sorted(place for rank in ranks for place in rank["places"]),
        "valid": [sum(rank["valid"]) for rank in ranks],
        "before": before,
        "parameters": after,
        "lens": lens_lines(Path(args.output_dir)),
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    close(trainer)
    return result


def lens_lines(directory: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The sums and the stored tokens of each update."""
    files = [(directory / name).read_text().splitlines() for name in (LENS, LENS_TOKENS)]
    return [(json.loads(sums), json.loads(tokens)) for sums, tokens in zip(*files, strict=True)]


def parameters(trainer: Any) -> dict[str, torch.Tensor]:
    """Copies of the trained parameters, whole ones."""
    named = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    gathered: Any = nullcontext()
    if any(hasattr(p, "ds_id") for _, p in named):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([p for _, p in named])
    with gathered:
        return {name: p.detach().clone() for name, p in named}


def close(trainer: Any) -> None:
    """Release everything of this case before the next one."""
    engine = trainer.model_wrapped
    trainer.accelerator.wait_for_everyone()
    if hasattr(engine, "destroy"):
        engine.destroy()
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir")
    parser.add_argument("output", type=Path)
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--lora", nargs="+", choices=CASES, required=True)
    options = parser.parse_args()
    results = {
        lora: {case: run(options.model_dir, options.output, case, lora) for case in cases}
        for lora, cases in ((False, options.cases), (True, options.lora))
    }
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(results, options.output)
    leave()


def leave() -> None:
    """End this process without the interpreter's normal exit, which does not end gloo's threads and the group's users
    in order."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
