"""The files of a run: the resolved recipe, versions and seed, and every logged metric as a JSON line."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from entropy_rft.atomic import write_text
from entropy_rft.files import json_text, read_yaml
from entropy_rft.run_files import (
    CHECKPOINT,
    CHECKPOINT_MARKER,
    FINDINGS,
    LENS,
    LENS_TOKENS,
    METRICS,
    RECIPE,
    RUN,
    earlier_recipe_name,
)

_SUMMARY = ("train_runtime", "train_loss", "train_samples_per_second", "train_steps_per_second", "total_flos")
_PACKAGES = ("entropy_rft", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "vllm", "deepspeed")


class RunDirectory:
    """The files of one run.

    ``run.json`` describes it, ``recipe.yaml`` repeats it, ``metrics.jsonl`` has one line per log.
    ``findings.jsonl`` has one line for each finding of the doctor, ``lens.jsonl`` and ``lens_tokens.jsonl`` have one
    for each update that the lens recorded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def exists(self) -> bool:
        """Whether the directory has files of a run, which a new run would overwrite or mix with."""
        names = (RUN, RECIPE, METRICS)
        checkpoints = self.path.glob(f"{CHECKPOINT}*") if self.path.is_dir() else ()
        return self.has_model or any((self.path / name).is_file() for name in names) or any(checkpoints)

    def recipe(self) -> dict[str, Any] | None:
        """The recipe of the run in this directory; None if it is missing or cannot be read."""
        try:
            found = read_yaml((self.path / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return None
        return {str(name): value for name, value in found.items()} if isinstance(found, dict) else None

    def description(self) -> dict[str, Any]:
        """The content of ``run.json``; empty if it is missing or cannot be read."""
        try:
            found = json.loads((self.path / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def make(self) -> None:
        """Create the directory; if it is a link, create its target."""
        self.path.resolve().mkdir(parents=True, exist_ok=True)

    @property
    def has_model(self) -> bool:
        """Whether a training finished here and began to save the model."""
        return any((self.path / name).is_file() for name in ("config.json", "adapter_config.json"))

    def set_aside(self) -> Path | None:
        """Rename the directory of an earlier run, so that a new one overwrites nothing; returns the new path.

        If the directory is a link, its target is renamed, on its own disk; the link stays, and points to the new run's
        directory.
        """
        if not self.exists:
            return None
        directory = self.path.resolve() if self.path.is_symlink() else self.path
        target = unused(directory.with_name(f"{directory.resolve().name}.1"))
        directory.rename(target)
        if self.path.is_symlink():
            self.make()
        return target

    def keep_recipe(self) -> str | None:
        """Keep the recipe in this directory as the first free ``recipe-N.yaml``, and return that name."""
        if not (self.path / RECIPE).is_file():
            return None
        number = 1
        while (kept := self.path / earlier_recipe_name(number)).exists():
            number += 1
        write_text(kept, (self.path / RECIPE).read_text(encoding="utf-8"))
        return kept.name

    def describe(
        self,
        recipe: Mapping[str, Any],
        *,
        name: str,
        seed: int,
        command: Sequence[str],
        device: str,
        processes: int = 1,
        engine: str = "single",
        **further: Any,
    ) -> None:
        """Write ``run.json``, with `further` at its end, and ``recipe.yaml``."""
        self.make()
        description = {
            "name": name,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seed": seed,
            "command": list(command),
            "device": device,
            "processes": processes,
            "engine": engine,
            "python": platform.python_version(),
            "versions": installed_versions(),
            "checkpoint_marker": CHECKPOINT_MARKER,
            **further,
        }
        write_text(self.path / RUN, json_text(description, indent=2) + "\n")
        write_text(self.path / RECIPE, yaml.safe_dump(dict(recipe), sort_keys=True, allow_unicode=True))

    def keep_until(self, step: int) -> float:
        """Discard what was logged after `step`, and incomplete lines; returns the time (s) of the last kept metrics."""
        kept = self._entries(METRICS, step)
        self.make()
        # (Earlier versions wrote NaN, which is no JSON.)
        write_text(self.path / METRICS, "".join(json_text(entry) + "\n" for entry in kept))
        self._keep(FINDINGS, step)
        self.keep_lens_until(step)
        return next((entry["time"] for entry in reversed(kept) if "time" in entry), 0.0)

    def keep_lens_until(self, step: int) -> None:
        """Discard what the lens recorded after `step`."""
        for name in (LENS, LENS_TOKENS):
            self._keep(name, step)

    def _keep(self, name: str, step: int) -> None:
        if (self.path / name).is_file():
            kept = self._entries(name, step)
            write_text(self.path / name, "".join(json_text(entry) + "\n" for entry in kept))

    def findings(self) -> list[dict[str, Any]]:
        """What the doctor found in this run."""
        return self._entries(FINDINGS)

    def append_metrics(self, entry: Mapping[str, Any]) -> None:
        """Add one line, in one write; a value that is not finite becomes null.

        Raises:
            OSError: naming the file.
        """
        self._append(METRICS, entry)

    def append_finding(self, entry: Mapping[str, Any]) -> None:
        """As `append_metrics`, for a finding of the doctor."""
        self._append(FINDINGS, entry)

    def append_lens(self, sums: Mapping[str, Any], tokens: Mapping[str, Any] | None) -> None:
        """As `append_metrics`, for one update that the lens recorded: its sums, and its tokens as text if any."""
        self._append(LENS, sums)
        if tokens is not None:
            self._append(LENS_TOKENS, tokens)

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        file = self.path / name
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json_text(entry) + "\n")
        except OSError as error:  # the error of a failed write names no file
            raise OSError(error.errno, error.strerror, str(file)) from error

    def _entries(self, name: str, until: float = math.inf) -> list[dict[str, Any]]:
        """The lines of a file up to a step, without those that are no JSON."""
        file = self.path / name
        entries: list[dict[str, Any]] = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["step"] <= until:
                entries.append(entry)
        return entries


class RunRecorder(TrainerCallback):
    """Appends what the trainer logs to the run directory; after a resume the lines continue from its step.

    Values measured since the last log are in memory only, so there is a log before every checkpoint.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._started = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._started = time.monotonic() - self.directory.keep_until(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # Before an evaluation too: at the end TRL logs what is left under the mode of the last pass, which is not
        # training after an evaluation on the last step.
        last = control.should_save or control.should_evaluate or control.should_training_stop
        control.should_log = control.should_log or last
        return control

    on_epoch_end = on_step_end

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The last log of a training has its summary, and what was measured since the log before.
        logs = {name: value for name, value in (logs or {}).items() if name not in _SUMMARY}
        if not state.is_world_process_zero or not logs.keys() - {"epoch"}:
            return
        seconds = round(time.monotonic() - self._started, 3)
        self.directory.append_metrics({"step": state.global_step, "epoch": state.epoch, "time": seconds, **logs})


def unused(path: Path) -> Path:
    """`path`, or the first of ``name.1``, ``name.2``, … that does not exist; an existing number is increased."""
    stem, _, number = path.name.rpartition(".")
    if not stem or not number.isdigit():
        stem, number = path.name, "0"
    while path.exists():
        number = str(int(number) + 1)
        path = path.with_name(f"{stem}.{number}")
    return path


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run does, where they are installed."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
