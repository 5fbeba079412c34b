"""reasoning-gym's generators: by name, with settings and curriculum levels that are checked. Imports no torch.

Whatever is wrong with a name, a level or a setting is the user's mistake, in one line.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from collections.abc import Mapping
from typing import Any

from entropy_rft.errors import UserMistake, UserValueError
from entropy_rft.suggestions import did_you_mean

OURS = {"seed": "the task's own seed", "size": "limit"}
"""Fields of every generator's configuration that the task sets, and what to give instead."""

OPTIONS = (
    *("generator", "levels", "level_by", "threshold", "partial_credit"),
    *("instruction", "answer_format", "thinking"),
)
"""The task's own options; whatever else is given is a setting of the generator."""


def check_installed() -> None:
    """Import the package.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import reasoning_gym  # noqa: F401
    except ImportError as error:
        raise UserValueError(
            f"task 'reasoning_gym' needs the package reasoning-gym ({error}): "
            'pip install "entropy_rft[reasoning-gym]"'
        ) from error


def check_generator(generator: object) -> str:
    """`generator`, the name of one.

    Raises:
        ValueError: it is none; names the nearest.
    """
    from reasoning_gym.factory import DATASETS

    if generator is None:
        raise UserValueError("task 'reasoning_gym' needs its option generator, such as chain_sum")
    if not isinstance(generator, str) or generator not in DATASETS:
        raise UserValueError(f"reasoning-gym has no generator {generator!r}{did_you_mean(generator, DATASETS)}")
    return generator


def level_count(generator: str) -> int:
    """How many levels the generator's curriculum has; 0 without a curriculum."""
    from reasoning_gym.factory import CURRICULA

    if generator not in CURRICULA:
        return 0
    return max((len(attribute.levels) for attribute in CURRICULA[generator]().attributes.values()), default=0)


def check_level(generator: str, level: object) -> int:
    """`level`, one of the generator's curriculum.

    Raises:
        ValueError: the generator has no curriculum, or not this level.
    """
    count = level_count(generator)
    if not count:
        raise UserValueError(f"levels: generator {generator!r} has no curriculum, so no levels: leave levels out")
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < count:
        raise UserValueError(f"levels: generator {generator!r} has the levels 0 to {count - 1}, not {level!r}")
    return level


def make(generator: str, settings: Mapping[str, Any], level: int | None, *, seed: int, size: int) -> Any:
    """The data set that a generator makes: ``data[i]`` is a question, ``data.score_answer(answer, entry)`` checks.

    Args:
        settings: fields of the generator's configuration; the others keep their defaults.
        level: of the generator's curriculum. What a curriculum gives as a range from easy to hard is narrowed to the
            level's own end, so that a level does not hold the questions of easier ones.
        seed: of question 0; question i has ``seed + i``.
        size: how many questions.

    Raises:
        ValueError: a setting is unknown (the nearest is named), is what `level` sets, or is refused.
    """
    from reasoning_gym.factory import DATASETS

    data_class, config_class = DATASETS[generator]
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name in settings:
        if name in OURS:
            raise UserValueError(f"{name!r} is no option of task 'reasoning_gym': give {OURS[name]}")
        if name not in fields:
            own = [name for name in fields if name not in OURS]
            raise UserValueError(
                f"generator {generator!r} has no setting {name!r}{did_you_mean(name, [*own, *OPTIONS])} (its settings: "
                f"{', '.join(own) or 'none'})"
            )
    values = {name: _typed(generator, fields[name], value) for name, value in settings.items()}
    by_level = {} if level is None else _level_values(generator, level)
    for name in values:
        if name in by_level:
            raise UserValueError(f"generator {generator!r}: {name} is what levels sets: leave one of them out")
    try:
        config = config_class(**values, **by_level, seed=seed, size=size)
        if hasattr(config, "validate"):
            config.validate()
        return data_class(config)
    except UserMistake:
        raise
    except Exception as error:  # a generator checks its settings by assert, ValueError, or not at all
        at = "" if level is None else f" at level {level}"
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items()) or "its defaults"
        raise UserValueError(
            f"generator {generator!r}{at} refuses its settings ({given}): "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def _level_values(generator: str, level: int) -> dict[str, Any]:
    """The fields of the configuration that a level of the curriculum sets."""
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import CURRICULA

    curriculum = CURRICULA[generator]()
    curriculum.set_global_level(level)
    # Only what the curriculum itself sets: a `dict` stands in for the configuration.
    curriculum._config_cls = dict
    return dict(curriculum.generate_configuration(context=DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)))


def _typed(generator: str, field: dataclasses.Field, value: Any) -> Any:
    """`value`, as YAML and JSON have it, in the type of the field's default."""
    if generator == "composite" and field.name == "datasets":
        return _parts(value)
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    try:
        return _like(default, value)
    except (ValueError, TypeError) as error:
        raise UserValueError(f"generator {generator!r}: {field.name} cannot be {value!r}: {error}") from error


def _like(default: Any, value: Any) -> Any:
    if isinstance(default, enum.Enum) and not isinstance(value, enum.Enum):
        kind = type(default)
        if value not in [member.value for member in kind]:
            raise UserValueError(f"it is one of {', '.join(str(member.value) for member in kind)}")
        return kind(value)
    if isinstance(default, (datetime.date, datetime.time)) and isinstance(value, str):
        return type(default).fromisoformat(value)
    if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
        return type(default)(**value)  # type: ignore[misc]  # an instance, not a class
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(default)(_like(default[0], item) if default else item for item in value)
    return value


def _parts(value: Any) -> list[Any]:
    """The generators that `composite` mixes."""
    from reasoning_gym.composite import DatasetSpec

    shape = "a list of mappings with the keys name, weight (1 when left out) and config (its settings)"
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, Mapping) for part in value):
        raise UserValueError(f"generator 'composite': datasets must be {shape}, not {value!r}")
    parts = []
    for part in value:
        if "name" not in part or set(part) - {"name", "weight", "config"}:
            raise UserValueError(f"generator 'composite': datasets must be {shape}, not {dict(part)!r}")
        settings = dict(part.get("config") or {})
        make(check_generator(part["name"]), settings, None, seed=0, size=1)
        parts.append(DatasetSpec(name=part["name"], weight=part.get("weight", 1.0), config=settings))
    return parts


def to_text(entry: Any) -> str:
    """An entry of a generator as JSON from which :func:`from_text` makes the same again.

    Verifiers compare tuples with tuples and look numbers up in mappings, for which JSON has no form of its own.
    """
    return json.dumps(_marked(entry), default=str)


def from_text(text: str) -> Any:
    """What :func:`to_text` was given."""
    return json.loads(text, object_hook=_unmarked)


def _marked(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"__tuple__": [_marked(item) for item in value]}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _marked(item) for key, item in value.items()}
        return {"__items__": [[_marked(key), _marked(item)] for key, item in value.items()]}
    return value


def _unmarked(value: dict[str, Any]) -> Any:
    if set(value) == {"__tuple__"}:
        return tuple(value["__tuple__"])
    return dict(value["__items__"]) if set(value) == {"__items__"} else value
