"""What is exchanged in TRL's own modules for the length of a call, and the range of TRL that this was tested with.

With :mod:`~entropy_rft.training.trainer` the only file that touches TRL's private names; each use says which and why.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl
import trl.trainer.grpo_trainer as trl_trainer
import trl.trainer.utils as trl_utils
from packaging.version import Version
from torch import Tensor
from trl.import_utils import is_vllm_available

from entropy_rft.entropy import TokenStatistics, fused_token_statistics
from entropy_rft.training.config import EntropyGRPOConfig

TESTED_TRL = ("1.15", "1.17")  # from, up to but not including


def warn_outside_tested_trl() -> None:
    """Warn, at the line that makes the trainer, of a TRL that nobody has tried."""
    first, end = map(Version, TESTED_TRL)
    # By the release: a development version of the end is outside already.
    if not first.release <= Version(trl.__version__).release < end.release:
        warnings.warn(
            f"trl {trl.__version__} is outside the range that entropy_rft is tested with (>={first},<{end}); "
            "expect errors or silent differences",
            stacklevel=3,
        )


@contextmanager
def vllm_for(args: EntropyGRPOConfig) -> Iterator[None]:
    """TRL's own vLLM backend, but for a CPU, whose weights it cannot renew. (Without vLLM TRL says what is missing.)"""
    if not args.use_vllm or args.device.type != "cpu" or not is_vllm_available():
        yield
        return
    from entropy_rft.training.vllm_cpu.trainer_side import CPUVLLMGeneration

    with _exchanged(trl_trainer, "VLLMGeneration", CPUVLLMGeneration):
        yield


class StatisticsReady(Exception):
    """Carries the statistics out of TRL's loss, of which only the forward was wanted."""

    def __init__(self, statistics: TokenStatistics) -> None:
        super().__init__()
        self.statistics = statistics


@contextmanager
def statistics_head() -> Iterator[list[Tensor]]:
    """Let TRL's fused LM head compute our statistics; yields the list that collects the expected discriminants.

    TRL finds the head's weight, gathers it (ZeRO-3, FSDP2), and knows each family's soft cap and logit scale; only the
    kernel behind it is exchanged. It cannot give Σπ² log π, and ours needs no second product for it.
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
        # TRL scores only the labelled positions where this says so, and every position (prompts, padding) elsewhere.
        _exchanged(trl_utils, "_use_triton", lambda device: True),
    ):
        yield collected


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
