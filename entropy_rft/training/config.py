"""The configuration of :class:`~entropy_rft.EntropyGRPOTrainer`: TRL's, and the fields of the entropy rules."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from trl import GRPOConfig

from entropy_rft.entropy.rules import RULES, Rule
from entropy_rft.errors import UserTypeError, UserValueError, user_mistake, users
from entropy_rft.suggestions import did_you_mean

NO_RULE = "none"
_PREFIX = "entropy_clip_"


def _rule_fields() -> type:
    """A dataclass with `entropy_clip` and every field of every rule as ``entropy_clip_FIELD``, in the rules' order."""
    summaries = "; ".join(f"{name!r}: {_summary(rule)}" for name, rule in RULES.items())
    about = f"Which tokens leave the policy gradient. {summaries}; {NO_RULE!r}: none, then this is TRL's GRPO."
    made: dict[str, tuple[str, Any, Any]] = {
        "entropy_clip": ("entropy_clip", str, field(default="clip_b", metadata={"help": about}))
    }
    for each in _options().values():
        words = each.metadata["text"] or each.metadata["choices"] is not None
        text = f"{each.metadata['help']} Of {', '.join(_having(each.name))}. None: the rule's preset."
        name = _PREFIX + each.name
        made[name] = (name, str | None if words else float | None, field(default=None, metadata={"help": text}))
    return make_dataclass("RuleFields", made.values(), namespace={"__module__": __name__})


def _options() -> dict[str, Any]:
    """Each field that a rule has, by its name; rules with a field of the same name mean the same by it."""
    return {each.name: each for rule in RULES.values() for each in fields(rule)}  # type: ignore[arg-type]


def _having(option: str) -> list[str]:
    return [name for name, rule in RULES.items() if option in rule.__dataclass_fields__]  # type: ignore[attr-defined]


def _summary(rule: type[Rule]) -> str:
    """The first line of its docstring, without its own name before and the full stop after it."""
    return (rule.__doc__ or "").partition("\n")[0].partition(": ")[2].rstrip(".")


RuleFields: Any = _rule_fields()


@dataclass
class EntropyGRPOConfig(RuleFields, GRPOConfig):
    """:class:`trl.GRPOConfig` plus a rule that drops tokens by their entropy, and phase entropies.

    `entropy_clip` names the rule, "none" or one of :data:`~entropy_rft.entropy.RULES` ("clip_b" is the default). Each
    field of a rule is here with ``entropy_clip_`` before its name, such as `entropy_clip_mu_low`; None is the rule's
    preset. Every field of :class:`trl.GRPOConfig` keeps its name, default and meaning.

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

    def build_entropy_clip(self) -> Rule | None:
        """The rule that the fields describe, or None for ``entropy_clip="none"``.

        Raises:
            ValueError, TypeError: naming the field, its value, and the nearest known name.
        """
        chosen: str = self.entropy_clip
        _check_choice("entropy_clip", chosen, (NO_RULE, *RULES))
        given = {name: value for name in _options() if (value := getattr(self, _PREFIX + name)) is not None}
        for name, value in given.items():
            if choices := _options()[name].metadata["choices"]:
                _check_choice(_PREFIX + name, value, choices)
            if chosen not in (NO_RULE, *_having(name)):
                known = [_PREFIX + each.name for each in fields(RULES[chosen])]  # type: ignore[arg-type]
                reason = f"is set to {value!r}, but {chosen} has no such field"
                raise UserValueError(f"{_PREFIX}{name} {reason}: it has {', '.join(known)}")
        try:
            if chosen != NO_RULE:
                return RULES[chosen](**given)
            for name, value in given.items():  # not used, but a mistake in them is one all the same
                RULES[_having(name)[0]](**{name: value})
        except (ValueError, TypeError) as error:
            # A rule names its own field; a recipe knows it under this prefix.
            raise user_mistake(error, _PREFIX) from None
        return None

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
