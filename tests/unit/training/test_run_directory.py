from __future__ import annotations

import json
from pathlib import Path

from entropy_rft.training.run_directory import RunDirectory


def lines(directory: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in (directory.path / "metrics.jsonl").read_text().splitlines()]


def test_describe_and_load(tmp_path: Path) -> None:
    from entropy_rft.evaluation.run import load_run

    directory = RunDirectory(tmp_path / "run")
    directory.describe({"seed": 3, "rewards": ["pear"]}, seed=3, command=["x"], device="cpu", name="a run")
    directory.keep_metrics_until(0)
    directory.append_metrics({"step": 1, "epoch": 0.5, "time": 1.0, "reward": 0.25})
    run = load_run(tmp_path / "run")
    assert (run.name, run.seed, run.recipe["rewards"], run.device) == ("a run", 3, ["pear"], "cpu")
    assert run.versions.keys() >= {"torch", "trl", "entropy_rft"}
    assert run.series("reward") == ([1], [0.25])


def test_a_resume_drops_what_came_after_the_checkpoint_and_half_lines(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        directory.append_metrics({"step": step, "time": step * 10.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tim')
    assert directory.keep_metrics_until(2) == 20.0
    assert [entry["step"] for entry in lines(directory)] == [1, 2]
    assert directory.keep_metrics_until(0) == 0.0
    assert lines(directory) == []


def test_an_earlier_run_is_set_aside_and_nothing_else_is(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    assert directory.set_aside() is None
    (tmp_path / "run").mkdir()
    assert directory.set_aside() is None  # a folder that is no run stays where it is
    for number in (1, 2):
        directory.describe({}, seed=0, command=[], device="cpu", name=str(number))
        assert directory.set_aside() == tmp_path / f"run.{number}"
        assert not directory.path.exists()
        assert json.loads((tmp_path / f"run.{number}" / "run.json").read_text())["name"] == str(number)
