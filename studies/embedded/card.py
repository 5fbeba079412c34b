"""The model card of the second embedded model, from its provenance and what `describe` measured.

python -m studies.embedded.card --model DIRECTORY --start studies/embedded/results/start.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_TEXT = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Modulo reasoner

A language model of {parameters:.2f} million parameters (Qwen3 architecture: {layers} layers, width {width}) that
follows a chain of five operations on a digit, modulo ten, and thinks aloud while it does. It ships with `entropy_rft`
so that training, evaluation and serving can be tried in minutes without a GPU or a network. It knows nothing else: on
any other question it writes nonsense.

    <|im_start|>user
    Start at 3, then +8 *9 -7 +4 *3, modulo 10?<|im_end|>
    <|im_start|>assistant
    <think>
    Fair.
    Recall 3+8=1. Check 7+4=1 yes.
    ...
    </think>
    The answer is \\boxed{{8}}.<|im_end|>

It was supervised on generated traces of the training questions of the task `modulo`, after a drill of single steps. A
step starts at a fork (recall the fact, split the operand, or turn it to the other side) and ends at another (go on, or
check). Each way knows some facts and has learned a wrong result for the others, always the same one. So nearly all
entropy stands at forks, mistakes are ignorance of a way, a check repairs much of what recalling gets wrong, and the
rarest way is the only one that solves the deciding step of the hardest questions. `docs/embedded-model.md` has the
requirements it was made for, and what plain GRPO does to it.

## Measured

Sampled at temperature 1 on {questions} questions of the test split, {samples} samples each; avg@{samples} by level.

| instruction | {levels} | all | tokens | longest |
| --- |{rules} ---: | ---: | ---: |
{rows}

All prompts have the same number of tokens.

## Made

`{command}` on {threads} thread in {minutes:.0f} minutes; `provenance.json` has the recipe and the versions.
"""


def model_card(provenance: dict[str, Any], start: dict[str, Any]) -> str:
    """The README.md of the model."""
    asked = start["instructions"]
    levels = list(asked["none"]["avg_by_level"])
    rows = []
    for name, found in asked.items():
        cells = [f"{found['avg_by_level'][level]:.2f}" for level in levels]
        cells += [f"{found['avg']:.3f}", f"{found['tokens']:.0f}", str(found["longest"])]
        rows.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return _TEXT.format(
        parameters=provenance["parameters"] / 1e6,
        layers=provenance["recipe"]["layers"],
        width=provenance["recipe"]["width"],
        questions=start["questions"],
        samples=start["samples"],
        levels=" | ".join(levels),
        rules=" ---: |" * len(levels),
        rows="\n".join(rows),
        command=provenance["command"],
        threads=provenance["threads"],
        minutes=provenance["seconds"] / 60,
    )


def main() -> int:
    """The command line of this module."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m studies.embedded.card", description=summary)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    args = parser.parse_args()
    provenance = json.loads((args.model / "provenance.json").read_text(encoding="utf-8"))
    start = json.loads(args.start.read_text(encoding="utf-8"))
    (args.model / "README.md").write_text(model_card(provenance, start), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
