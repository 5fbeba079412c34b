"""Run under ZeRO-3: how many parameters a rank holds at once during the pass over the old policy. See test_zero3.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from training_inputs import prompts, some_reward
from transformers import AutoTokenizer
from two_ranks import close, leave

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer
from entropy_rft.training import trl_hooks


def measure(model_dir: str, output: Path, lora: bool) -> dict[str, Any]:
    args = EntropyGRPOConfig(
        output_dir=f"{output}-run",
        model_init_kwargs={"dtype": "float32"},
        entropy_clip="clip_b",
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=2,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer: Any = EntropyGRPOTrainer(
        model=model_dir,
        reward_funcs=some_reward,
        args=args,
        train_dataset=prompts(),
        processing_class=AutoTokenizer.from_pretrained(model_dir, padding_side="left"),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
    )
    places: list[tuple[str, int]] = []
    kernel: list[dict[str, Any]] = []
    passing = False

    def held() -> int:
        return sum(p.numel() for p in trainer.model.parameters())

    def note(name: str) -> Any:
        return lambda *_: places.append((name, held())) if passing else None

    scored = trainer._get_per_token_logps_and_entropies

    def one_pass(model: Any, *arguments: Any, **keywords: Any) -> Any:
        nonlocal passing
        if not hooked:  # after DeepSpeed's own, which gather
            for name, module in model.named_modules():
                hooked.append(module.register_forward_pre_hook(note(f"before {name}")))
                hooked.append(module.register_forward_hook(note(f"after {name}")))
        passing = trainer._awaiting_old_policy_pass
        if passing:
            places.append(("start", held()))
        try:
            return scored(model, *arguments, **keywords)
        finally:
            if passing:
                places.append(("end", held()))
            passing = False

    hooked: list[Any] = []
    statistics = trl_hooks.fused_token_statistics

    def in_the_kernel(hidden: Any, weight: Any, *arguments: Any, **keywords: Any) -> Any:
        kernel.append({"weight": tuple(weight.shape), "held": held()})
        return statistics(hidden, weight, *arguments, **keywords)

    trainer._get_per_token_logps_and_entropies = one_pass
    trl_hooks.fused_token_statistics = in_the_kernel
    trainer.train()
    trl_hooks.fused_token_statistics = statistics
    named = {name: p.ds_numel for name, p in trainer.model.named_parameters()}
    result = {
        "stage": trainer.model_wrapped.zero_optimization_stage(),
        "processes": trainer.accelerator.num_processes,
        "total": sum(named.values()),
        "block": sum(numel for name, numel in named.items() if "layers.0." in name),
        "head": tuple(trainer.model.get_output_embeddings().weight.ds_shape),
        "held": places,
        "kernel": kernel,
    }
    close(trainer)
    return result


def main(output: str, *cases: str) -> None:
    """Each case is ``full=MODEL`` or ``lora=MODEL``."""
    results = {}
    for kind, _, model_dir in (case.partition("=") for case in cases):
        results[Path(model_dir).name, kind] = measure(model_dir, Path(output), kind == "lora")
    torch.save(results, f"{output}-{os.environ['RANK']}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
