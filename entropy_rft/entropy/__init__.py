"""The mathematics of one token and of one batch: tensors in, tensors out. Imports torch and nothing above it."""

from entropy_rft.entropy.clipping import ClipDecision, EntropyClip
from entropy_rft.entropy.dynamics import predicted_entropy_change
from entropy_rft.entropy.fused import fused_token_statistics
from entropy_rft.entropy.phases import phase_masks
from entropy_rft.entropy.statistics import TokenStatistics, token_statistics

__all__ = [
    "ClipDecision",
    "EntropyClip",
    "TokenStatistics",
    "fused_token_statistics",
    "phase_masks",
    "predicted_entropy_change",
    "token_statistics",
]
