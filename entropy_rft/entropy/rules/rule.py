"""The interface of a rule: a frozen dataclass with a name, its own fields, and one decision about a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar

import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from entropy_rft.entropy.rules.whole_batch import Advantages
from entropy_rft.entropy.statistics import TokenStatistics

Term = Callable[[Float[Tensor, " tokens"], Float[Tensor, " tokens"]], Float[Tensor, " tokens"]]
"""From ``log π`` and ``log π_old`` of each token ``(N,)`` to a number that is added to its loss, before its weight."""


@dataclass(frozen=True)
class Penalty:
    """What a rule adds to the loss of single tokens: ``weight · term(log π, log π_old)``.

    The trainer adds it where TRL adds its own KL term: after the ratio, its clipping and the masks, before the loss is
    averaged as `loss_type` says. It leaves it out in the first update of a generation, see `term`.

    Attributes:
        weight: the shape of the mask. 0 where nothing is added, and where no token is valid.
        term: a distance of the policy that is trained from the one that sampled. The term and its gradient must be 0
            where both are the same.
    """

    weight: Float[Tensor, "batch time"]
    term: Term


@dataclass(frozen=True)
class Decision:
    """What a rule decided for one batch.

    Attributes:
        keep: bool, the shape of the mask. False only where a valid token is dropped.
        metrics: 0-dim tensors by name, of the whole batch; the trainer logs each as ``entropy_clip/NAME``.
        penalty: what is added to the loss; None for a rule that only drops tokens. A rule either always has one or
            never.
    """

    keep: Bool[Tensor, "batch time"]
    metrics: Mapping[str, Float[Tensor, ""]]
    penalty: Penalty | None = None


class Rule(ABC):
    """Chooses the tokens of an optimisation batch that leave the policy gradient, or whose loss gets a penalty.

    A rule is one module of this package with one subclass: a frozen dataclass whose fields are made by :func:`option`.
    Its defaults are its preset. The first line of its docstring says what it does, in the command line's help too.
    The trainer's configuration has each field as ``entropy_clip_FIELD``.
    """

    name: ClassVar[str]
    later_updates_only: ClassVar[bool] = False
    """True for a rule that does nothing in the first update of a generation."""

    @property
    def idle(self) -> bool:
        """True where the fields leave the rule nothing to do in any batch; the run is then one without a rule."""
        return False

    @abstractmethod
    def decide(
        self,
        statistics: TokenStatistics,
        advantages: Advantages,
        mask: Shaped[Tensor, "batch time"],
        group: dist.ProcessGroup | None = None,
    ) -> Decision:
        """Apply the rule to a whole batch.

        Args:
            statistics: of the policy that the step starts from, ``(B, T)``. (In the trainer: of the policy that
                sampled, also for later updates from the same generation, unless `entropy_clip_refresh` is set.)
            advantages: ``(B,)`` or ``(B, T)``.
            mask: ``(B, T)``, nonzero = valid.
            group: the processes that hold the other parts of the batch; ``None`` when this one holds all of it. Each
                must call, even one without a valid token.

        Raises:
            ValueError: for tensors whose shapes do not fit.
        """

    def keep_mask(
        self,
        statistics: TokenStatistics,
        advantages: Advantages,
        mask: Shaped[Tensor, "batch time"],
        group: dist.ProcessGroup | None = None,
    ) -> Bool[Tensor, "batch time"]:
        """``decide(...).keep``: bool ``(B, T)``, False only where a valid token is dropped."""
        return self.decide(statistics, advantages, mask, group).keep

    def state_dict(self) -> dict[str, Any]:
        """The state that a rule keeps between batches, as plain JSON values; it is in the trainer's checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most rules have no state
        """Continue from a state of :meth:`state_dict`."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # every rule is a dataclass
            _check(each.name, getattr(self, each.name), each.metadata)


def option(
    help: str,
    *,
    default: Any = MISSING,
    choices: Sequence[str] | None = None,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    optional: bool = False,
    text: bool = False,
) -> Any:
    """A field of a rule, with its help and what it may be; a number where there are no `choices`.

    Args:
        help: one sentence for the command line.
        default: the preset.
        choices: the words it may be.
        above, at_least, at_most: bounds of a number.
        optional: may also be ``None``.
        text: a number or a text, which the rule itself reads and checks.
    """
    about = {
        "help": help,
        "choices": choices,
        "above": above,
        "at_least": at_least,
        "at_most": at_most,
        "optional": optional,
        "text": text,
    }
    return field(metadata=about) if default is MISSING else field(default=default, metadata=about)


def _check(name: str, value: Any, about: Mapping[str, Any]) -> None:
    if about["text"]:
        return
    if about["choices"] is not None:
        if value not in about["choices"]:
            raise ValueError(f"{name} must be one of {', '.join(about['choices'])}, got {value!r}")
        return
    if value is None and about["optional"]:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number{' or None' * about['optional']}, got {value!r}")
    number = float(value)  # written as what must hold, so that NaN is refused
    if about["above"] is not None and not number > about["above"]:
        raise ValueError(f"{name} must be above {about['above']}, got {value}")
    if about["at_least"] is not None and not number >= about["at_least"]:
        raise ValueError(f"{name} must be at least {about['at_least']}, got {value}")
    if about["at_most"] is not None and not number <= about["at_most"]:
        raise ValueError(f"{name} must be at most {about['at_most']}, got {value}")
