"""The mathematics of one token and of one batch: tensors in, tensors out. Imports torch and nothing above it."""

from entropy_rft.entropy.clipping import EntropyClip
from entropy_rft.entropy.dynamics import (
    ChangeFit,
    change_sums,
    fit_changes,
    predicted_entropy_change,
    split_entropy_change,
)
from entropy_rft.entropy.fused import fused_token_statistics
from entropy_rft.entropy.phases import phase_masks
from entropy_rft.entropy.rules import RULES, Decision, Penalty, Rule
from entropy_rft.entropy.statistics import TokenStatistics, token_statistics

__all__ = [
    "RULES",
    "ChangeFit",
    "Decision",
    "EntropyClip",
    "Penalty",
    "Rule",
    "TokenStatistics",
    "change_sums",
    "fit_changes",
    "fused_token_statistics",
    "phase_masks",
    "predicted_entropy_change",
    "split_entropy_change",
    "token_statistics",
]
