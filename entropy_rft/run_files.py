"""The names of the files in a run directory: training writes them, evaluation, the report and the studies read them."""

from __future__ import annotations

from pathlib import Path

RUN = "run.json"
"""Describes the run: name, seed, command, device, versions."""
RECIPE = "recipe.yaml"
"""Every field of the run; `train --config` makes it again."""
METRICS = "metrics.jsonl"
"""One line for each log."""
FINDINGS = "findings.jsonl"
"""One line for each finding of the doctor; only where there is one."""
CHECKPOINT = "checkpoint-"
"""Begins a checkpoint's name, the optimisation step ends it; transformers gives that name."""
CHECKPOINT_MARKER = "complete.json"
"""The last file of each checkpoint: names and sizes of the others."""
EVALUATION = "evaluation.json"
"""Of the demo's runs, and of a comparison of strategies."""
REPORT = "report.html"


def evaluation_name(task: str, split: str) -> str:
    """The file of an evaluation that `entropy-rft evaluate` puts beside the model."""
    return f"evaluation-{task}-{split}.json"


def evaluation_files(directory: Path) -> list[Path]:
    """The evaluations in a run directory: the run's own first, then the others by name."""
    own = directory / EVALUATION
    return [*([own] if own.is_file() else []), *(p for p in sorted(directory.glob("evaluation-*.json")) if p.is_file())]


def earlier_recipe_name(number: int) -> str:
    """The recipe of an earlier part of a run that was resumed with another; from 1."""
    return f"recipe-{number}.yaml"
