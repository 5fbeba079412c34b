"""The configuration of :class:`~entropy_rft.EntropyGRPOTrainer`: TRL's, and the fields of the entropy rules."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from trl import GRPOConfig

from entropy_rft.entropy import EntropyClip
from entropy_rft.entropy.clipping import ADVANTAGES, RULES
from entropy_rft.errors import UserTypeError, UserValueError, user_mistake, users
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

    With several updates from one generation (`num_iterations` above 1, or more steps per generation than accumulation
    steps) the rule and the predicted change use the statistics of the policy that sampled, as the authors' code does,
    not of the one that the update starts from; `entropy_clip_refresh` computes them anew before each later update.

    `entropy_audit_steps` costs, on the steps that are audited, one forward pass without a gradient over the step's
    batch (about a quarter of the loss and its gradient, little beside the generation), the memory of the batch's
    inputs until then, and the pass over the old policy where nothing else needs it. The updates are those of a run
    without it. Logged are ``entropy/measured_change`` (nats per token), and over the tokens of the batch
    ``entropy/audit_slope`` (measured change per unit logit step that was predicted: the effective step size) and
    ``entropy/audit_correlation``; and what makes up the predicted and the measured change, by the sign of the advantage
    (``entropy/measured_change/positive``, ``/negative``, ``/zero``) and by phase (``/thinking``, ``/answer``,
    ``/other``), each of which adds up to the whole. Tokens share their parameters and Adam rescales the gradient, so
    the slope is no constant and the correlation is below 1 for small steps too. In bfloat16 the change of one step can
    be less than rounding: average over many. Dropout, LoRA's too, has the same masks in both passes: a step that moves
    no weight measures a change of exactly 0.
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
    shrink_generation_batch: bool = field(
        default=False,
        metadata={
            "help": "With transformers' own generation: completions that have ended leave the batch, so that the "
            "longest one does not keep all others in it. Draws other random numbers than TRL does. No effect with "
            "other ways to generate, and on sharded weights."
        },
    )
    entropy_audit_steps: int = field(
        default=0,
        metadata={
            "help": "Every so many steps, measure the step's real entropy change beside the predicted one, by "
            "one more forward pass over its batch after the update. 0: never."
        },
    )

    entropy_clip_refresh: bool = field(
        default=False,
        metadata={
            "help": "Before each later update from the same generation, compute the statistics that the rule and the "
            "prediction look at anew, for the policy that this update starts from. Costs one pass without a "
            "gradient for each such update. TRL's old log-probabilities stay."
        },
    )

    def __post_init__(self) -> None:
        self.build_entropy_clip()  # first, so that a mistake here is named before anything else is set up
        _check_trls_fields(self)
        if not isinstance(self.think_end_token, str) or not self.think_end_token:
            raise UserValueError(f"think_end_token must be a non-empty string, got {self.think_end_token!r}")
        if not isinstance(self.entropy_clip_refresh, bool):
            raise UserTypeError(f"entropy_clip_refresh must be true or false, got {self.entropy_clip_refresh!r}")
        if isinstance(self.entropy_audit_steps, bool) or not isinstance(self.entropy_audit_steps, int):
            raise UserTypeError(f"entropy_audit_steps must be a number of steps, got {self.entropy_audit_steps!r}")
        if self.entropy_audit_steps < 0:
            raise UserValueError(f"entropy_audit_steps must be at least 0 (never), got {self.entropy_audit_steps}")
        with users(ValueError, TypeError):  # TRL's and transformers' own checks of the fields
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
            raise user_mistake(error, "entropy_clip_") from None
        return None if self.entropy_clip == "none" else rule

    @classmethod
    def from_grpo(cls, config: GRPOConfig) -> EntropyGRPOConfig:
        """A copy of a ready :class:`trl.GRPOConfig` with this class's defaults added.

        Raises:
            TypeError: for anything else, a subclass with fields of its own included.
        """
        if type(config) is not GRPOConfig:
            raise UserTypeError(f"args must be an EntropyGRPOConfig or a trl.GRPOConfig, got {type(config).__name__}")
        # Not through the constructor: TRL has already resolved fields there that may not both be given again.
        upgraded = copy.copy(config)
        upgraded.__class__ = cls
        return upgraded


# TRL finds these out in the first loss or with the first rewards, after the first generation, or divides by them.
_WORDS = ("loss_type", "importance_sampling_level", "scale_rewards")
_COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
    "steps_per_generation",
    "generation_batch_size",
    "max_completion_length",
)


def _check_trls_fields(config: GRPOConfig) -> None:
    for name in _WORDS:
        value = getattr(config, name)
        plain = GRPOConfig.__dataclass_fields__[name].default
        if value == plain or (name == "scale_rewards" and isinstance(value, bool)):
            continue
        words = _words_of_trl()[name]
        if words:  # where TRL's source is not there or says it in another way, TRL finds it out
            _check_choice(name, value, sorted(words))
    for name in _COUNTS:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserValueError(f"{name} must be at least 1, got {value}")
    if not config.temperature > 0:
        raise UserValueError(f"temperature must be above 0, got {config.temperature}")
    if config.learning_rate < 0:
        raise UserValueError(f"learning_rate must not be negative, got {config.learning_rate}")


@functools.cache
def _words_of_trl() -> dict[str, set[str]]:
    """The words that TRL's trainer compares these fields with: its own list, which grows with its versions."""
    from trl import GRPOTrainer  # seconds, which the default words do not need

    found: dict[str, set[str]] = {name: set() for name in _WORDS}
    try:
        tree = ast.parse(inspect.getsource(inspect.getmodule(GRPOTrainer) or GRPOTrainer))
    except (OSError, TypeError, SyntaxError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr in found:
            constants = [part for side in node.comparators for part in ast.walk(side) if isinstance(part, ast.Constant)]
            found[node.left.attr] |= {part.value for part in constants if isinstance(part.value, str)}
    return found


def _check_choice(name: str, value: Any, choices: Iterable[str | bool]) -> None:
    choices = list(choices)
    if value not in choices:
        words = [choice for choice in choices if isinstance(choice, str)]
        raise UserValueError(f"{name} must be one of {', '.join(words)}, got {value!r}{did_you_mean(value, words)}")
