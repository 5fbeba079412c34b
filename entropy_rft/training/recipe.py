"""A recipe: all settings of one training run, from a YAML file and flags that override it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, cast

from trl import ModelConfig, TrlParser

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.errors import UserValueError, users
from entropy_rft.files import parse_yaml, switched_off_or_on, text_of
from entropy_rft.rewards.catalogue import TASK, reward_names
from entropy_rft.rewards.entries import entries
from entropy_rft.suggestions import did_you_mean
from entropy_rft.tasks import TASK_NAMES
from entropy_rft.training.config import EntropyGRPOConfig
from entropy_rft.training.doctor import DoctorArguments
from entropy_rft.training.launch import (
    ACCELERATE_CONFIG,
    check_engine,
    find_recipe,
    join_deepspeed,
    warn_of_left_builds,
)

# Fields that take one word as a flag, and may take a list in a recipe.
_ALSO_LISTS = frozenset({"report_to", "optim_target_modules"})

# Fields whose value is not written to any file.
SECRETS = frozenset({"hub_token"})


@dataclass
class TaskArguments:
    """What to train on: the questions, and the rewards that score their answers."""

    task: str = field(
        default=DEFAULT_TASK, metadata={"help": f"Where the questions come from: one of {', '.join(TASK_NAMES)}."}
    )
    task_path: str | None = field(default=None, metadata={"help": "Local JSON Lines file with the task's questions."})
    task_split: str = field(default="train", metadata={"help": "The task's split to train on."})
    task_limit: int | None = field(default=None, metadata={"help": "At most this many questions."})
    task_options: dict | str | None = field(
        default=None, metadata={"help": "Further options of the task, as a mapping (JSON on the command line)."}
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "The task's split to evaluate on during training (see eval_strategy)."}
    )
    eval_limit: int | None = field(default=None, metadata={"help": "At most this many questions of eval_split."})
    # For argparse a list of texts; an entry with arguments becomes a mapping, see `RewardEntry.plain`.
    rewards: list[str] = field(
        default_factory=lambda: [TASK],
        metadata={
            "help": f"{', '.join(reward_names())}, or module:function of your own; with arguments "
            "{name: NAME, argument: value} or {path: module:function, argument: value} (on the command line as one "
            "word, YAML or JSON)."
        },
    )
    pear_alpha: float = field(
        default=1.0,
        metadata={"help": "PEAR: weight of the answer's entropy. An entry {name: pear, alpha: ...} overrides it."},
    )
    pear_score: float = field(default=1.0, metadata={"help": "PEAR: reward of a correct answer without penalty."})
    pear_format_score: float = field(default=0.0, metadata={"help": "PEAR: reward of an answer that is not correct."})
    pear_floor: float | None = field(
        default=None, metadata={"help": "PEAR: smallest reward of a correct answer; none as published."}
    )

    def __post_init__(self) -> None:
        self.rewards = cast(list[str], [entry.plain() for entry in entries(self.rewards)])
        if isinstance(self.task_options, str):
            try:
                self.task_options = json.loads(self.task_options)
            except ValueError as error:
                raise UserValueError(
                    f"task_options must be a JSON mapping, got {self.task_options!r}: {error}"
                ) from error
        if not isinstance(self.task_options, dict | None):
            raise UserValueError(f"task_options must be a mapping, got {self.task_options!r}")

    @property
    def pear(self) -> dict[str, Any]:
        """The arguments of :class:`~entropy_rft.PEARReward` that the reward's own entry does not give."""
        return {name: getattr(self, f"pear_{name}") for name in ("alpha", "score", "format_score", "floor")}


@dataclass
class ResumeArguments:
    """How a run is resumed, besides `resume_from_checkpoint`."""

    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Resume although this recipe differs from the run's: the change and its step are recorded in "
            "run.json, and the recipe before is kept. Without it a difference is an error."
        },
    )


