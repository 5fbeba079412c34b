"""The doctor: a callback that reports each problem of a run once, in one line, with what to change."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from entropy_rft.errors import UserTypeError, UserValueError
from entropy_rft.run_files import FINDINGS as FINDINGS_FILE
from entropy_rft.suggestions import did_you_mean
from entropy_rft.training.advice import Facts
from entropy_rft.training.findings import FINDINGS, Finding, Levels, Watch
from entropy_rft.training.run_directory import RunDirectory

ALL = "all"
_OFF, _ON = ("false", "off", "no", "none"), ("true", "on", "yes")


@dataclass
class DoctorArguments:
    """What watches the run: fields of a recipe."""

    doctor: dict | str | None = field(
        default=None,
        metadata={
            "help": "Levels of the doctor that differ from the defaults, as a mapping (JSON on the command line), such "
            "as {window: 10, truncated: 0.5}; false switches off one finding, or all of them."
        },
    )
    doctor_stop: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Findings that end the run with a checkpoint: {', '.join(FINDINGS)}; or {ALL} (true). Any other "
            "finding is only printed."
        },
    )

    def __post_init__(self) -> None:
        self.doctor = _levels(self.doctor)
        self.doctor_stop = _stopping(self.doctor_stop)
        if self.doctor is False and self.doctor_stop:
            raise UserValueError(
                f"doctor_stop is {', '.join(self.doctor_stop)}, but doctor is false: remove one of the two"
            )
        self.build(None)

    def build(self, directory: RunDirectory | None) -> RunDoctor | None:
        """The callback; None where it is switched off.

        Raises:
            ValueError, TypeError: naming the field and its value.
        """
        if self.doctor is False:
            return None
        assert not isinstance(self.doctor, str)
        return RunDoctor(self.doctor, stop=self.doctor_stop, directory=directory)


class RunDoctor(TrainerCallback):
    """Watches a run's metrics, and reports each problem once, in one line, with what to change.

    It works with :class:`~entropy_rft.EntropyGRPOTrainer` and with TRL's own GRPOTrainer. A metric that a run does not
    log is not checked. With several processes all of them check the same logs, and the first one prints. After a resume
    it reads the logs that are in the checkpoint, and does not repeat what was found in them.

    Args:
        levels: when to report, by the names of :class:`~entropy_rft.training.findings.Levels`; None or False
            switches a finding off. A level that is not given has its default.
        stop: names of findings that end the training, with a checkpoint; ``"all"`` for any.
        directory: of the run, where ``findings.jsonl`` goes; None writes no file.

    Attributes:
        findings: what was found so far, oldest first.

    Raises:
        ValueError, TypeError: naming the level, its value, and the nearest known name.

    Example:

    ```python
    trainer = GRPOTrainer(..., callbacks=[RunDoctor({"truncated": 0.5}, stop=["no_spread"])])
    ```
    """

    def __init__(
        self,
        levels: Mapping[str, Any] | None = None,
        stop: Sequence[str] | str = (),
        directory: RunDirectory | None = None,
    ) -> None:
        self.levels = Levels.of(levels or {})
        self.stop = _stopping(stop)
        self.findings: list[Finding] = []
        self._directory = directory
        self._watch: Watch | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        history = [entry for entry in state.log_history if entry.get("step", 0) <= state.global_step]
        self._watch = Watch(self.levels, Facts(args), start=0 if history else state.global_step)
        self.findings = [finding for entry in history for finding in self._watch.add(entry["step"], entry)]
        if self._directory is not None and state.is_world_process_zero:
            # Other levels than before the interruption may find more in the same logs.
            known = {entry.get("finding") for entry in self._directory.findings()}
            self._tell([finding for finding in self.findings if finding.name not in known], ends=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> TrainerControl:
        if self._watch is None:  # an evaluation before the training
            return control
        found = self._watch.add(state.global_step, logs or {})
        self.findings += found
        ends = any(finding.name in self.stop or ALL in self.stop for finding in found)
        if ends:  # on every process: each has the same logs
            control.should_save = control.should_training_stop = True
        if state.is_world_process_zero:
            self._tell(found, ends)
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.findings or not state.is_world_process_zero:
            return
        names = ", ".join(f"{finding.name} (update {finding.step})" for finding in self.findings)
        where = "" if self._directory is None else f"; {self._directory.path / FINDINGS_FILE} says what to change"
        _say(f"doctor: found in this run: {names}{where}")

    def _tell(self, found: Sequence[Finding], ends: bool) -> None:
        for finding in found:
            _say(f"doctor: {finding.name}, update {finding.step}: {finding.message}")
            if self._directory is not None:
                entry = {"step": finding.step, "finding": finding.name, "message": finding.message}
                self._directory.append_finding(entry)
        if ends:
            _say(f"doctor: doctor_stop ends the run after update {found[0].step}, with a checkpoint")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _levels(given: Any) -> Any:
    """The value of `doctor`: a mapping, None for on with the defaults, or False for off."""
    if isinstance(given, str):
        word = given.strip().lower()
        if word in _OFF:
            return False
        if word in _ON:
            return None
        try:
            given = json.loads(given)
        except ValueError as error:
            raise UserValueError(f"doctor must be false or a JSON mapping of levels, got {given!r}: {error}") from error
    if given is True:
        return None
    if given is None or given is False or isinstance(given, Mapping):
        return given
    raise UserTypeError(f"doctor must be true, false or a mapping of levels, got {given!r}")


def _stopping(given: Any) -> list[str]:
    names: list[Any] = [given] if isinstance(given, str | bool) else [] if given is None else list(given)
    if len(names) == 1 and str(names[0]).lower() in _OFF:
        return []
    if len(names) == 1 and str(names[0]).lower() in _ON:
        return [ALL]
    for name in names:
        if name not in (ALL, *FINDINGS):
            raise UserValueError(
                f"doctor_stop must name findings ({', '.join(FINDINGS)}) or be {ALL}, got {name!r}"
                f"{did_you_mean(name, (ALL, *FINDINGS))}"
            )
    return names
