"""Replacements in TRL's own modules during a call, and the versions of TRL that this was tested with.

Only this file, :mod:`~entropy_rft.training.trainer` and :mod:`~entropy_rft.training.vllm_cpu.trainer_side`, which are
subclasses of TRL's, use TRL's private names; each use says which and why.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import trl
import trl.trainer.grpo_trainer as trl_trainer
import trl.trainer.utils as trl_utils
from packaging.version import Version
from torch import Tensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
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


def generation_cannot_shrink(trainer: GRPOTrainer) -> str | None:
    """Why `shrink_generation_batch` has no effect in this run; None where it has."""
    # The first two generate by other means; the others name a cache, or count tokens from the end of the prompt.
    for name in ("use_vllm", "use_transformers_continuous_batching", "cache_implementation", "generation_kwargs"):
        if value := getattr(trainer.args, name):
            return f"{name}: {value!r}"
    if trainer._is_vlm:
        return "images, which belong to the rows of the whole batch"
    if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
        return "sharded weights, where all processes make the same forward passes"
    return None


@contextmanager
def old_policy_pass_forced(trainer: GRPOTrainer) -> Iterator[None]:
    """Let TRL make its pass over the old policy in a generation, also where it would make none."""
    # During generation TRL reads num_iterations only to decide whether to make this pass, for which it has every
    # tensor (and every image). With more iterations than accumulation steps it always makes the pass.
    with _exchanged(trainer, "num_iterations", trainer.args.gradient_accumulation_steps + 1):
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

    random_state = RandomState.of(trainer.model)
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


def loss_weights(trainer: GRPOTrainer, inputs: Mapping[str, Any]) -> Tensor:
    """How much TRL's loss of this micro-batch changes with the loss of each token, ``(B, T)``.

    TRL's own loss says it, whatever `loss_type` is: its KL term is added to a token's loss after the ratio, its
    clipping and every mask, and then only averaged. So the loss is computed once more, from constants instead of the
    model: no advantage, and a KL term whose derivative is 1 for each token. The gradient is the answer.

    It changes no state of `trainer`. With several processes each must call it, since TRL averages its metrics.
    """
    mask = inputs["completion_mask"]
    zeros = torch.zeros(mask.shape, device=mask.device)
    # TRL's term is exp(x) - x - 1 with x = log π_ref - log π, so its derivative in log π_ref is 1 at log 2.
    reference = torch.full_like(zeros, math.log(2)).requires_grad_()
    constants = {"advantages": zeros, "ref_per_token_logps": reference, "old_per_token_logps": zeros}
    settings = {
        "beta": 1.0,
        "_get_per_token_logps_and_entropies": lambda *args, **kwargs: (zeros, zeros, None),
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        # What else a loss has, or keeps for the next one.
        "_entropy_bonus_enabled": False,
        "aux_loss_enabled": False,
        "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0,
    }
    with ExitStack() as stack, torch.enable_grad():
        for name, value in settings.items():
            stack.enter_context(_exchanged(trainer, name, value))
        loss = GRPOTrainer._compute_loss(trainer, trainer.model, {**inputs, **constants})
    (weights,) = torch.autograd.grad(loss, reference)
    return weights


@contextmanager
def _exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A module's or an object's own attribute is `value` for a while."""
    missing = object()
    original = owner.__dict__.get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if original is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, original)
