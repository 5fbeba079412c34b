"""Finds the complete checkpoints, chooses the one to resume from, and renames or deletes the others.

The trainer writes a checkpoint file by file into ``checkpoint-N`` itself, and each process writes its own part. When
all of them are done, :class:`CheckpointKeeper` writes ``complete.json`` there, atomically and last: the names and sizes
of all files. A checkpoint without it, or one whose files do not match it, is incomplete and is never resumed from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from entropy_rft.atomic import is_temporary, write_text
from entropy_rft.errors import UserValueError
from entropy_rft.files import json_text
from entropy_rft.run_files import CHECKPOINT, CHECKPOINT_MARKER, RUN
from entropy_rft.training.run_directory import unused

STATE = "trainer_state.json"
_NAME = re.compile(CHECKPOINT + r"(\d+)")
# The trainer and its rotation ignore directories with these prefixes.
_INCOMPLETE, _SUPERSEDED = "incomplete-", "superseded-"


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """All ``checkpoint-N`` directories, complete or not, by step."""
    directory = Path(output_dir)
    found = [path for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def resumed_step(checkpoint: Path | None) -> int:
    """The number of optimisation steps before a complete checkpoint, whatever its name; 0 for no checkpoint."""
    return 0 if checkpoint is None else int(_json(checkpoint / STATE)["global_step"])


def step_of(checkpoint: Path) -> int:
    """The optimisation step that ``checkpoint-N`` was written after."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def last_complete(output_dir: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint that is complete."""
    return next((path for path in reversed(checkpoints(output_dir)) if flaw(path) is None), None)


def checkpoint_to_resume(requested: str | None, output_dir: str) -> Path | None:
    """The checkpoint meant by ``--resume_from_checkpoint``: a path, or the last complete one for ``auto`` and ``true``.

    With ``auto`` and no such checkpoint the run starts from the beginning.

    Raises:
        ValueError: for a checkpoint that does not exist or is incomplete, naming the file.
    """
    if requested is None or requested.lower() in ("false", "none", ""):
        return None
    if requested.lower() in ("auto", "true"):
        last = last_complete(output_dir)
        if last is None and requested.lower() == "true":
            incomplete = "".join(f" ({path.name} is incomplete: {flaw(path)})" for path in checkpoints(output_dir)[-1:])
            kind = "complete checkpoint" if incomplete else "checkpoint"
            raise UserValueError(f"resume_from_checkpoint is true, but {output_dir!r} holds no {kind}{incomplete}")
        return None if last is None else _with_optimizer(last)
    checkpoint = Path(requested).expanduser()
    files = (checkpoint / STATE, checkpoint / CHECKPOINT_MARKER)
    if not (any(file.is_file() for file in files) or (checkpoint.is_dir() and _NAME.fullmatch(checkpoint.name))):
        raise UserValueError(f"resume_from_checkpoint {requested!r} is not a checkpoint directory")
    reason = flaw(checkpoint)
    if reason is not None:
        raise UserValueError(
            f"resume_from_checkpoint {requested!r} is incomplete: {reason} (auto takes the last complete checkpoint)"
        )
    return _with_optimizer(checkpoint)


def _with_optimizer(checkpoint: Path) -> Path:
    if any(any(checkpoint.glob(pattern)) for pattern in ("optimizer*", "global_step*")):
        return checkpoint
    raise UserValueError(
        f"resume_from_checkpoint {str(checkpoint)!r} holds no optimizer (save_only_model): "
        f"start from its weights with --model_name_or_path {checkpoint}"
    )


