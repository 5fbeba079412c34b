"""Predict how hard a question is for a model before it answers, and choose how to answer it (DiffAdapt, arXiv
2510.19669).

Traces of the model's own answers give labels, a probe on the question's hidden state learns them, and each label has a
strategy: an instruction, a temperature and a token budget. The names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "DEFAULT_STRATEGIES": "entropy_rft.difficulty.strategies",
    "Difficulty": "entropy_rft.difficulty.strategies",
    "DifficultyProbe": "entropy_rft.difficulty.probe",
    "PUBLISHED_THRESHOLDS": "entropy_rft.difficulty.labels",
    "Strategy": "entropy_rft.difficulty.strategies",
    "Thresholds": "entropy_rft.difficulty.labels",
    "calibrate_thresholds": "entropy_rft.difficulty.calibration",
    "choose": "entropy_rft.difficulty.probe",
    "collect_traces": "entropy_rft.difficulty.collect",
    "label": "entropy_rft.difficulty.labels",
    "load_strategies": "entropy_rft.difficulty.strategies",
    "load_traces": "entropy_rft.difficulty.traces",
    "question_states": "entropy_rft.difficulty.states",
    "save_strategies": "entropy_rft.difficulty.strategies",
    "train_probe": "entropy_rft.difficulty.fitting",
}

if TYPE_CHECKING:
    from entropy_rft.difficulty.calibration import calibrate_thresholds
    from entropy_rft.difficulty.collect import collect_traces
    from entropy_rft.difficulty.fitting import train_probe
    from entropy_rft.difficulty.labels import PUBLISHED_THRESHOLDS, Thresholds, label
    from entropy_rft.difficulty.probe import DifficultyProbe, choose
    from entropy_rft.difficulty.states import question_states
    from entropy_rft.difficulty.strategies import (
        DEFAULT_STRATEGIES,
        Difficulty,
        Strategy,
        load_strategies,
        save_strategies,
    )
    from entropy_rft.difficulty.traces import load_traces

__all__ = [
    "DEFAULT_STRATEGIES",
    "PUBLISHED_THRESHOLDS",
    "Difficulty",
    "DifficultyProbe",
    "Strategy",
    "Thresholds",
    "calibrate_thresholds",
    "choose",
    "collect_traces",
    "label",
    "load_strategies",
    "load_traces",
    "question_states",
    "save_strategies",
    "train_probe",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
