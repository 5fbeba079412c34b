from __future__ import annotations

import json
from pathlib import Path

import pytest

from entropy_rft.training.run_directory import RunDirectory


def lines(directory: RunDirectory) -> list[dict]:
    return [json.loads(line) for line in (directory.path / "metrics.jsonl").read_text().splitlines()]


def test_describe_and_load(tmp_path: Path) -> None:
    from entropy_rft.evaluation.run import load_run

    directory = RunDirectory(tmp_path / "run")
    directory.describe({"seed": 3, "rewards": ["pear"]}, seed=3, command=["x"], device="cpu", name="a run")
    directory.keep_until(0)
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
    assert directory.keep_until(2) == 20.0
    assert [entry["step"] for entry in lines(directory)] == [1, 2]
    assert directory.keep_until(0) == 0.0
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


def test_of_a_link_the_target_is_renamed_and_the_link_stays(tmp_path: Path) -> None:
    disk, runs = tmp_path / "disk", tmp_path / "runs"
    for directory in (disk, runs):
        directory.mkdir()
    (runs / "link").symlink_to(disk / "big")  # its target is not there yet
    directory = RunDirectory(runs / "link")
    for number in (1, 2):
        directory.describe({}, seed=0, command=[], device="cpu", name=str(number))
        assert directory.set_aside() == disk / f"big.{number}"
        assert (runs / "link").is_symlink()
        assert (disk / "big").is_dir()
        assert [path.name for path in runs.iterdir()] == ["link"]
        assert json.loads((disk / f"big.{number}" / "run.json").read_text())["name"] == str(number)


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl", "config.json", "checkpoint-3/trainer_state.json"])
def test_files_without_a_run_json_are_set_aside_too(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("somebody's")
    assert RunDirectory(tmp_path / "run").set_aside() == tmp_path / "run.1"
    assert (tmp_path / "run.1" / name).read_text() == "somebody's"


def test_metrics_are_json_also_where_a_value_is_not_finite(tmp_path: Path) -> None:
    from entropy_rft.evaluation.run import load_run

    def strict(line: str) -> dict:
        return json.loads(line, parse_constant=lambda name: pytest.fail(name))

    directory = RunDirectory(tmp_path)
    directory.describe({}, seed=0, command=[], device="cpu", name="a run")
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.write('{"step": 1, "reward": NaN, "time": 1.0}\n')  # as earlier versions wrote it
    assert directory.keep_until(1) == 1.0
    directory.append_metrics({"step": 2, "reward": float("inf"), "loss": 0.5})
    entries = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["reward"] for entry in entries] == [None, None]
    run = load_run(tmp_path)
    assert run.series("reward") == ([], [])
    assert run.series("loss") == ([2], [0.5])
    assert run.notes == ["metrics.jsonl: reward is not finite at 2 steps"]


def test_the_recipe_before_a_change_is_kept_under_the_first_free_name(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.keep_recipe() is None
    for number in (1, 2):
        directory.describe({"seed": number}, seed=number, command=[], device="cpu", name="a run", changes=[number])
        assert directory.keep_recipe() == f"recipe-{number}.yaml"
        assert directory.recipe() == {"seed": number}
        assert directory.description()["changes"] == [number]
    assert "seed: 1" in (tmp_path / "recipe-1.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text("seed: [")
    assert directory.recipe() is None


def test_findings_after_the_checkpoint_are_dropped_like_the_metrics(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.findings() == []
    directory.keep_until(0)
    assert not (tmp_path / "findings.jsonl").exists()
    for step in (2, 5):
        directory.append_finding({"step": step, "finding": "truncated", "message": "many"})
    with (tmp_path / "findings.jsonl").open("a") as file:
        file.write('{"step": 6, "find')
    directory.keep_until(4)
    assert [entry["step"] for entry in directory.findings()] == [2]
    assert (tmp_path / "findings.jsonl").read_text().count("\n") == 1


def test_what_the_lens_recorded_after_the_checkpoint_is_dropped_too(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.keep_until(0)
    assert not list(tmp_path.glob("lens*"))
    directory.append_lens({"step": 2, "columns": ["tokens"]}, None)
    assert not (tmp_path / "lens_tokens.jsonl").exists()
    for step in (4, 6):
        directory.append_lens({"step": step, "edges": [float("nan")]}, {"step": step, "tokens": []})
    directory.keep_until(4)
    steps = {
        name: [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("lens.jsonl", "lens_tokens.jsonl")
    }
    assert steps == {"lens.jsonl": [2, 4], "lens_tokens.jsonl": [4]}
