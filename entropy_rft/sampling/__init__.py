"""Samples completions from a model, and scores them token by token."""

from __future__ import annotations

from entropy_rft.models.loading import load_model_and_tokenizer
from entropy_rft.sampling.completion import Completion, Prompt, check_settings, encode_prompt, knows_system_role
from entropy_rft.sampling.marker import ThinkEndMarker
from entropy_rft.sampling.progress import progress_bar
from entropy_rft.sampling.scoring import score_completions
from entropy_rft.sampling.transformers_sampler import TransformersSampler
from entropy_rft.sampling.verdicts import right_and_scored, verdicts

__all__ = [
    "Completion",
    "Prompt",
    "ThinkEndMarker",
    "TransformersSampler",
    "check_settings",
    "encode_prompt",
    "knows_system_role",
    "load_model_and_tokenizer",
    "progress_bar",
    "right_and_scored",
    "score_completions",
    "verdicts",
]
