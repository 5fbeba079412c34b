"""Entropy-aware reinforcement fine-tuning for TRL.

The names below load on first use, so that ``import entropy_rft`` (and the command line's ``--help``) does not import
torch and trl.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "EntropyGRPOConfig": "entropy_rft.training.config",
    "EntropyGRPOTrainer": "entropy_rft.training.trainer",
    "EntropyLens": "entropy_rft.training.lens",
    "PEARReward": "entropy_rft.rewards.pear",
    "RunDoctor": "entropy_rft.training.doctor",
}

if TYPE_CHECKING:
    from entropy_rft.rewards.pear import PEARReward
    from entropy_rft.training.config import EntropyGRPOConfig
    from entropy_rft.training.doctor import RunDoctor
    from entropy_rft.training.lens import EntropyLens
    from entropy_rft.training.trainer import EntropyGRPOTrainer

__all__ = ["EntropyGRPOConfig", "EntropyGRPOTrainer", "EntropyLens", "PEARReward", "RunDoctor", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
