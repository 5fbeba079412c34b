"""The study of methods at the smallest size: broken off, gone on with, and reported from its JSON files alone."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from warm import WarmCommand

from studies.methods import schedule

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PLAN: dict[str, Any] = {
    "name": "smallest",
    "model": {"name": "tiny_reasoner"},
    "steps": 2,
    "seeds": [0],
    "search_steps": 1,
    "search_seed": 9,
    "validation": {"split": "validation", "questions": 3, "samples": 2, "max_tokens": 24},
    "test": {"split": "test", "questions": 6, "samples": 2, "max_tokens": 24},
    "fields": {
        "task": "arithmetic", "rewards": ["task"], "entropy_clip": "none", "entropy_metrics": True,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4, "num_iterations": 2,
        "max_completion_length": 24, "bf16": False, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2,
    },
    "methods": {
        "grpo": {"title": "GRPO", "aim": "accuracy", "trials": [{"learning_rate": 1.0e-4}]},
        "broken": {"title": "broken", "aim": "entropy", "fields": {"temperature": -1.0}},
        "clip_b_pear": {
            "title": "Clip_B + PEAR",
            "aim": "length",
            "fields": {
                "entropy_clip": "clip_b", "rewards": ["pear", "task"], "reward_weights": [1.0, 0.0], "pear_floor": 0.1,
            },
            "trials": [{"entropy_clip_mu_low": 1.5}],
        },
    },
    "sweeps": {"mu": {"method": "clip_b_pear", "field": "entropy_clip_mu_low", "values": [1.5]}},
}  # fmt: skip

MISTAKE = "reproduce: broken-seed0 failed: temperature must be above 0, got -1.0"


def command(directory: Path, *more: str) -> list[str]:
    plan = directory / "plan.yaml"
    if not plan.exists():
        plan.write_text(yaml.safe_dump(PLAN))
    places = ["--output", str(directory / "results"), "--work_dir", str(directory / "work")]
    script = str(ROOT / "scripts" / "reproduce.py")
    return [sys.executable, script, "--study", "tiny", "--plan", str(plan), "--jobs", "2", *places, *more]


class Forked(WarmCommand):
    """In place of `subprocess.Popen` of a run's process: forked from one that has imported what each run imports."""

    def __init__(self, words: list[str], env: dict[str, str], stdout: Any, **_: Any) -> None:
        assert words[:-1] == [sys.executable, "-m", "studies.methods.worker"]
        script = Path(__file__).with_name("forked_worker.py")
        super().__init__(words[-1:], Path.cwd(), env, joined=True, script=script, output=Path(stdout.name))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the runs of `in_this_process`; the study that is broken off starts its own as it does for a user."""
    names = ("STDOUT", "DEVNULL", "TimeoutExpired")
    others = {name: getattr(subprocess, name) for name in names}
    monkeypatch.setattr(schedule, "subprocess", SimpleNamespace(Popen=Forked, **others))


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    """The script's exit code and all it printed; here, since each new process imports torch."""
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "reproduce.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out + printed.err


