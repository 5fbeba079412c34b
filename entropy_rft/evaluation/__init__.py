"""How good a model is on a task, and how training changed it: evaluations, and the report that compares runs.

The names load on first use: reading runs and writing a report needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Evaluation": "entropy_rft.evaluation.result",
    "Scores": "entropy_rft.evaluation.result",
    "Run": "entropy_rft.evaluation.run",
    "avg_at_k": "entropy_rft.reporting.estimators",
    "bootstrap_interval": "entropy_rft.reporting.estimators",
    "difficulty_table": "entropy_rft.evaluation.table",
    "evaluate_model": "entropy_rft.evaluation.evaluate",
    "evaluation_table": "entropy_rft.evaluation.table",
    "load_run": "entropy_rft.evaluation.run",
    "paired_difference": "entropy_rft.reporting.estimators",
    "pass_at_k": "entropy_rft.reporting.estimators",
    "write_report": "entropy_rft.evaluation.report",
}

if TYPE_CHECKING:
    from entropy_rft.evaluation.evaluate import evaluate_model
    from entropy_rft.evaluation.report import write_report
    from entropy_rft.evaluation.result import Evaluation, Scores
    from entropy_rft.evaluation.run import Run, load_run
    from entropy_rft.evaluation.table import difficulty_table, evaluation_table
    from entropy_rft.reporting.estimators import avg_at_k, bootstrap_interval, paired_difference, pass_at_k

__all__ = [
    "Evaluation",
    "Run",
    "Scores",
    "avg_at_k",
    "bootstrap_interval",
    "difficulty_table",
    "evaluate_model",
    "evaluation_table",
    "load_run",
    "paired_difference",
    "pass_at_k",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
