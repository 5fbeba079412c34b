"""Who may work on a study, and where its results go."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from studies.methods import schedule
from studies.methods.plan import Plan, RunSpec, Sweep
from studies.methods.results import Results
from studies.methods.schedule import Scheduler

ROOT = Path(__file__).parents[3]


def test_two_do_not_work_in_one_directory(plan: Plan, results: Results, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with (
        FileLock(work / ".lock"),
        pytest.raises(ValueError, match=r"work_dir '.*work' is in use by another run of the study"),
    ):
        Scheduler(plan, results, work, "tiny_reasoner", time_limit=1e-9).run()
    # It is free again, and there is no time to start anything.
    assert not Scheduler(plan, results, work, "tiny_reasoner", time_limit=1e-9).run()


def test_runs_at_the_same_time_have_files_of_their_own(
    plan: Plan, results: Results, finish: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where their names differ behind a dot only: sweep-mu-1.25-seed0 and sweep-mu-1.5-seed0."""
    plan = replace(plan, sweeps={"mu": Sweep("clip_b", "entropy_clip_mu_low", [1.25, 1.5])})
    specs = [spec for point in plan.sweep_runs("mu", {}).values() for spec in point]
    assert len({spec.name.split(".")[0] for spec in specs}) == 1
    jobs: list[dict[str, Any]] = []

    class Worker:
        """Reads its job when all have been started, and is done."""

        def __init__(self, command: list[str], **options: Any) -> None:
            self.job = Path(command[-1])
            self.returncode: int | None = None
            started.append(self)

        def poll(self) -> int | None:
            if self.returncode is None and len(started) == len(specs):
                jobs.append(json.loads(self.job.read_text()))
                finish(RunSpec.from_dict(jobs[-1]["spec"]), accuracy=0.5)
                self.returncode = 0
            return self.returncode

    started: list[Worker] = []
    monkeypatch.setattr(schedule.subprocess, "Popen", Worker)
    monkeypatch.setattr(
        schedule, "runs_due", lambda plan, results: ([s for s in specs if not results.path(s.name).exists()], None)
    )
    monkeypatch.setattr(schedule, "_POLL", 0.0)
    scheduler = Scheduler(plan, results, tmp_path / "work", "tiny_reasoner", jobs=len(specs))
    scheduler.run()
    assert scheduler.failed == {}
    assert [job["spec"]["name"] for job in jobs] == [spec.name for spec in specs]
    assert len({job["directory"] for job in jobs}) == len(specs)


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_a_clone_gets_the_results_and_not_the_checkpoints() -> None:
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT).returncode == 0

    assert not ignored("scripts/results/tiny/runs/grpo-seed0.json")
    assert ignored("runs/studies/tiny/runs/grpo-seed0")
