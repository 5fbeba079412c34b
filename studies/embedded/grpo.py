"""Plain GRPO on the embedded model, and what it does to it: the measures of docs/embedded-model.md, before and after.

python -m studies.embedded.grpo --model DIRECTORY --seed 0 --output studies/embedded/results/grpo-0.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import TrainerCallback

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer
from entropy_rft.sampling import load_model_and_tokenizer
from entropy_rft.tasks import load_task
from studies.embedded.measure import MAX_TOKENS, accuracy, behaviour, held_out, measure, sample

CHECKPOINTS = (25, 50, 100)
KEPT = (
    "reward",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "grad_norm",
)


class _Watch(TrainerCallback):
    """Measures the hardest level at the checkpoints, and keeps the curves."""

    def __init__(self, tokenizer: Any, hardest: list[Any], checkpoints: tuple[int, ...]) -> None:
        self.tokenizer, self.hardest, self.checkpoints = tokenizer, hardest, checkpoints
        self.measured: dict[str, Any] = {}
        self.curves: dict[str, list[float]] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "reward" in logs:
            for name in KEPT:
                if name in logs:
                    self.curves.setdefault(name, []).append(round(float(logs[name]), 5))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.checkpoints:
            groups = sample(model, self.tokenizer, self.hardest)
            found = {**accuracy(self.hardest, groups), **behaviour(self.hardest, groups)}
            self.measured[str(state.global_step)] = found
            print(state.global_step, json.dumps(found["hardest"]["pass@k"]), json.dumps(found["ways"]), flush=True)


def run(
    model_dir: str, *, seed: int, steps: int, learning_rate: float, per_level: int, hardest: int, save: Path | None
) -> dict[str, Any]:
    """Train and measure; everything that the tables of the document show."""
    started = time.perf_counter()
    model, tokenizer = load_model_and_tokenizer(model_dir, device="cpu")
    items = held_out(per_level, hardest)
    hard = [item for item in items if item.level == 10]
    start = measure(model, tokenizer, items)
    _show("start", start)
    watch = _Watch(tokenizer, hard, CHECKPOINTS)
    task = load_task("modulo", split="train", seed=seed)
    with tempfile.TemporaryDirectory(prefix="embedded-grpo-") as directory:
        config = EntropyGRPOConfig(
            output_dir=str(save or directory),
            entropy_clip="none",
            seed=seed,
            max_steps=steps,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=64,
            gradient_accumulation_steps=1,
            num_generations=8,
            max_completion_length=MAX_TOKENS,
            shrink_generation_batch=True,
            temperature=1.0,
            loss_type="dapo",
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = EntropyGRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=task.reward_funcs,
            args=config,
            train_dataset=task.dataset,
            callbacks=[watch],
        )
        training = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - training
        if save is not None:
            trainer.save_model(str(save))
    end = measure(trainer.model, tokenizer, items)
    _show("end", end)
    cool = measure(trainer.model, tokenizer, items, temperature=0.6)
    return {
        "model": model_dir,
        "seed": seed,
        "steps": steps,
        "learning_rate": learning_rate,
        "questions": len(items),
        "seconds": {"training": round(seconds), "all": round(time.perf_counter() - started)},
        "start": start,
        "checkpoints": watch.measured,
        "end": end,
        "end_at_0.6": cool,
        "curves": watch.curves,
        "truncated_in_training": max(watch.curves.get("completions/clipped_ratio", [0.0])),
        "reward_last_20": round(fmean(watch.curves["reward"][-20:]), 4),
    }


def _show(name: str, found: dict[str, Any]) -> None:
    slim = {k: v for k, v in found.items() if k != "hardest"}
    slim["hardest"] = {k: v for k, v in found["hardest"].items() if k != "solved"}
    print(name, json.dumps(slim, indent=1), flush=True)


def main() -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.embedded.grpo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--per-level", type=int, default=20)
    parser.add_argument("--hardest", type=int, default=60)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--save", type=Path, help="keep the trained model here")
    args = parser.parse_args()
    found = run(
        args.model,
        seed=args.seed,
        steps=args.steps,
        learning_rate=args.learning_rate,
        per_level=args.per_level,
        hardest=args.hardest,
        save=args.save,
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["seconds"]), args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
