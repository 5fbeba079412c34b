"""Explains in one line why a training ended early: the cause, the step, and the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import functools
import inspect
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import CodeType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from entropy_rft.rewards.values import WrongReward
from entropy_rft.run_files import CHECKPOINT, CHECKPOINT_MARKER
from entropy_rft.signals import sigterm_raises
from entropy_rft.training.checkpoints import last_complete

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_PEER_LOST = re.compile(
    r"connection (closed|reset|refused|was closed)|broken pipe|remote process exited|ncclRemoteError"
    r"|socket.*(closed|timeout)|timed out waiting",
    re.IGNORECASE,
)
_LOGGERS_SECONDS = 15
_NOT_FINITE = "probability tensor contains either"  # torch.multinomial, the first function that fails on NaN logits


class TrainingFailed(RuntimeError):
    """A training that ended for a reason outside this package; the message is one line.

    Attributes:
        exit_code: 2 where the cause is in the user's own code, 1 otherwise.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


class NothingLeft(Exception):
    """The checkpoint is already at the last step: the run was ended before it saved the final model."""


class StepsLeft(TrainerCallback):
    """Raises :class:`NothingLeft` if no steps are left: the trainer compares the count only after one more step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if 0 < state.max_steps <= state.global_step:
            raise NothingLeft


class FiniteWeights(TrainerCallback):
    """Ends a run whose update made a weight NaN or infinite, before the next checkpoint can replace a good one.

    It checks the weights, not the loss: the trainer replaces a NaN loss in its logs by earlier ones
    (``logging_nan_inf_filter``). With fp16 an infinite gradient is normal, since the scaler skips that update.
    DeepSpeed skips such an update with every dtype, and would continue without learning anything.
    """

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        step = state.global_step + 1
        if not args.fp16 and getattr(optimizer, "step_was_skipped", False):
            raise TrainingFailed(_not_finite(f"the gradients of step {step} are NaN or infinite", args))
        # A norm may overflow where no weight does; sums of zeros cannot. One number is copied to the host from each
        # device: with ZeRO-3's offload the small parameters stay on the GPU.
        sums: dict[torch.device, list[torch.Tensor]] = {}
        for parameter in model.parameters():
            weight = _local(parameter).detach()
            if parameter.requires_grad and weight.numel():
                sums.setdefault(weight.device, []).append((weight * 0).sum().float())
        if not all(torch.stack(zeros).sum().isfinite().item() for zeros in sums.values()):
            raise TrainingFailed(_not_finite(f"step {step} made weights NaN or infinite", args))


@contextmanager
def explained(trainer: Any) -> Iterator[None]:
    """Turn an error of a training into :class:`TrainingFailed` where the cause is known; raise others unchanged."""
    try:
        with sigterm_raises():
            yield
    except Exception as error:
        failure = _explain(error, trainer)
        if failure is None:
            raise
        raise failure from error


def _explain(error: Exception, trainer: Any) -> TrainingFailed | None:
    output_dir = Path(trainer.args.output_dir)
    step = trainer.state.global_step + 1
    text = str(error)
    if isinstance(error, TrainingFailed):
        return TrainingFailed(f"{error} {_where_to_go_on(output_dir)}", error.exit_code)
    if isinstance(error, WrongReward):
        return TrainingFailed(f"{text} (in step {step}) {_where_to_go_on(output_dir)}", exit_code=2)
    reward = _reward_in(error, trainer.reward_funcs, trainer.reward_func_names)
    if reward is not None:
        return TrainingFailed(
            f"rewards: {reward} raised {type(error).__name__} in step {step}: {text} (at {_place(error)}; "
            f"ENTROPY_RFT_TRACEBACK=1 shows the traceback) {_where_to_go_on(output_dir)}",
            exit_code=2,
        )
    if isinstance(error, RuntimeError) and dist.is_initialized() and _PEER_LOST.search(text):
        return TrainingFailed(
            f"another process of this run died; rank {dist.get_rank()} noticed in step {step} "
            f"({text.splitlines()[0][:160]}) {_where_to_go_on(output_dir)}"
        )
    checkpoint = output_dir / f"{CHECKPOINT}{trainer.state.global_step}"
    if checkpoint.is_dir() and not (checkpoint / CHECKPOINT_MARKER).is_file():  # older ones were renamed
        reason = _storage_reason(error, output_dir) or f"{type(error).__name__}: {text}"
        if trainer.args.should_save:
            shutil.rmtree(checkpoint, ignore_errors=True)  # of no use, and takes space on a full disk
        return TrainingFailed(f"cannot write {checkpoint.name} in {output_dir}: {reason} {_where_to_go_on(output_dir)}")
    storage = _storage_error(error)
    if storage is not None:
        where = storage.filename or output_dir
        return TrainingFailed(f"cannot write {where}: {storage.strerror} {_where_to_go_on(output_dir)}")
    if "No space left on device" in text:
        return TrainingFailed(f"cannot write to {output_dir}: No space left on device {_where_to_go_on(output_dir)}")
    if _NOT_FINITE in text:
        message = _not_finite(f"the model's logits are NaN or infinite in step {step}", trainer.args)
        return TrainingFailed(f"{message} {_where_to_go_on(output_dir)}")
    return None


def leave_at_once(exit_code: int) -> NoReturn:
    """End this one of several processes: the interpreter's normal exit may wait for others, which wait for this one."""
    # The loggers must still write the last steps, but a thread that hangs must not keep the process alive.
    context = contextvars.copy_context()  # trackio finds its run by it
    finishing = threading.Thread(target=context.run, args=(_finish_loggers, exit_code), daemon=True)
    finishing.start()
    finishing.join(_LOGGERS_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _finish_loggers(exit_code: int) -> None:
    wandb, trackio = sys.modules.get("wandb"), sys.modules.get("trackio")
    with contextlib.suppress(Exception):
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=exit_code)
    with contextlib.suppress(Exception):
        if trackio is not None:
            trackio.finish()  # raises where there is no run


