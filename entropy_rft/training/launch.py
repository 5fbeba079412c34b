"""Starts the processes of a run (`--accelerate_config`), and refuses launches that would not do what they ask for."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from entropy_rft.errors import UserValueError
from entropy_rft.suggestions import did_you_mean
from entropy_rft.training.build_locks import left_locks, message

ACCELERATE_CONFIG = "--accelerate_config"
USER_MISTAKE = 2

# Set for the processes that `Launch` starts: they pass the message about a user's mistake to it.
_LAUNCHED = "ENTROPY_RFT_LAUNCHED"
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_ENGINES = ("--multi_gpu", "--use_deepspeed", "--use_fsdp")


@dataclass(frozen=True)
class Launch:
    """``entropy-rft train --accelerate_config ddp --num_processes 2 --config recipe.yaml``, split into its parts.

    Attributes:
        config: accelerate's configuration file.
        launcher: flags of `accelerate launch`.
        training: flags of the recipe; a flag that both have is the recipe's.
    """

    config: Path
    launcher: list[str]
    training: list[str]

    @classmethod
    def of(cls, argv: Sequence[str], recipe_options: Sequence[str]) -> Launch | None:
        """None where `argv` has no ``--accelerate_config``.

        Raises:
            ValueError: for a configuration that does not exist, and for a flag that neither of them has.
        """
        if ACCELERATE_CONFIG not in {word.partition("=")[0] for word in argv}:
            return None
        config: str | None = None
        launcher: list[str] = []
        training: list[str] = []
        known = _launcher_parser()._option_string_actions
        words = iter(argv)
        for word in words:
            option, equals, value = word.partition("=")
            if option == ACCELERATE_CONFIG:
                config = value if equals else next(words, "")
            elif not word.startswith("--") or option in ("--config", *recipe_options):
                training.append(word)
            elif option in known:
                launcher.append(word)
                if not equals and known[option].nargs != 0:
                    launcher += _next(words)
            else:
                options = [name for name in known if name.startswith("--")]
                raise UserValueError(f"unknown option {option}{did_you_mean(option, [*recipe_options, *options])}")
        return cls(_find_config(config or ""), launcher, training)

    def run(self) -> int:
        """Start the processes and wait for them; returns the exit code of the one that failed first, or 0.

        Raises:
            ValueError: for a user's mistake, found here or by the processes.
        """
        import torch.distributed.run  # noqa: F401 - creates the loggers that are silenced below
        from accelerate.commands.launch import launch_command
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        command = ["--config_file", str(self.config), *self.launcher, "-m", "entropy_rft", "train", *self.training]
        args = _launcher_parser().parse_args(command)
        self._check(args)
        # The failed process's own output and `exit_code` report the same.
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        os.environ[_LAUNCHED] = "1"
        try:
            launch_command(args)
        except ChildFailedError as error:
            return exit_code(error)
        except SignalException as error:
            return 128 + int(error.sigval)
        except subprocess.CalledProcessError as error:  # its text is the whole command line, secrets included
            return error.returncode if error.returncode > 0 else 128 - error.returncode
        finally:
            del os.environ[_LAUNCHED]
        return 0

    def _check(self, args: Any) -> None:
        from accelerate.commands.config.config_args import load_config_from_file

        try:
            config = load_config_from_file(str(self.config))
        except Exception as error:  # an error of YAML, a missing key, an unknown key
            raise UserValueError(f"{ACCELERATE_CONFIG} {str(self.config)!r} cannot be used: {error}") from error
        if args.cpu:
            raise UserValueError(
                "--cpu makes accelerate start one process only; set use_cpu: true in the recipe instead"
            )
        processes = args.num_processes or config.num_processes
        kind = str(getattr(config.distributed_type, "value", config.distributed_type))
        one_process = kind in ("NO", "MULTI_CPU") and not getattr(config, "mpirun_config", None)
        if processes > 1 and one_process and not {word.partition("=")[0] for word in self.launcher} & {*_ENGINES}:
            raise UserValueError(
                f"{ACCELERATE_CONFIG} {str(self.config)!r}: accelerate starts one process for distributed_type {kind}, "
                f"but num_processes is {processes}; MULTI_GPU starts them all, without a GPU too"
            )


def leave_to_launcher(error: Exception) -> bool:
    """If a :class:`Launch` started this process, pass it the message, to be printed once; returns whether it did."""
    if _LAUNCHED not in os.environ or _ERROR_FILE not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return True


def check_engine() -> None:
    """Refuse to train where accelerate has set up less than the launch asked for; no check before it has set up.

    Raises:
        ValueError: naming the variable that asked, and what to do.
    """
    if not PartialState._shared_state:
        return
    state = PartialState()
    asked = os.environ.get("WORLD_SIZE", "1")
    if asked.isdecimal() and int(asked) > 1 and state.num_processes == 1:
        raise UserValueError(
            f"WORLD_SIZE is {asked}, but accelerate sees no GPU and would train {asked} independent copies; set "
            "use_cpu: true in the recipe to train together on the CPU"
        )
    on_cpu = state.device.type == "cpu"
    if on_cpu and _set("ACCELERATE_USE_FSDP"):
        raise UserValueError("FSDP needs a GPU: accelerate falls back to DDP on a CPU; launch with ddp, zero2 or zero3")
    if on_cpu and _set("ACCELERATE_USE_DEEPSPEED") and _set("ACCELERATE_USE_CPU"):
        raise UserValueError(
            "ACCELERATE_USE_CPU is set, with which accelerate runs DDP instead of DeepSpeed; unset it and set "
            "use_cpu: true in the recipe"
        )


def warn_of_left_builds(deepspeed: object) -> None:
    """Warn in one line, once for each machine, of locks for which a launch with DeepSpeed would wait forever.

    Args:
        deepspeed: the field of that name; accelerate's own setting counts too.
    """
    if not (deepspeed or _set("ACCELERATE_USE_DEEPSPEED")) or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    if locks := left_locks():
        print(f"entropy-rft: warning: {message(locks)}", file=sys.stderr, flush=True)


def join_deepspeed(training: TrainingArguments) -> None:
    """Give DeepSpeed the process group that accelerate has made on a CPU.

    On a GPU accelerate does it. On a CPU with the field `deepspeed`, DeepSpeed would otherwise load a ZeRO-3 model as
    if there were one process.
    """
    if training.deepspeed and training.device.type == "cpu" and training.world_size > 1:
        deepspeed = importlib.import_module("deepspeed")
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def engine(accelerator: Accelerator) -> str:
    """What runs the processes: ``single``, ``ddp``, ``zero1`` to ``zero3``, ``fsdp1`` or ``fsdp2``."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    if kind == DistributedType.FSDP:
        return f"fsdp{accelerator.state.fsdp_plugin.fsdp_version}"
    if kind == DistributedType.NO:
        return "single"
    return "ddp" if kind.value.startswith("MULTI_") else kind.value.lower()