def mark_complete(checkpoint: Path) -> None:
    """Write the marker as the last file of a checkpoint, after all other files are on the disk."""
    files = {path.relative_to(checkpoint).as_posix(): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    # With save_on_each_node several processes may mark it at the same time.
    others = {
        name: path
        for name, path in files.items()
        if path.name != CHECKPOINT_MARKER and not is_temporary(path, of=CHECKPOINT_MARKER)
    }
    sizes = {name: _flush(path) for name, path in others.items()}
    write_text(checkpoint / CHECKPOINT_MARKER, json_text({"files": sizes}, indent=1) + "\n", sync=True)


def flaw(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None when it is complete.

    If a checkpoint has no marker and the ``run.json`` beside it declares none, it comes from another trainer or from
    an older version. Then its files are checked: the trainer's state must parse, safetensors files must be as long as
    their headers say, torch's files must be complete zip archives, and there must be weights.
    """
    marker = checkpoint / CHECKPOINT_MARKER
    if not marker.is_file():
        promised = _json(checkpoint.parent / RUN).get("checkpoint_marker") == CHECKPOINT_MARKER
        return (
            f"{CHECKPOINT_MARKER}, which is written last, is missing" if promised else _flaw_without_marker(checkpoint)
        )
    sizes = _json(marker).get("files")
    if not isinstance(sizes, dict):
        return f"{CHECKPOINT_MARKER} cannot be read"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def put_aside(output_dir: str | os.PathLike[str], step: int) -> list[str]:
    """Rename checkpoints that a run resumed after `step` does not use; returns one line for each.

    An incomplete checkpoint becomes ``incomplete-checkpoint-N`` until the next complete one is written. A complete one
    of a later step (an older one was resumed by name) becomes ``superseded-checkpoint-N`` and is kept. Otherwise old
    and new files would mix when the run reaches the same step again.
    """
    lines = []
    for path in checkpoints(output_dir):
        reason = flaw(path)
        if reason is None and step_of(path) <= step:
            if not (path / CHECKPOINT_MARKER).is_file():
                mark_complete(path)  # the new run.json declares markers
            continue
        target = path.with_name((_SUPERSEDED if reason is None else _INCOMPLETE) + path.name)
        if reason is None:
            target = unused(target)
        else:
            shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
        lines.append(
            f"{path.name} is after step {step}, from which this run resumes; it is now {target.name}"
            if reason is None
            else f"{path.name} is incomplete ({reason}) and not used; it is now {target.name}"
        )
    return lines


class CheckpointKeeper(TrainerCallback):
    """Marks each checkpoint as complete once every process has written its part, and only then deletes older ones.

    Args:
        limit: ``save_total_limit``. The trainer itself must have none: it deletes older checkpoints before the other
            processes have finished the new one.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if not args.should_save:
            return
        assert args.output_dir is not None
        directory = Path(args.output_dir)
        checkpoint = directory / f"{CHECKPOINT}{state.global_step}"
        if args.world_size > 1 and not (args.save_only_model or args.save_on_each_node):
            found = len(list(checkpoint.glob("rng_state_*.pth")))
            if found < args.world_size:
                raise RuntimeError(
                    f"only {found} of {args.world_size} processes have written their part: output_dir must be one "
                    "that all machines share"
                )
        mark_complete(checkpoint)
        for path in directory.glob(f"{_INCOMPLETE}{CHECKPOINT}*"):
            shutil.rmtree(path, ignore_errors=True)
        self._rotate(directory, state.best_model_checkpoint)

    def _rotate(self, directory: Path, best: str | None) -> None:
        if not self.limit or self.limit < 0:
            return
        kept = checkpoints(directory)
        protected = {kept[-1].name} | ({Path(best).name} if best else set())
        excess = len(kept) - max(self.limit, len(protected))
        for path in [path for path in kept if path.name not in protected][: max(excess, 0)]:
            (path / CHECKPOINT_MARKER).unlink(
                missing_ok=True
            )  # first, so that a partly deleted one does not count as complete
            shutil.rmtree(path, ignore_errors=True)


class SameOrder(TrainerCallback):
    """Gives a resumed run the question order of its current epoch.

    TRL's sampler draws each epoch's order from a random generator that is not in the checkpoint. After a resume it
    would draw the first epoch's order again, whatever the current epoch is.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        sampler = train_dataloader.batch_sampler
        while (inner := getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)) is not None:
            sampler = inner
        if hasattr(sampler, "set_epoch"):  # then the trainer sets it
            return
        for _ in range(int(state.epoch or 0)):
            next(iter(sampler), None)  # draws one order and discards it


def _flaw_without_marker(checkpoint: Path) -> str | None:
    if not (checkpoint / STATE).is_file():
        return f"{STATE} is missing"
    if "global_step" not in _json(checkpoint / STATE):
        return f"{STATE} cannot be read"
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        name = file.relative_to(checkpoint).as_posix()
        if file.suffix == ".safetensors" and not _whole_safetensors(file):
            return f"{name} is cut short"
        if file.suffix in (".pt", ".pth") and not zipfile.is_zipfile(file):
            return f"{name} is cut short"
    for index in checkpoint.glob("*.safetensors.index.json"):
        for name in sorted(set(_json(index).get("weight_map", {}).values())):
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
    latest = checkpoint / "latest"  # DeepSpeed's own pointer
    if latest.is_file() and not (checkpoint / latest.read_text(encoding="utf-8").strip()).is_dir():
        return f"{latest.read_text(encoding='utf-8').strip()} is missing"
    weights = ("*.safetensors", "pytorch_model*", "adapter_model.bin", "global_step*")
    return None if any(any(checkpoint.glob(pattern)) for pattern in weights) else "model.safetensors is missing"


def _whole_safetensors(file: Path) -> bool:
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            return False
        (length,) = struct.unpack("<Q", prefix)
        if 8 + length > file.stat().st_size:
            return False
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return False
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0) == file.stat().st_size


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _flush(file: Path) -> int:
    # After a power failure there must be no files of the right length without content. The size is that of the open
    # file: a network file system may report an old one for a closed file.
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno()).st_size
