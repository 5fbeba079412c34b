"""The configuration of :class:`~entropy_rft.EntropyGRPOTrainer`: TRL's, and the fields of the entropy rules."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from trl import GRPOConfig

from entropy_rft.entropy.rules import RULES, Rule
from entropy_rft.errors import UserTypeError, UserValueError, user_mistake, users
from entropy_rft.suggestions import did_you_mean
from entropy_rft.tags import THINK_END

NO_RULE = "none"
_PREFIX = "entropy_clip_"


def _rule_fields() -> type:
    """A dataclass with `entropy_clip` and every field of every rule as ``entropy_clip_FIELD``, in the rules' order."""
    summaries = "; ".join(f"{name!r}: {_summary(rule)}" for name, rule in RULES.items())
    about = f"What is done with single tokens of a batch. {summaries}; {NO_RULE!r}: no rule, which is TRL's GRPO."
    made: dict[str, tuple[str, Any, Any]] = {
        "entropy_clip": ("entropy_clip", str, field(default=NO_RULE, metadata={"help": about}))
    }
    for each in _options().values():
        words = each.metadata["text"] or each.metadata["choices"] is not None
        text = f"{each.metadata['help']} For {', '.join(_having(each.name))}. None: the rule's preset."
        name = _PREFIX + each.name
        made[name] = (name, str | None if words else float | None, field(default=None, metadata={"help": text}))
    return make_dataclass("RuleFields", made.values(), namespace={"__module__": __name__})


def _options() -> dict[str, Any]:
    """Every field of every rule, by its name; a name has the same meaning in all rules."""
    return {each.name: each for rule in RULES.values() for each in fields(rule)}  # type: ignore[arg-type]


def _having(option: str) -> list[str]:
    return [name for name, rule in RULES.items() if option in rule.__dataclass_fields__]  # type: ignore[attr-defined]


def _summary(rule: type[Rule]) -> str:
    """The first line of the rule's docstring, without the rule's name and the full stop."""
    return (rule.__doc__ or "").partition("\n")[0].partition(": ")[2].rstrip(".")


RuleFields: Any = _rule_fields()


