"""The names of the files in a run directory: training writes them, evaluation, the report and the studies read them."""

from __future__ import annotations

from pathlib import Path

RUN = "run.json"
"""Describes the run: name, seed, command, device, versions."""
RECIPE = "recipe.yaml"
"""Every field of the run; `train --config` repeats the run."""
METRICS = "metrics.jsonl"
"""One line for each log."""
FINDINGS = "findings.jsonl"
"""One line for each finding of the doctor; no file without findings."""
LENS = "lens.jsonl"
"""One line for each update that the lens recorded: sums by bucket of tokens."""
LENS_TOKENS = "lens_tokens.jsonl"
"""One line for each such update: its most extreme tokens with their context, as text. Only on request."""
CHECKPOINT = "checkpoint-"
"""Prefix of a checkpoint's name, before the optimisation step; transformers chooses that name."""
CHECKPOINT_MARKER = "complete.json"
"""The last file of each checkpoint: names and sizes of the others."""
EVALUATION = "evaluation.json"
"""The evaluation of a run of the demo, or of a comparison of strategies."""
REPORT = "report.html"


def evaluation_name(task: str, split: str) -> str:
    """The file that `entropy-rft evaluate` writes beside the model."""
    return f"evaluation-{task}-{split}.json"


def evaluation_files(directory: Path) -> list[Path]:
    """The evaluations in a run directory: the run's own first, then the others by name."""
    own = directory / EVALUATION
    return [*([own] if own.is_file() else []), *(p for p in sorted(directory.glob("evaluation-*.json")) if p.is_file())]


def earlier_recipe_name(number: int) -> str:
    """The file of an earlier recipe of a run that was resumed with another one; `number` counts from 1."""
    return f"recipe-{number}.yaml"