def workers(directory: Path) -> list[str]:
    """Command lines of the study's processes that are still there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(directory) in line and "studies.methods.worker" in line:
            found.append(line)
    return found


def test_a_study_is_broken_off_and_goes_on_beside_a_run_that_fails(
    tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = subprocess.Popen(
        command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts its background jobs, such as a whole test run, with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    runs = tmp_path / "results" / "runs"
    deadline = time.monotonic() + 300
    while not list(runs.glob("*.json")):  # the first run is finished, and a second one is under way
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 130, errors
    assert "run the same command again to resume" in errors
    assert workers(tmp_path) == []
    done = {path: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert 0 < len(done) < 5

    # Not a minute of runs fits into a millisecond: nothing is started, and it says what is left.
    words = command(tmp_path)[2:]
    code, printed = in_this_process(monkeypatch, capsys, *words, "--time_limit", "0.0001")
    assert code == 0, printed
    assert "time limit reached" in printed
    assert len(list(runs.glob("*.json"))) == len(done)

    # The run that fails is named, and those after it are made.
    code, printed = in_this_process(monkeypatch, capsys, *words)
    assert code == 1, printed
    assert MISTAKE in printed
    assert "5 of 6 runs are done" in printed
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert {path.stem for path in runs.glob("*.json")} == {
        "start-seed0", "trial-grpo-0-seed9", "trial-clip_b_pear-0-seed9", "grpo-seed0", "clip_b_pear-seed0"
    }  # fmt: skip
    run = json.loads((runs / "clip_b_pear-seed0.json").read_text())
    assert run["curves"]["entropy"]["steps"] == [1, 2]
    assert len(run["curves"]["accuracy"]["values"]) == 1  # one generation
    assert len(run["questions"]["correct"]) == 6
    assert all(0 <= correct <= 2 for correct in run["questions"]["correct"])
    assert all(0 < tokens <= 48 for tokens in run["questions"]["tokens"])
    trained = next((tmp_path / "work" / "runs").glob("clip_b_pear-seed0-*/model.safetensors"))
    assert not list(trained.parent.glob("checkpoint-*"))
    # The same questions and completions of the start for both methods; another model after training.
    start = json.loads((runs / "start-seed0.json").read_text())
    assert start["questions_digest"] == run["questions_digest"]
    assert start["curves"] == {}
    assert run["about"]["seconds"] > run["about"]["measuring_seconds"] > 0

    # A clone has the results and nothing else.
    shutil.rmtree(tmp_path / "work")
    code, printed = in_this_process(monkeypatch, capsys, *words, "--report")
    assert code == 0, printed
    assert "5 of 6 runs are done" in printed
    text = (tmp_path / "results" / "claims.md").read_text(encoding="utf-8")
    assert "| GRPO |" in text
    assert "**1. GRPO's entropy falls**" in text
    assert (tmp_path / "results" / "curves.png").is_file()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_run_outlives_the_study(tmp_path: Path, how: signal.Signals) -> None:
    study = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(workers(tmp_path)) < 2:
        assert study.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    study.send_signal(how)
    assert study.wait(60) == (143 if how == signal.SIGTERM else -signal.SIGKILL)
    while workers(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "grop"], "unknown method 'grop'; did you mean grpo"),
        (["--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--plan", "nowhere.yaml"], "'nowhere.yaml' cannot be read"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, printed = in_this_process(monkeypatch, capsys, *command(tmp_path, *flags)[2:])
    assert code == 2
    assert len(printed.splitlines()) == 1
    assert message in printed
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]


def test_the_medium_study_at_a_reduced_size(
    tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = yaml.safe_load((ROOT / "recipes" / "studies" / "medium.yaml").read_text(encoding="utf-8"))
    make = plan["model"]["make"]
    make |= {"hidden_size": 16, "intermediate_size": 32, "layers": 2, "heads": 2, "key_value_heads": 1, "head_dim": 8}
    make |= {"drill_steps": 2, "steps": 2, "batch_size": 4}
    plan |= {"steps": 2, "search_steps": 1, "seeds": [0], "sweeps": {}}
    for name in ("validation", "test"):
        plan[name] |= {"questions": 4, "samples": 2, "max_tokens": 16}
    plan["fields"] |= {"per_device_train_batch_size": 8, "max_completion_length": 16, "num_generations": 4}
    plan["methods"] = {name: {**plan["methods"][name], "trials": []} for name in ("grpo", "pear", "clip_v_pear")}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    words = [word if word != "tiny" else "medium" for word in command(tmp_path)[2:]]
    code, printed = in_this_process(monkeypatch, capsys, *words)
    assert code == 0, printed
    assert "making the model in" in printed
    assert "4 of 4 runs are done" in printed
    run = json.loads((tmp_path / "results" / "runs" / "clip_v_pear-seed0.json").read_text())
    assert set(run["questions"]["difficulty"]) == {4, 5, 6, 7}
    start = json.loads((tmp_path / "results" / "runs" / "start-seed0.json").read_text())
    assert start["questions_digest"] == run["questions_digest"]
    assert run["spec"]["model"]["make"]["layers"] == 2
    # The model is made once; another one is refused while that lies there.
    code, printed = in_this_process(monkeypatch, capsys, *words)
    assert "making the model" not in printed
    plan["model"]["make"]["layers"] = 3
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    code, printed = in_this_process(monkeypatch, capsys, *words)
    assert code == 2
    assert "delete it" in printed


def test_difficulty_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from entropy_rft.difficulty import Thresholds
    from studies import probe_study

    small = probe_study.StudySettings(
        train_questions=36, test_questions=12, samples=2, answer_samples=2, max_tokens=120,
        thresholds=Thresholds(0.7, 0.3, 0.4),  # so few questions need not have three clouds
    )  # fmt: skip
    monkeypatch.setattr(probe_study, "StudySettings", lambda **given: small)
    from entropy_rft.assets import TINY_REASONER

    words = ["--study", "difficulty", "--seeds", "0", "--output", str(tmp_path / "out")]
    words += ["--work_dir", str(tmp_path / "work"), "--models", "start=tiny_reasoner", f"after={TINY_REASONER}"]
    code, printed = in_this_process(monkeypatch, capsys, *words)
    assert code == 0, printed
    result = json.loads((tmp_path / "out" / "difficulty.json").read_text())
    assert set(result["models"]) == {"start", "after"}
    start, after = (result["models"][name] for name in ("start", "after"))
    assert start["u_shape"]["levels"] == ["2", "3", "4", "5", "6", "7"]
    assert start["u_shape"] == after["u_shape"]  # one and the same model
    assert start["policies"]["probe"]["tokens"] == after["policies"]["probe"]["tokens"]
    text = (tmp_path / "out" / "difficulty.md").read_text(encoding="utf-8")
    assert text.count("\n| start |") == text.count("\n| after |") == 2
    assert (tmp_path / "out" / "difficulty.png").is_file()
    code, printed = in_this_process(monkeypatch, capsys, "--study", "difficulty", "--models", "start")
    assert (code, printed) == (2, "reproduce: error: models must be NAME=DIR, each name once, got start\n")


def test_pears_penalty_against_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = yaml.safe_load((ROOT / "recipes" / "studies" / "frontier.yaml").read_text(encoding="utf-8"))
    plan["validation"] |= {"questions": 10, "samples": 4}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    words = ["--study", "pear", "--plan", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")]
    code, printed = in_this_process(monkeypatch, capsys, *words)
    assert code == 0, printed
    found = json.loads((tmp_path / "out" / "frontier.json").read_text())["models"]["start"]
    assert 0 < found["right"] <= 40
    assert set(found["signals"]) == {"-50", "1", "50"}
    assert found["thinking"] > 20
    # A weight of -50 adds fifty times the answer's entropy, which is not 0.
    assert found["penalty"]["-50"] > found["penalty"]["1"] > found["penalty"]["50"] > 0
    table = (tmp_path / "out" / "frontier.md").read_text(encoding="utf-8")
    assert "| start |" in table
    assert table in printed
    (tmp_path / "out" / "frontier.md").unlink()
    assert in_this_process(monkeypatch, capsys, *words, "--report")[0] == 0
    assert (tmp_path / "out" / "frontier.md").read_text(encoding="utf-8") == table