@dataclass
class Recipe:
    """One run's arguments, and which of them were given rather than left at their default."""

    task: TaskArguments
    training: EntropyGRPOConfig
    model: ModelConfig
    given: dict[str, Any]
    resume_with_changes: bool = False
    doctor: DoctorArguments = field(default_factory=DoctorArguments)

    def resolved(self) -> dict[str, Any]:
        """The flat mapping that repeats the run: all fields that were given, and this package's own fields.

        Secrets, the recipe's ``env`` and the checkpoint to resume from are left out.
        """
        own = (self.task, self.training)
        names = {f.name for f in fields(TaskArguments)} | set(EntropyGRPOConfig.__annotations__) | _ALWAYS
        values = {name: getattr(part, name) for part in own for name in sorted(names) if hasattr(part, name)}
        values["model_name_or_path"] = self.model.model_name_or_path
        return {
            name: _plain(value)
            for name, value in (values | self.given).items()
            if value is not None and name not in SECRETS and name != "resume_from_checkpoint"
        }


def _plain(value: Any) -> Any:
    """A field as YAML can hold it: transformers turns some, given as flags, into objects of its own."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


_ALWAYS = {"seed", "learning_rate", "max_steps", "num_train_epochs", "num_generations", "temperature", "loss_type"}
_ALWAYS |= {"max_completion_length", "per_device_train_batch_size", "gradient_accumulation_steps", "output_dir"}


def without_secrets(argv: Sequence[str]) -> list[str]:
    """A command line that may be stored: the values of secret flags are left out."""
    words: list[str] = []
    hide = False
    for word in argv:
        name, equals, _ = word.partition("=")
        secret = name.lstrip("-").replace("-", "_") in SECRETS
        words.append("..." if hide else f"{name}=..." if secret and equals else word)
        hide = secret and not equals
    return words


class RecipeParser(TrlParser):
    """TRL's parser, with one-line errors that name the nearest key.

    Raises:
        ValueError: for a missing or malformed file, an unknown key or flag, or a value of the wrong kind.
    """

    def __init__(self) -> None:
        super().__init__(
            [TaskArguments, EntropyGRPOConfig, ModelConfig, ResumeArguments, DoctorArguments],
            prog="entropy-rft train",
            allow_abbrev=False,
            epilog="--config RECIPE reads these fields from a file. --accelerate_config NAME_OR_FILE (ddp, zero2, "
            "zero3, fsdp2, multi_node) starts several processes, and accepts the flags of `accelerate launch` too, "
            "such as --num_processes.",
        )

    def error(self, message: str) -> NoReturn:
        raise UserValueError(message)

    def parse(self, argv: Sequence[str]) -> Recipe:
        """``["--config", "recipe.yaml", "--max_steps", "5"]`` as a :class:`Recipe`."""
        flags, options, environment = self._read_all(argv)
        if environment:
            _set_environment(environment)
        warn_of_left_builds(options.get("deepspeed") or any(word.startswith("--deepspeed") for word in flags))
        try:
            # TRL's and transformers' checks of the fields, and of the device that they ask for.
            with users(ValueError, OSError, ImportError, RuntimeError):
                task, training, model, resume, doctor = self.parse_args_into_dataclasses(args=flags)
        except ValueError:
            check_engine()  # a batch too small for one process is no mistake when there should be several
            raise
        check_engine()
        join_deepspeed(training)
        flagged = {word[2:].partition("=")[0].replace("-", "_") for word in flags if word.startswith("--")}
        flagged |= {name[3:] for name in flagged if name.startswith("no_")}  # --no_bf16 gives bf16
        given: dict[str, Any] = {}
        for part in (task, training, model, doctor):
            given |= {f.name: getattr(part, f.name) for f in fields(part) if f.name in flagged}
            given |= {f.name: options[f.name] for f in fields(part) if f.name in options and f.name not in flagged}
        if "rewards" in given:
            given["rewards"] = task.rewards  # in one form, however it was written
        return Recipe(task, training, model, given, resume.resume_with_changes, doctor)

    def check(self, argv: Sequence[str]) -> None:
        """Find the mistakes that can be found without a device, before processes with devices are started."""
        flags, _, _ = self._read_all(argv)
        self.parse_args(flags)

    @property
    def flags(self) -> list[str]:
        """All flags that are fields of a recipe."""
        return [option for action in self._actions for option in action.option_strings if option[:2] == "--"]

    def _read_all(self, argv: Sequence[str]) -> tuple[list[str], dict[str, Any], Any]:
        path, flags = _take_config(argv)
        self._check_flags(flags)
        options = self._read(path) if path is not None else {}
        environment = options.pop("env", None)
        self._check_options(options, path)
        with users(ValueError):  # TRL's
            self.set_defaults_with_config(**options)
        return flags, options, environment

    def _read(self, path: str) -> dict[str, Any]:
        text = text_of(_recipe_file(path), "recipe")
        options = parse_yaml(text, f"recipe {path!r}")
        if not isinstance(options, dict):
            raise UserValueError(f"recipe {path!r} must be a mapping of fields to values")
        self._mean_words(options, switched_off_or_on(text))
        return options

    def _mean_words(self, options: dict[str, Any], written: dict[str, str]) -> None:
        """Give the fields that take words the word that YAML read as a truth value, as in ``save_strategy: no``."""
        texts = self._texts()
        for name, word in written.items():
            off = options.get(name) is False
            if name not in texts:
                continue
            if name == "report_to" and off:  # the strategy fields call it "no"
                options[name] = "none"
            elif name.endswith("_strategy") and off:
                options[name] = "no"
            elif word.lower() not in ("true", "false"):  # some fields take true and false as well as words
                options[name] = word

    def _check_flags(self, flags: Sequence[str]) -> None:
        known = self.flags
        for word in flags:
            option = word.partition("=")[0]
            if option in ("--num_processes", "--config_file", "--mixed_precision", "--num_machines"):
                raise UserValueError(f"{option} is for `accelerate launch`: give {ACCELERATE_CONFIG} too")
            if word.startswith("--") and option not in known:
                raise UserValueError(f"unknown option {option}{did_you_mean(option, known)}")

    def _types(self) -> dict[str, str]:
        return {f.name: str(f.type) for part in self.dataclass_types for f in fields(part)}

    def _texts(self) -> set[str]:
        """The fields that take text or a word of a list, and no number."""
        kinds = self._types().items()
        words = ("str", "Strategy", "SchedulerType", "OptimizerNames")
        return {n for n, kind in kinds if any(w in kind for w in words) and "int" not in kind and "float" not in kind}

    def _check_options(self, options: dict[str, Any], path: str | None) -> None:
        actions = {action.dest: action for action in self._actions if action.dest != "help"}
        types = self._types()
        required = {name for name, kind in types.items() if "None" not in kind and "Optional" not in kind}
        texts = self._texts()
        for name, value in options.items():
            if name not in actions:
                raise UserValueError(f"recipe {path!r}: unknown key {name!r}{did_you_mean(name, actions)}")
            # argparse parses a string like a flag's. TRL does not check other values, so they are checked here.
            action = actions[name]
            many = action.nargs in ("+", "*")
            if value is None and name in required:
                raise UserValueError(f"recipe {path!r}: {name} cannot be empty")
            if value is None or isinstance(value, dict) or (isinstance(value, list) and (many or name in _ALSO_LISTS)):
                continue
            if isinstance(value, int | float) and not isinstance(value, bool) and name in texts:
                options[name] = value = str(value)
            try:
                if isinstance(value, list):
                    raise UserValueError("a list")
                self._check_value(action, self._get_value(action, str(value)))
            except Exception as error:
                raise UserValueError(f"recipe {path!r}: {name} cannot be {value!r}: {_reason(error)}") from error
            if many:
                options[name] = [value]


def _recipe_file(path: str) -> Path:
    """The file of that name, or else the package's recipe of that name: ``tiny/clip_b.yaml``."""
    file = Path(path).expanduser()
    if not file.exists():
        with contextlib.suppress(ValueError):
            return find_recipe(path.removeprefix("recipes/"))
    return file


def _reason(error: Exception) -> str:
    return str(getattr(error, "message", error)).splitlines()[0]


def _take_config(flags: Sequence[str]) -> tuple[str | None, list[str]]:
    rest: list[str] = []
    path: str | None = None
    words = iter(flags)
    for word in words:
        if word == "--config":
            path = next(words, None)
            if path is None:
                raise UserValueError("--config needs the path of a recipe")
        elif word.startswith("--config="):
            path = word.partition("=")[2]
        else:
            rest.append(word)
    return path, rest


def _set_environment(environment: Any) -> None:
    if not isinstance(environment, dict):
        raise UserValueError("env must be a mapping of variables to values")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
