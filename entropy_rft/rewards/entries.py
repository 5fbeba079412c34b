"""One entry of a recipe's `rewards`: a reward's name, and its arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from entropy_rft.errors import UserValueError
from entropy_rft.files import read_yaml
from entropy_rft.suggestions import did_you_mean

CORRECTNESS = "correctness"
"""The argument of a reward of this package that is an entry itself."""

_FORMS = "a name, module:function, or a mapping {name: ..., its arguments} or {path: module:function, its arguments}"
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # as in 1e-3, which YAML reads as text


@dataclass(frozen=True)
class RewardEntry:
    """A reward as a recipe asks for it.

    Attributes:
        target: a name of `reward_names`, or ``module:function``.
        arguments: of the reward, as the recipe gives them.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_path(self) -> bool:
        """Whether it is the user's own."""
        return ":" in self.target

    @classmethod
    def of(cls, value: Any) -> RewardEntry:
        """The entry that a recipe holds, or that the command line gives as text (YAML or JSON).

        Raises:
            ValueError: for anything else; the message shows it and what an entry is.
        """
        if isinstance(value, RewardEntry):
            return value
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = _mapping(value)
        if isinstance(value, str) and value:
            return cls(value)
        if not isinstance(value, Mapping):
            raise UserValueError(f"rewards: {value!r} is no reward: give {_FORMS}")
        return cls._of_mapping(value)

    @classmethod
    def _of_mapping(cls, value: Mapping[Any, Any]) -> RewardEntry:
        keys = [key for key in ("name", "path") if key in value]
        if len(keys) != 1:
            several = "both name and path" if keys else "neither name nor path"
            near = "" if keys else next((near for key in value if (near := did_you_mean(key, ("name", "path")))), "")
            raise UserValueError(f"rewards: {dict(value)!r} has {several}{near} (give {_FORMS})")
        (key,) = keys
        target = value[key]
        if not isinstance(target, str) or not target or (":" in target) != (key == "path"):
            other = {
                "name": "a name (your own is path: module:function)",
                "path": "module:function (a name is name: ...)",
            }
            raise UserValueError(f"rewards: {key} must be {other[key]}, got {target!r}")
        arguments = {name: argument for name, argument in value.items() if name != key}
        for name in arguments:
            if not isinstance(name, str) or not name.isidentifier():
                raise UserValueError(f"rewards: {target} cannot have an argument called {name!r}")
        return cls(target, arguments)

    def plain(self) -> str | dict[str, Any]:
        """The same as a recipe holds it, in the shortest form: without arguments it is the name alone."""
        if not self.arguments:
            return self.target
        arguments = dict(self.arguments)
        if not self.is_path and isinstance(arguments.get(CORRECTNESS), str | Mapping):
            arguments[CORRECTNESS] = RewardEntry.of(arguments[CORRECTNESS]).plain()
        return {"path" if self.is_path else "name": self.target, **arguments}


def entries(value: Any) -> list[RewardEntry]:
    """The entries of a recipe's `rewards`: a list of them, or one.

    Raises:
        ValueError: naming the first that is no entry.
    """
    return [RewardEntry.of(one) for one in (value if isinstance(value, list | tuple) else [value])]


def compared(value: Any) -> Any:
    """`rewards` in the form for comparing two recipes: the shortest, with numbers where YAML read them as text.

    What is no list of entries is returned as it is.
    """
    try:
        return _numbers([entry.plain() for entry in entries(value)])
    except ValueError:
        return value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _mapping(text: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise UserValueError(f"rewards: {text!r} is no mapping: {' '.join(str(error).split())}") from error