def find_recipe(name: str) -> Path:
    """A recipe of the package: beside the package in a checkout, inside it in a wheel.

    Raises:
        ValueError: when there is none of that name.
    """
    for root in _roots():
        if (root / name).is_file():
            return root / name
    raise UserValueError(f"no recipe {name!r} came with the package")


def _roots() -> list[Path]:
    package = Path(__file__).parents[1]
    return [package / "recipes", package.parent / "recipes"]


def _find_config(name: str) -> Path:
    if name and (file := Path(name).expanduser()).is_file():
        return file
    shipped = {file.stem: file for root in _roots() for file in sorted((root / "accelerate").glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    raise UserValueError(
        f"{ACCELERATE_CONFIG} {name!r} is neither a file nor one of {', '.join(shipped)}{did_you_mean(name, shipped)}"
    )


def _launcher_parser() -> Any:
    from accelerate.commands.launch import launch_command_parser

    def refuse(message: str) -> NoReturn:
        raise UserValueError(message)

    parser = launch_command_parser()
    parser.error = refuse  # one line instead of a usage of hundreds of lines
    return parser


def _next(words: Iterator[str]) -> list[str]:
    word = next(words, None)
    return [] if word is None else [word]


def exit_code(error: Any) -> int:
    """The exit code for a torch ChildFailedError; prints what happened in one line."""
    for failure in error.failures.values():
        if failure.exitcode == USER_MISTAKE and (message := _left_message(failure)):
            raise UserValueError(message)
    # Processes that got SIGTERM because of the first failure come last. The timestamps are in whole seconds. Among
    # failures of one second, exit code 1 comes last: a process that has lost another one ends with it too.
    rank, failure = min(
        error.failures.items(),
        key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp, item[1].exitcode == 1),
    )
    code = failure.exitcode
    how = f"ended with exit code {code}" if code > 0 else f"was killed by {failure.signal_name()}"
    print(f"entropy-rft: process {rank} {how}; its output is above", file=sys.stderr)
    return code if code > 0 else 128 - code


def _left_message(failure: Any) -> str | None:
    try:
        message = json.loads(Path(failure.error_file).read_text(encoding="utf-8"))["message"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return message.partition(": ")[2]  # without the exception's name


def _set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
