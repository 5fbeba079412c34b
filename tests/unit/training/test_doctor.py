from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState
from trl import GRPOConfig

from entropy_rft.training.doctor import DoctorArguments, RunDoctor
from entropy_rft.training.run_directory import RunDirectory

FLAT = {"frac_reward_zero_std": 1.0, "reward": 0.0, "step_time": 1.0}
LEVELS = {"window": 2, "horizon": 4}


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> GRPOConfig:
    return GRPOConfig(str(tmp_path_factory.mktemp("run")), use_cpu=True, bf16=False, report_to=[], num_generations=8)


def train(
    doctor: RunDoctor, args: Any, until: int, state: TrainerState | None = None, main: bool = True
) -> tuple[TrainerState, TrainerControl]:
    """As the trainer calls it: each update is logged, and kept in the state."""
    state = state or TrainerState()
    state.is_world_process_zero = main
    control = TrainerControl()
    doctor.on_train_begin(args, state, control)
    while state.global_step < until and not control.should_training_stop:
        state.global_step += 1
        state.log_history.append(FLAT | {"step": state.global_step})
        doctor.on_log(args, state, control, logs=dict(FLAT))
    doctor.on_train_end(args, state, control)
    return state, control


def test_a_finding_is_said_once_kept_and_summed_up(
    args: GRPOConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor = RunDoctor(LEVELS, directory=RunDirectory(tmp_path))
    _, control = train(doctor, args, 6)
    assert not control.should_training_stop
    assert not control.should_save
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("doctor: no_spread, update 2: in 100% of the groups")
    assert "raise num_generations from 8 to 16" in said[0]
    assert said[1] == f"doctor: found in this run: no_spread (update 2); {tmp_path}/findings.jsonl says what to change"
    [entry] = map(json.loads, (tmp_path / "findings.jsonl").read_text().splitlines())
    assert entry == {"step": 2, "finding": "no_spread", "message": doctor.findings[0].message}


def test_an_evaluation_before_the_training_is_no_update(args: GRPOConfig) -> None:
    doctor, control = RunDoctor(LEVELS), TrainerControl()
    assert doctor.on_log(args, TrainerState(), control, logs={"eval_reward": 0.5}) is control
    assert doctor.findings == []


def test_without_a_directory_nothing_is_written(args: GRPOConfig, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    doctor = RunDoctor(LEVELS)
    train(doctor, args, 4)
    assert [finding.name for finding in doctor.findings] == ["no_spread"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", ["all", ["no_spread"], True, ["truncated", "no_spread"]])
def test_stop_saves_and_ends_and_the_rest_goes_on_after_a_resume(
    stop: Any, args: GRPOConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory(tmp_path)
    state, control = train(RunDoctor(LEVELS, stop=stop, directory=directory), args, 6)
    assert state.global_step == 2
    assert control.should_save
    assert "doctor_stop ends the run after update 2, with a checkpoint" in capsys.readouterr().err
    again = RunDoctor(LEVELS, stop=stop, directory=directory)
    state, control = train(again, args, 6, state)
    assert (state.global_step, control.should_training_stop) == (6, False)
    assert [(finding.name, finding.step) for finding in again.findings] == [("no_spread", 2)]
    assert len(directory.findings()) == 1
    assert capsys.readouterr().err.splitlines()[0].startswith("doctor: found in this run")


def test_stop_leaves_other_findings_alone(args: GRPOConfig) -> None:
    state, control = train(RunDoctor(LEVELS, stop=["truncated"]), args, 4)
    assert (state.global_step, control.should_training_stop) == (4, False)


def test_the_other_processes_decide_alike_and_are_silent(
    args: GRPOConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor = RunDoctor(LEVELS, stop="all", directory=RunDirectory(tmp_path))
    state, control = train(doctor, args, 4, main=False)
    assert (state.global_step, control.should_save, control.should_training_stop) == (2, True, True)
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_other_levels_after_a_resume_find_what_is_in_the_logs_and_do_not_stop(
    args: GRPOConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDirectory(tmp_path)
    state, _ = train(RunDoctor(LEVELS | {"no_spread": False}, directory=directory), args, 4)
    assert directory.findings() == []
    state, control = train(RunDoctor(LEVELS, stop="all", directory=directory), args, 6, state)
    assert (state.global_step, control.should_training_stop) == (6, False)
    assert capsys.readouterr().err.startswith("doctor: no_spread, update 2")
    assert [entry["step"] for entry in directory.findings()] == [2]


def test_a_run_that_another_trainer_began_is_watched_from_here(args: GRPOConfig) -> None:
    state = TrainerState(global_step=50)
    doctor = RunDoctor(LEVELS)
    train(doctor, args, 55, state)
    assert [finding.step for finding in doctor.findings] == [52]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        (True, {}),
        ("on", {}),
        ({"window": 4}, {"window": 4}),
        ('{"window": 4, "truncated": false}', {"window": 4, "truncated": None}),
    ],
)
def test_what_the_field_means(given: Any, expected: dict) -> None:
    doctor = DoctorArguments(doctor=given).build(None)
    assert doctor is not None
    assert {name: getattr(doctor.levels, name) for name in expected} == expected
    assert doctor.stop == []


@pytest.mark.parametrize("given", [False, "false", "off", "No", "none"])
def test_what_switches_it_off(given: Any) -> None:
    assert DoctorArguments(doctor=given).build(None) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"doctor": "maybe"}, "doctor must be false or a JSON mapping of levels, got 'maybe'"),
        ({"doctor": "[1]"}, r"doctor must be true, false or a mapping of levels, got \[1\]"),
        ({"doctor": {"windw": 4}}, "there is no level 'windw'; did you mean window"),
        ({"doctor_stop": ["no_spred"]}, r"doctor_stop must name findings .* got 'no_spred'; did you mean no_spread"),
        ({"doctor": False, "doctor_stop": ["all"]}, "doctor_stop is all, but doctor is false: remove one of the two"),
    ],
)
def test_mistakes_in_the_fields_are_one_line(fields: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        DoctorArguments(**fields)
    assert "\n" not in str(error.value)
