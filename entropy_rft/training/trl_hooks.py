"""Replacements in TRL's own modules during a call, and the versions of TRL that this was tested with.

Only this file and :mod:`~entropy_rft.training.trainer` use TRL's private names; each use says which and why.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import trl
import trl.trainer.grpo_trainer as trl_trainer
import trl.trainer.utils as trl_utils
from packaging.version import Version
from torch import Tensor
from trl import GRPOTrainer
from trl.import_utils import is_vllm_available

from entropy_rft.entropy import TokenStatistics, fused_token_statistics
from entropy_rft.training.audit import RandomState
from entropy_rft.training.config import EntropyGRPOConfig

TESTED_TRL = ("1.15", "1.17")  # from, up to but not including


def warn_outside_tested_trl() -> None:
    """Warn, at the line that makes the trainer, of an untested version of TRL."""
    first, end = map(Version, TESTED_TRL)
    # Compares releases: a development version of the end is outside too.
    if not first.release <= Version(trl.__version__).release < end.release:
        warnings.warn(
            f"trl {trl.__version__} is outside the range that entropy_rft is tested with (>={first},<{end}); "
            "expect errors or silent differences",
            stacklevel=3,
        )


@contextmanager
def vllm_for(args: EntropyGRPOConfig) -> Iterator[None]:
    """Replace TRL's vLLM backend on a CPU, where it cannot update weights. (Without vLLM TRL says what is missing.)"""
    if not args.use_vllm or args.device.type != "cpu" or not is_vllm_available():
        yield
        return
    from entropy_rft.training.vllm_cpu.trainer_side import CPUVLLMGeneration

    with _exchanged(trl_trainer, "VLLMGeneration", CPUVLLMGeneration):
        yield


@contextmanager
def statistics_head() -> Iterator[list[Tensor]]:
    """Let TRL's fused LM head compute our statistics; yields the list that collects the expected discriminants.

    TRL finds the head's weight, gathers it (ZeRO-3, FSDP2), and has each family's soft cap and logit scale. Only the
    kernel is replaced: TRL's does not compute Σπ² log π, and ours needs no second product for it.
    """
    collected: list[Tensor] = []

    class StatisticsHead:
        @staticmethod
        def apply(hidden, weight, bias, targets, temperature, _chunk, softcap=None, scale=1.0, _outputs=()):
            product = torch.get_autocast_dtype(hidden.device.type)
            dtype = product if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
            statistics = fused_token_statistics(
                hidden,
                weight,
                targets,
                bias=bias,
                temperature=temperature,
                logit_softcap=softcap,
                logit_scale=scale,
                product_dtype=None if dtype == torch.float32 else dtype,
            )
            collected.append(statistics.expected_discriminant)
            return statistics.log_prob, statistics.entropy, None, None, None

    with (
        _exchanged(trl_utils, "_ChunkedLogProbFunction", StatisticsHead),
        # If this is true, TRL scores only the labelled positions; otherwise every position (prompts, padding).
        _exchanged(trl_utils, "_use_triton", lambda device: True),
    ):
        yield collected


def statistics_pass(
    forward: Callable[..., tuple[Tensor, Tensor, Tensor | None]], arguments: tuple, keywords: dict[str, Any]
) -> tuple[TokenStatistics, Tensor | None]:
    """TRL's pass for log-probabilities and entropies, with our statistics in it, ``(B, T)``; its auxiliary loss too.

    Args:
        forward: TRL's ``_get_per_token_logps_and_entropies`` of a trainer.
        arguments, keywords: its arguments, with the entropies asked for.
    """
    _, _, attention_mask, logits_to_keep, *_ = arguments
    with statistics_head() as collected:
        log_prob, entropy, aux_loss = forward(*arguments, **keywords)
    expected = torch.zeros_like(entropy)
    scored = attention_mask[:, -logits_to_keep:] != 0
    expected[scored.to(expected.device)] = torch.cat(collected).to(expected.device)
    return TokenStatistics(log_prob, entropy, expected), aux_loss


class _StatisticsReady(Exception):
    """Carries the statistics out of TRL's loss, of which only the forward pass is needed."""

    def __init__(self, statistics: TokenStatistics) -> None:
        super().__init__()
        self.statistics = statistics


def policy_statistics(trainer: GRPOTrainer, inputs: Mapping[str, Any]) -> TokenStatistics:
    """The statistics ``(B, T)`` of a micro-batch of any GRPO trainer, for the policy as it is now; one forward pass.

    TRL's loss gives the forward all its tensors (images, token types); an exception ends it right after. Weights,
    gradients and random number generators stay as they are. The pass has the dropout masks that a loss now would have.
    """
    forward = functools.partial(GRPOTrainer._get_per_token_logps_and_entropies, trainer)

    def ending(*arguments: Any, **keywords: Any) -> Any:
        raise _StatisticsReady(statistics_pass(forward, arguments, keywords)[0])

    random_state = RandomState({parameter.device for parameter in trainer.model.parameters()})
    with (
        torch.no_grad(),
        random_state.again(),
        _exchanged(trainer, "_get_per_token_logps_and_entropies", ending),
    ):
        try:
            GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
        except _StatisticsReady as ready:
            return ready.statistics
    raise RuntimeError(f"trl {trl.__version__} computed a loss without a pass over the policy")


@contextmanager
def _exchanged(module: Any, name: str, value: Any) -> Iterator[None]:
    missing = object()
    original = module.__dict__.get(name, missing)
    setattr(module, name, value)
    try:
        yield
    finally:
        if original is missing:
            delattr(module, name)
        else:
            setattr(module, name, original)
