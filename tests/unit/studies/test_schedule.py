"""Who may work on a study, and where its results go."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from studies.methods.plan import Plan
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


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_a_clone_gets_the_results_and_not_the_checkpoints() -> None:
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT).returncode == 0

    assert not ignored("scripts/results/tiny/runs/grpo-seed0.json")
    assert ignored("runs/studies/tiny/runs/grpo-seed0")