@dataclass
class EntropyGRPOConfig(RuleFields, GRPOConfig):
    """:class:`trl.GRPOConfig` plus a rule that drops or penalises tokens, and phase entropies.

    `entropy_clip` names the rule, "none" (the default) or one of :data:`~entropy_rft.entropy.RULES`. Each field of a
    rule is here with ``entropy_clip_`` before its name, such as `entropy_clip_mu_low`; None is the rule's
    preset. Every field of :class:`trl.GRPOConfig` keeps its name, default and meaning.

    A dropped token's advantage becomes 0: it leaves the policy gradient, and stays in the denominator of the loss. (The
    authors' released code removes dropped tokens from the loss mask. That shrinks a token-mean denominator, and raises
    the weight of every other token. Here a token's weight does not depend on which others are dropped, and the rule
    has the same effect with each `loss_type`.)

    "kl_cov" drops no token: it adds a penalty to the loss of some. With a single update for each generation that
    penalty is 0 and the rule does nothing; the trainer then warns.

    With several updates from one generation (`num_iterations` above 1, or more steps per generation than accumulation
    steps) the rule and the predicted change use the statistics of the policy that sampled, as the authors' code does,
    not of the one that the update starts from. `entropy_clip_refresh` computes them again before each later update.

    `entropy_audit_steps` costs, on each audited step, one forward pass without a gradient over the step's batch. That
    is about a quarter of the cost of the loss and its gradient, and little compared with the generation. It also costs
    the memory of the batch's inputs until then, and the pass over the old policy where nothing else needs it. The
    updates are those of a run without it.

    The metrics are ``entropy/measured_change`` (nats per token), and over the tokens of the batch
    ``entropy/audit_slope`` (measured change per unit logit step that was predicted: the effective step size) and
    ``entropy/audit_correlation``. The predicted and the measured change are also logged in parts, by the sign of the
    advantage (``entropy/measured_change/positive``, ``/negative``, ``/zero``) and by phase (``/thinking``, ``/answer``,
    ``/other``); the parts of each kind add up to the whole. Tokens share their parameters and Adam rescales the
    gradient, so the slope is not constant, and the correlation is below 1 for small steps too. In bfloat16 the change
    of one step can be smaller than the rounding error: average over many steps. Dropout, also LoRA's, has the same
    masks in both passes: a step that changes no weight measures a change of exactly 0.

    `entropy_lens_steps` divides these changes by kinds of tokens, for ``entropy-rft inspect``, in ``lens.jsonl`` in
    `output_dir`. `entropy_lens_tokens` also stores parts of prompts and completions as text there.
    """

    think_end_token: str = field(
        default=THINK_END,
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
            "help": "With transformers' own generation: finished completions are removed from the batch, so that the "
            "longest one does not keep all others in it. Draws other random numbers than TRL does. No effect with "
            "other ways to generate, and with sharded weights."
        },
    )
    entropy_audit_steps: int = field(
        default=0,
        metadata={
            "help": "Every N steps, measure the step's entropy change, to compare it with the predicted one, by one "
            "more forward pass over its batch after the update. 0: never."
        },
    )
    entropy_lens_steps: int = field(
        default=0,
        metadata={
            "help": "Every N steps, record from which tokens the predicted entropy change comes, and what the rule "
            "drops of it; `entropy-rft inspect` shows it. Costs the pass over the old policy where nothing else needs "
            "it. 0: never."
        },
    )
    entropy_lens_tokens: int = field(
        default=0,
        metadata={
            "help": "On those steps, also store the N tokens with the most negative and the N with the most positive "
            "predicted change, with 20 tokens before and after each as text. The file then holds parts of prompts and "
            "completions. 0: none."
        },
    )

    entropy_clip_refresh: bool = field(
        default=False,
        metadata={
            "help": "Before each later update from the same generation, compute the statistics of the rule and the "
            "prediction again, for the policy that this update starts from. Costs one pass without a gradient for "
            "each such update. TRL's old log-probabilities do not change."
        },
    )

    def __post_init__(self) -> None:
        self.build_entropy_clip()  # first, so that a mistake here is named before anything else is set up
        unused = [_PREFIX + name for name in _options() if getattr(self, _PREFIX + name) is not None]
        if unused and self.entropy_clip == NO_RULE:
            warnings.warn(
                f"{', '.join(sorted(unused))}: no effect: entropy_clip is none; set it to one of {', '.join(RULES)}",
                stacklevel=3,
            )
        _check_trls_fields(self)
        if not isinstance(self.think_end_token, str) or not self.think_end_token:
            raise UserValueError(f"think_end_token must be a non-empty string, got {self.think_end_token!r}")
        if not isinstance(self.entropy_clip_refresh, bool):
            raise UserTypeError(f"entropy_clip_refresh must be true or false, got {self.entropy_clip_refresh!r}")
        for name, counted in _OWN_COUNTS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserTypeError(f"{name} must be a number of {counted}, got {value!r}")
            if value < 0:
                raise UserValueError(f"{name} must be at least 0 (never), got {value}")
        if self.entropy_lens_tokens and not self.entropy_lens_steps:
            raise UserValueError(
                f"entropy_lens_tokens is {self.entropy_lens_tokens}, but entropy_lens_steps is 0: set it too, such as "
                "10 to record every tenth step"
            )
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
            for name, value in given.items():  # not used, but still checked
                RULES[_having(name)[0]](**{name: value})
        except (ValueError, TypeError) as error:
            # The rule's message has its own name of the field; a recipe has the name with this prefix.
            raise user_mistake(error, _PREFIX) from None
        return None

    @classmethod
    def from_grpo(cls, config: GRPOConfig) -> EntropyGRPOConfig:
        """A copy of a ready :class:`trl.GRPOConfig` with this class's defaults added.

        Raises:
            TypeError: for anything else, also for a subclass of it.
        """
        if type(config) is not GRPOConfig:
            raise UserTypeError(f"args must be an EntropyGRPOConfig or a trl.GRPOConfig, got {type(config).__name__}")
        # Not by the constructor: it refuses some of the fields that TRL has already resolved in `config`.
        upgraded = copy.copy(config)
        upgraded.__class__ = cls
        return upgraded

    def switched_on(self) -> str:
        """One line for a user who gave a :class:`trl.GRPOConfig`: which rule the trainer uses, and how to change it."""
        rule = self.build_entropy_clip()
        if rule is None or rule.idle:
            return (
                "args is a plain GRPOConfig: no entropy rule is switched on, so the run is TRL's GRPO; "
                f"EntropyGRPOConfig(entropy_clip=...) switches one on: {', '.join(RULES)}"
            )
        set_to = ", ".join(f"{name}={value!r}" for name, value in vars(rule).items() if not name.startswith("_"))
        return (
            f"args is a plain GRPOConfig: the rule {self.entropy_clip} is switched on ({set_to}); "
            f"EntropyGRPOConfig(entropy_clip={NO_RULE!r}) is TRL's GRPO"
        )


_OWN_COUNTS = {"entropy_audit_steps": "steps", "entropy_lens_steps": "steps", "entropy_lens_tokens": "tokens"}

# TRL checks these only after the first generation, in the first loss or with the first rewards, or divides by them.
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
        if words:  # empty where TRL's source is missing or written differently; then TRL checks the value
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
    from trl import GRPOTrainer  # takes seconds, so not for the default words

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
