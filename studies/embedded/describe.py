"""What the embedded model does before any reinforcement, with each instruction: the requirements R10 to R13.

python -m studies.embedded.describe --model DIRECTORY --output studies/embedded/results/start.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from entropy_rft.models.sources import model_source
from entropy_rft.sampling import load_model_and_tokenizer
from entropy_rft.tasks.instructions import DIRECT, STEP_BY_STEP, STOP_EARLY
from entropy_rft.tasks.modulo import LEVELS
from entropy_rft.tasks.task import chat_prompt
from studies.embedded.measure import accuracy, entropies, held_out, sample

INSTRUCTIONS = {"none": None, "step_by_step": STEP_BY_STEP, "stop_early": STOP_EARLY, "direct": DIRECT}
_KEPT = ("avg", "avg_by_level", "tokens", "longest", "truncated", "thinking_tokens_by_level")


def describe(model_dir: str, per_level: int, samples: int) -> dict[str, Any]:
    """Accuracy, tokens and entropy for each instruction, the length of the prompts, and the size of the model."""
    model, tokenizer = load_model_and_tokenizer(model_dir, device="cpu")
    items = held_out(per_level)
    lengths: dict[str, list[int]] = {str(level): [] for level in LEVELS}
    for item in items:
        text = tokenizer.apply_chat_template(
            chat_prompt(item.question, None, None), add_generation_prompt=True, tokenize=False
        )
        lengths[str(item.level)].append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    found: dict[str, Any] = {}
    for name, instruction in INSTRUCTIONS.items():
        groups = sample(model, tokenizer, items, samples=samples, instruction=instruction)
        numbers = accuracy(items, groups)
        entropy = entropies(model, tokenizer, items, groups)
        found[name] = {key: numbers[key] for key in _KEPT}
        found[name] |= {f"pass@{samples}_by_level": numbers[f"pass@{samples}_by_level"]}
        found[name] |= {"entropy": entropy["mean"], "entropy_bands": entropy["bands"]}
    files = Path(model_source(model_dir)).iterdir()
    return {
        "model": Path(model_dir).name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 2),
        "questions": len(items),
        "samples": samples,
        "prompt_tokens": {level: sorted(set(values)) for level, values in lengths.items()},
        "instructions": found,
    }


def main() -> int:
    """The command line of this module."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m studies.embedded.describe", description=summary)
    parser.add_argument("--model", required=True)
    parser.add_argument("--per-level", type=int, default=30)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    found = describe(args.model, args.per_level, args.samples)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
