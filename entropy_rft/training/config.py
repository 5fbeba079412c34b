"""The configuration of :class:`~entropy_rft.EntropyGRPOTrainer`: TRL's, and the fields of the entropy rules."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from trl import GRPOConfig

from entropy_rft.entropy import EntropyClip
from entropy_rft.entropy.clipping import ADVANTAGES, RULES
from entropy_rft.suggestions import did_you_mean

_PRESETS = {"clip_b": EntropyClip.clip_b(), "clip_v": EntropyClip.clip_v()}


@dataclass
class EntropyGRPOConfig(GRPOConfig):
    """:class:`trl.GRPOConfig` plus entropy-discriminator clipping and phase entropies.

    The rules are those of arXiv 2602.03392; see :class:`~entropy_rft.entropy.EntropyClip`. Every field of
    :class:`trl.GRPOConfig` keeps its name, default and meaning.

    A dropped token's advantage becomes 0: it leaves the policy gradient, and stays in the denominator of the loss. (The
    authors' released code shrinks the loss mask and with it a token-mean denominator, so that dropping tokens also
    raises the weight of every other one; here a token's weight does not depend on what happened to its neighbours, and
    the rule acts alike under each `loss_type`.)
    """

    entropy_clip: str = field(
        default="clip_b",
        metadata={"help": "Which tokens leave the policy gradient: 'clip_b', 'clip_v', or 'none' (then TRL's GRPO)."},
    )
    entropy_clip_mu_low: float | None = field(
        default=None,
        metadata={"help": "Tokens below -mu_low sigma are dropped. None: the rule's preset; inf leaves the side open."},
    )
    entropy_clip_mu_high: float | None = field(
        default=None,
        metadata={"help": "Tokens above mu_high sigma are dropped. None: the rule's preset, which leaves it open."},
    )
    entropy_clip_advantages: str | None = field(
        default=None,
        metadata={"help": "Tokens the rule may drop: 'negative', 'positive' or 'all'. None: the rule's preset."},
    )
    entropy_clip_max_fraction: float | None = field(
        default=None,
        metadata={"help": "At most this share of a batch's tokens is dropped; 1 is no limit. None: the rule's preset."},
    )
    think_end_token: str = field(
        default="</think>",
        metadata={"help": "Text that ends the thinking and starts the answer; may be several tokens."},
    )
    entropy_metrics: bool = field(
        default=False,
        metadata={
            "help": "Log the entropy metrics also when no rule and no reward needs them. Costs the pass over the old "
            "policy where TRL makes none."
        },
    )

    def __post_init__(self) -> None:
        self.build_entropy_clip()  # first, so that a mistake here is named before anything else is set up
        if not isinstance(self.think_end_token, str) or not self.think_end_token:
            raise ValueError(f"think_end_token must be a non-empty string, got {self.think_end_token!r}")
        super().__post_init__()

    def build_entropy_clip(self) -> EntropyClip | None:
        """The rule that the fields describe, or None for ``entropy_clip="none"``.

        Raises:
            ValueError, TypeError: naming the field, its value, and the nearest known name.
        """
        _check_choice("entropy_clip", self.entropy_clip, ("none", *RULES))
        if self.entropy_clip_advantages is not None:
            _check_choice("entropy_clip_advantages", self.entropy_clip_advantages, ADVANTAGES)
        overrides: dict[str, Any] = {
            name: value
            for name in ("mu_low", "mu_high", "advantages", "max_fraction")
            if (value := getattr(self, f"entropy_clip_{name}")) is not None
        }
        preset = _PRESETS.get(self.entropy_clip, _PRESETS["clip_b"])
        try:
            rule = replace(preset, **overrides)
        except (ValueError, TypeError) as error:
            # EntropyClip names its own argument; a recipe knows it under this prefix.
            raise type(error)(f"entropy_clip_{error}") from None
        return None if self.entropy_clip == "none" else rule

    @classmethod
    def from_grpo(cls, config: GRPOConfig) -> EntropyGRPOConfig:
        """A copy of a ready :class:`trl.GRPOConfig` with this class's defaults added."""
        # Not through the constructor: TRL has already resolved fields there that may not both be given again.
        upgraded = copy.copy(config)
        upgraded.__class__ = cls
        return upgraded


def _check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        hint = did_you_mean(value, choices)
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")
