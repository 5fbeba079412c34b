"""The rewards that a recipe can name, and how a recipe's `rewards` becomes reward functions.

A further reward is a file beside this one, with a class, a factory or a function in it, and an entry in `OURS`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropy_rft.errors import UserMistake, UserValueError, user_mistake
from entropy_rft.rewards.arguments import checked_arguments, is_reward_function, signature_of
from entropy_rft.rewards.bound import bound
from entropy_rft.rewards.entries import CORRECTNESS, RewardEntry, entries
from entropy_rft.rewards.values import reward_name
from entropy_rft.suggestions import did_you_mean

Reward = Callable[..., Any]

TASK = "task"
"""The name of the task's own rewards."""

OURS = {"pear": "entropy_rft.rewards.pear:PEARReward"}

# TRL checks few of its arguments: below these its formulas divide by zero or have no meaning.
_LEAST = {"max_len": 1, "ngram_size": 1, "max_completion_len": 1, "soft_punish_cache": 0}


def catalogue() -> dict[str, str]:
    """Each name but `TASK`, and the ``module:attribute`` that it means: ours, and all of TRL's.

    TRL's ``think_format_reward`` is ``think_format``, and its ``get_cosine_scaled_reward`` ``cosine_scaled``.
    """
    from trl import rewards

    modules = {module.name for module in pkgutil.iter_modules(rewards.__path__)}
    names = sorted(set(rewards.__all__) - modules)
    trls = {name.removeprefix("get_").removesuffix("_reward"): f"trl.rewards:{name}" for name in names}
    return trls | OURS


def reward_names() -> tuple[str, ...]:
    """All names that a recipe's `rewards` can hold besides ``module:function``."""
    return (TASK, *OURS, *(name for name in catalogue() if name not in OURS))


def build_rewards(wanted: Any, task_rewards: Sequence[Reward], pear: Mapping[str, Any] | None = None) -> list[Reward]:
    """The reward functions that a recipe's `rewards` asks for, in that order.

    Two of the same name get different names in the logs: ``cosine_scaled_reward``, ``cosine_scaled_reward_2``.

    Args:
        wanted: a list of entries, see :meth:`RewardEntry.of`; each is a name of `reward_names` or ``module:function``,
            alone or with arguments. ``task`` means the task's own rewards. A class or a factory makes the reward from
            its arguments; a reward function gets them at each call, besides what the trainer gives it. `correctness`,
            an argument of ``pear``, is an entry too; by default it is the task's first reward.
        task_rewards: the task's reward functions; the first decides whether an answer is correct.
        pear: the arguments of ``pear`` that its entry does not give.

    Raises:
        ValueError: for a name or an argument that is unknown, naming the nearest, and for a value that is not allowed.
    """
    if not isinstance(wanted, str | Mapping) and not wanted:
        raise UserValueError(f"rewards is empty: name at least one of {', '.join(reward_names())}, or module:function")
    builder = _Builder(task_rewards, pear or {})
    made = [reward for entry in entries(wanted) for reward in builder.build(entry)]
    return _told_apart(made)


class _Builder:
    def __init__(self, task_rewards: Sequence[Reward], pear: Mapping[str, Any]) -> None:
        self.task_rewards = list(task_rewards)
        self.pear = dict(pear)

    def build(self, entry: RewardEntry) -> list[Reward]:
        if entry.target == TASK:
            if entry.arguments:
                raise UserValueError(
                    f"rewards: {TASK} has no argument {next(iter(entry.arguments))!r} (it has none: it means the "
                    "task's own rewards)"
                )
            return self.task_rewards
        if entry.is_path:
            return [_made(entry, entry.target, entry.arguments)]
        known = catalogue()
        if entry.target not in known:
            raise UserValueError(
                f"rewards: there is no reward {entry.target!r}{did_you_mean(entry.target, reward_names())} (known: "
                f"{', '.join(reward_names())}, or module:function)"
            )
        path = known[entry.target]
        arguments = dict(entry.arguments)
        if entry.target in OURS and CORRECTNESS in signature_of(_imported(path)).parameters:
            arguments[CORRECTNESS] = self._correctness(entry)
        given = self.pear if entry.target == "pear" else {}
        return [_made(entry, path, {**given, **arguments}, fields=given.keys() - arguments.keys())]

    def _correctness(self, entry: RewardEntry) -> Reward:
        value = entry.arguments.get(CORRECTNESS, TASK)
        found = self.build(RewardEntry.of(value))
        if not found:
            raise UserValueError(f"rewards: {entry.target} has nothing to wrap: the task has no reward of its own")
        return found[0]


def _made(
    entry: RewardEntry, path: str, arguments: Mapping[str, Any], fields: frozenset[str] | set[str] = frozenset()
) -> Reward:
    """The reward at `path` with `arguments`; those named in `fields` come from a recipe's fields ``pear_...``."""
    target, label = _imported(path), entry.target
    arguments = checked_arguments(target, label, arguments, open_ended=entry.is_path)
    for name, least in _LEAST.items():
        if path.startswith("trl.") and name in arguments and arguments[name] < least:
            raise UserValueError(f"rewards: {label}: {name} must be at least {least}, got {arguments[name]}")
    if is_reward_function(target):
        return bound(target, arguments) if arguments else target
    try:
        reward = target(**arguments)
    except UserMistake as error:  # our messages begin with the argument's name
        named = str(error).partition(" ")[0]
        raise user_mistake(error, f"{label}_" if named in fields else f"rewards: {label}: ") from error
    except Exception as error:
        if not entry.is_path and entry.target in OURS:
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserValueError(f"rewards: {label} cannot be made with {_shown(arguments)}: {said}") from error
    if not callable(reward):
        raise UserValueError(f"rewards: {label} makes {reward!r}, which is not callable")
    return reward


def _imported(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises
        if path in OURS.values():
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserValueError(f"rewards: {path!r} cannot be imported: {said}") from error
    if not callable(target):
        raise UserValueError(f"rewards: {path!r} is not callable")
    return target


def _told_apart(rewards: list[Reward]) -> list[Reward]:
    """Number rewards of the same name: TRL logs a reward under its name, and would mix them."""
    known: dict[str, list[Reward]] = {}
    for index, reward in enumerate(rewards):
        name = reward_name(reward)
        others = known.setdefault(name, [])
        function = inspect.isroutine(reward)
        if others and not (function and reward in others) and hasattr(reward, "__dict__"):
            # A function is not ours to rename, so it is wrapped. (The same one twice has one value to log.)
            rewards[index] = renamed = bound(reward, {}) if function else copy.copy(reward)
            renamed.__name__ = f"{name}_{len(others) + 1}"
        others.append(reward)
    return rewards


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in arguments.items()) or "no arguments"
