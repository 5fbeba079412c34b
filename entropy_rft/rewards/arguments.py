"""The arguments that a recipe gives a reward, checked by name and kind before the reward is made."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from entropy_rft.errors import UserValueError
from entropy_rft.rewards.parameters import CALLED_WITH, FROM_THE_TRAINER
from entropy_rft.suggestions import did_you_mean

_KINDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def signature_of(target: Callable[..., Any]) -> inspect.Signature:
    """The signature, with annotations as types where they can be evaluated, else as text."""
    try:
        return inspect.signature(target, eval_str=True)
    except ValueError:  # written in C
        return inspect.Signature([inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)])
    except Exception:  # an annotation that only a type checker can evaluate
        return inspect.signature(target)


def is_reward_function(target: Callable[..., Any]) -> bool:
    """Whether the trainer can call `target` itself; otherwise it is what makes a reward: a class or a factory.

    A reward function names some of the keywords that TRL calls it with, or takes any keyword.
    """
    if inspect.isclass(target):
        return False
    parameters = signature_of(target).parameters.values()
    named = any(p.name in CALLED_WITH for p in parameters)
    return named or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def checked_arguments(
    target: Callable[..., Any], label: str, arguments: Mapping[str, Any], *, open_ended: bool
) -> dict[str, Any]:
    """`arguments` as `target` takes them: known by name, and of the annotated kind.

    Args:
        target: a reward function, a class or a factory.
        label: what the messages call it.
        arguments: as the recipe gives them.
        open_ended: whether a target that takes any keyword may be given ones that it does not name.

    Raises:
        ValueError: for an argument that is unknown, missing or of another kind, naming it and the fix.
    """
    parameters = signature_of(target).parameters
    takes_any = open_ended and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    makes = not is_reward_function(target)
    # What a reward function names without a default is a column of the data set.
    known = [
        p.name
        for p in parameters.values()
        if p.kind in _NAMED and (makes or (p.name not in FROM_THE_TRAINER and (open_ended or p.default is not p.empty)))
    ]
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if not makes and name in FROM_THE_TRAINER:
            raise UserValueError(f"rewards: {label} gets {name} from the trainer: leave it out")
        if name in known:
            found[name] = _fitting(value, parameters[name].annotation, label, name)
        elif takes_any and not did_you_mean(name, known):
            found[name] = value
        else:
            has = f"its arguments: {', '.join(known)}" if known else "it has none"
            raise UserValueError(f"rewards: {label} has no argument {name!r}{did_you_mean(name, known)} ({has})")
    if makes:
        missing = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in found]
        if missing:
            key = "path" if ":" in label else "name"
            example = ", ".join(f"{name}: ..." for name in missing)
            raise UserValueError(f"rewards: {label} needs {' and '.join(missing)}: write {{{key}: {label}, {example}}}")
    return found


def _fitting(value: Any, annotation: Any, label: str, name: str) -> Any:
    """`value` of the annotated kind, ``1e-3`` (a text to YAML) as a number; kinds not in `_KINDS` are not checked."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = list(typing.get_args(annotation)) if union else [annotation]
    if value is None and types.NoneType in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not types.NoneType]
    elements = typing.get_args(kinds[0]) if len(kinds) == 1 and typing.get_origin(kinds[0]) is list else ()
    if len(elements) == 1 and elements[0] in _KINDS:
        if not isinstance(value, list):
            raise UserValueError(f"rewards: {label}: {name} must be a list, got {value!r}")
        return [_fitting(item, elements[0], label, f"{name}[{i}]") for i, item in enumerate(value)]
    if not kinds or any(kind not in _KINDS for kind in kinds):
        return value
    for kind in kinds:
        if (found := _as(kind, value)) is not None:
            return found
    wanted = " or ".join(_KINDS[kind] for kind in kinds)
    raise UserValueError(f"rewards: {label}: {name} must be {wanted}, got {value!r}")


def _as(kind: type, value: Any) -> Any:
    if type(value) is kind:
        return value
    if kind not in (int, float) or isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if kind is float:
        return number
    return int(number) if number.is_integer() else None