def _where_to_go_on(output_dir: Path) -> str:
    last = last_complete(output_dir)
    if last is None:
        return "(there is no complete checkpoint yet)"
    return f"(the last complete checkpoint is {last.name}: --resume_from_checkpoint auto)"


def _not_finite(what: str, args: Any) -> str:
    return (
        f"{what}: likely causes are a learning_rate that is too high ({args.learning_rate:g}), no gradient clipping "
        f"(max_grad_norm {args.max_grad_norm:g}), an overflow in half precision, or a reward that is not finite"
    )


def _reward_in(error: Exception, rewards: Sequence[Any], names: Sequence[str]) -> str | None:
    """The reward function that raised `error`, found by its code in the frames of the traceback."""
    known: dict[CodeType, str] = {}
    for reward, name in zip(rewards, names, strict=True):
        function = inspect.unwrap(reward.func if isinstance(reward, functools.partial) else reward)
        if isinstance(function, torch.nn.Module):
            continue
        if not hasattr(function, "__code__"):
            function = getattr(function, "__func__", None) or getattr(type(function), "__call__")  # noqa: B004, B009
        if hasattr(function, "__code__"):
            known[function.__code__] = name
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code in known:
            return known[frame.f_code]
    return None


def _place(error: Exception) -> str:
    *_, (frame, line) = walk_tb(error.__traceback__)
    return f"{frame.f_code.co_filename}:{line}"


def _storage_error(error: BaseException | None) -> OSError | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            return error
        error = error.__cause__ or error.__context__
    return None


def _storage_reason(error: Exception, output_dir: Path) -> str | None:
    storage = _storage_error(error)
    if storage is not None:
        return storage.strerror
    full = os.strerror(errno.ENOSPC)
    # The writers of torch and safetensors raise no OSError: one has the cause in its text, the other does not.
    writing = any(sign in str(error) for sign in ("PytorchStreamWriter", "inline_container", "iostream error"))
    if full in str(error) or (writing and shutil.disk_usage(output_dir).free < _size(last_complete(output_dir))):
        return full
    return None


def _size(directory: Path | None) -> int:
    least = 1 << 20
    return least if directory is None else least + sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this process holds: its partition with ZeRO-3 or FSDP2, otherwise all of it."""
    part = getattr(parameter, "ds_tensor", parameter)
    return part.to_local() if hasattr(part, "to_local") else part
