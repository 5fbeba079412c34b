"""Statistics of one position's distribution: log-probability, entropy and the entropy discriminant.

Source of the equations: "On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models",
arXiv 2602.03392. Natural logarithms throughout, entropies in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Real

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenStatistics:
    """Three numbers a token, all of the shape of the ``token_ids`` they were computed for.

    float32, except that statistics of float64 logits stay float64. With π the policy's distribution at the token's
    position and ``a`` the sampled token:

    Attributes:
        log_prob: ``log π(a)``, nats, never above 0. A banned token (logit -inf) has the lowest finite value.
        entropy: ``H = -Σ_v π_v log π_v``, nats, never below 0.
        expected_discriminant: ``E_{v~π}[S_v] = Σ_v π_v² (H + log π_v)``, nats.
    """

    log_prob: Float[Tensor, "*shape"]
    entropy: Float[Tensor, "*shape"]
    expected_discriminant: Float[Tensor, "*shape"]

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"TokenStatistics needs tensors of one shape, got {shapes}")

    @property
    def discriminant(self) -> Float[Tensor, "*shape"]:
        """``S* = π(a) (H + log π(a))``, nats: positive where π(a) > e^{-H}."""
        return self.log_prob.exp() * (self.entropy + self.log_prob)

    @property
    def centred_discriminant(self) -> Float[Tensor, "*shape"]:
        """``S* - E_{v~π}[S_v]``, nats: its mean over on-policy tokens is 0."""
        return self.discriminant - self.expected_discriminant

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenStatistics:
        """The statistics with `function` applied to each of the three tensors (indexing, moving, reshaping)."""
        return TokenStatistics(*(function(getattr(self, field.name)) for field in fields(self)))

    @staticmethod
    def cat(parts: Sequence[TokenStatistics], dim: int = 0) -> TokenStatistics:
        """The statistics of `parts` joined along `dim`."""
        return TokenStatistics(
            *(torch.cat([getattr(part, field.name) for part in parts], dim) for field in fields(TokenStatistics))
        )


def token_statistics(
    logits: Float[Tensor, "*shape vocabulary"], token_ids: Int[Tensor, "*shape"], temperature: float = 1.0
) -> TokenStatistics:
    """The readable reference: :class:`TokenStatistics` from full logits.

    Args:
        logits: ``(..., V)``, any floating type. ``-inf`` bans a token; each row needs one finite logit.
        token_ids: ``(...)``, the sampled token of each row.
        temperature: the logits are divided by it, as the loss does.

    Returns:
        Statistics of the shape of `token_ids`: float32, or float64 for float64 logits.

    Raises:
        ValueError: for shapes that do not belong together, ids outside the vocabulary, or a temperature that is not
            above 0.
        TypeError: for logits that are not floating point or ids that are not integers.
    """
    check_temperature(temperature)
    check_token_ids(token_ids)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.dim() == 0 or logits.shape[:-1] != token_ids.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} need token_ids of shape {tuple(logits.shape[:-1])}, "
            f"got {tuple(token_ids.shape)}"
        )
    if token_ids.numel() and (int(token_ids.min()) < 0 or int(token_ids.max()) >= logits.shape[-1]):
        raise ValueError(
            f"token_ids must be from 0 to {logits.shape[-1] - 1}, got {int(token_ids.min())} to {int(token_ids.max())}"
        )
    result_dtype = torch.promote_types(logits.dtype, torch.float32)
    # float64 inside: a peaked row's entropy is a sum of terms that nearly cancel. (MPS has no float64.)
    dtype = result_dtype if logits.device.type == "mps" else torch.float64
    # The maximum is subtracted before the division, so that a tiny temperature cannot overflow.
    shifted = logits.to(dtype)
    shifted = (shifted - shifted.amax(-1, keepdim=True)) / temperature
    log_probs = torch.log_softmax(shifted, dim=-1)
    # A banned token has log π = -inf and π = 0; every sum below uses 0·log 0 = 0, never NaN.
    log_probs = log_probs.clamp(min=torch.finfo(result_dtype).min)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(-1)
    squares = probs * probs
    expected = entropy * squares.sum(-1) + (squares * log_probs).sum(-1)
    log_prob = log_probs.gather(-1, token_ids.long().unsqueeze(-1)).squeeze(-1)
    return TokenStatistics(log_prob.clamp(max=0.0), entropy.clamp(min=0.0), expected).map(lambda x: x.to(result_dtype))


def check_token_ids(token_ids: Tensor) -> None:
    """Raise a TypeError for ids that are not a tensor of integers."""
    if not isinstance(token_ids, Tensor):
        raise TypeError(f"token_ids must be a tensor, got {type(token_ids).__name__}")
    if token_ids.is_floating_point() or token_ids.is_complex() or token_ids.dtype == torch.bool:
        raise TypeError(f"token_ids must be integers, got {token_ids.dtype}")


def check_temperature(temperature: float) -> None:
    """Raise an error for a temperature that is not a finite number above 0."""
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"temperature must be a number, got {temperature!r}")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
