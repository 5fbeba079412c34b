"""The runner of scripts/gpu_day.py, with stages that fail, hang, leave processes behind, or are not reached."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"

# Runs gpu_day with stages of the test: name, limit and code of each.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import gpu_day
gpu_day.SLOWER, gpu_day.GRACE, gpu_day.LEAST_SECONDS = 1, 0.5, 1
stages = [gpu_day.Stage(name, limit, (sys.executable, "-c", code)) for name, limit, code in json.loads(sys.argv[2])]
raise SystemExit(gpu_day.main(sys.argv[3:], stages))
"""
RECORDS = """
from gpu_stages.recording import Stage
stage = Stage()
stage.put("number", 7)
stage.check("seven is odd", True)
stage.goal("seven", 7.0, 8.0)
raise SystemExit(stage.finish())
"""
FAILS = "raise ValueError('no such thing')"
HANGS = """
import os, signal, subprocess, sys, time
from gpu_stages.recording import Stage
stage = Stage()
sleeper = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
own_session = subprocess.Popen(sleeper, start_new_session=True)
# One whose parent has ended.
shell = f"{sys.executable} -c 'import time; time.sleep(600)' > /dev/null 2>&1 & echo $!"
orphan = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, start_new_session=True)
stage.put("processes", [os.getpid(), own_session.pid, int(orphan.stdout)])
time.sleep(600)
"""


def command(output: Path, stages: list[tuple[str, float, str]], *flags: str) -> list[str]:
    words = [sys.executable, "-c", DRIVER, str(SCRIPTS), json.dumps(stages), "--output", str(output), "--dry-run"]
    return [*words, *flags]


def run(output: Path, stages: list[tuple[str, float, str]], *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(output, stages, *flags), capture_output=True, text=True, timeout=120)


def found(output: Path, number: int, name: str) -> dict[str, Any]:
    return json.loads((output / f"{number}-{name}.json").read_text())


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_stage_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    # The last stage sees what the first left on disk.
    sees = f"""
from pathlib import Path
from gpu_stages.recording import Stage, read
directory = Path({str(tmp_path)!r})
Stage().put("before", [read(path)["status"] for path in sorted(directory.glob("*.json"))])
"""
    broken = RECORDS.replace("True", "False")
    stages = [("good", 60, RECORDS), ("fails", 60, FAILS), ("broken", 60, broken), ("sees", 60, sees)]
    result = run(tmp_path, stages)
    assert result.returncode == 1, result.stderr
    good, fails, checked, last = (found(tmp_path, n + 1, stage[0]) for n, stage in enumerate(stages))
    assert (good["status"], good["reason"], good["results"]) == ("done", None, {"number": 7})
    assert good["checks"] == {"seven is odd": {"holds": True}}
    assert good["goals"] == {"seven": {"value": 7.0, "at most": 8.0, "met": True}}
    assert good["environment"]["versions"]["torch"] != "not installed"
    assert good["environment"]["missing"] == []
    assert (fails["status"], fails["reason"]) == ("failed", "exit code 1: ValueError: no such thing")
    assert "Traceback" in fails["log_tail"][0]
    assert (checked["status"], checked["results"]) == ("failed", {"number": 7})
    assert checked["reason"] == "exit code 1: these checks do not hold: seven is odd"
    assert last["results"] == {"before": ["done", "failed", "failed", "running"]}
    assert "failed in 0 s: exit code 1: ValueError: no such thing" in result.stdout
    assert "ValueError: no such thing" in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process whose parent has ended is not found again")
def test_a_stage_over_its_limit_is_ended_with_its_processes_and_keeps_its_results(tmp_path: Path) -> None:
    result = run(tmp_path, [("hangs", 5, HANGS), ("next", 60, RECORDS)])
    assert result.returncode == 1, result.stderr
    document = found(tmp_path, 1, "hangs")
    assert document["status"] == "timed out"
    assert document["reason"] == "not done after 5 s: ended with all its processes"
    assert len(document["results"]["processes"]) == 3
    assert not any(alive(pid) for pid in document["results"]["processes"])
    assert found(tmp_path, 2, "next")["status"] == "done"


def test_start_and_only_leave_the_other_results_alone(tmp_path: Path) -> None:
    stages = [("one", 60, RECORDS), ("two", 60, FAILS), ("three", 60, RECORDS)]
    run(tmp_path, stages)
    before = (tmp_path / "1-one.json").read_text()
    again = [("one", 60, FAILS), ("two", 60, RECORDS), ("three", 60, FAILS)]
    result = run(tmp_path, again, "--start", "two")
    assert result.returncode == 1
    assert (tmp_path / "1-one.json").read_text() == before
    assert [found(tmp_path, 2, "two")["status"], found(tmp_path, 3, "three")["status"]] == ["done", "failed"]
    assert run(tmp_path, stages, "--only", "three").returncode == 0
    assert (tmp_path / "1-one.json").read_text() == before
    assert [found(tmp_path, 2, "two")["status"], found(tmp_path, 3, "three")["status"]] == ["done", "done"]


def test_what_the_total_time_no_longer_allows_is_recorded(tmp_path: Path) -> None:
    waits = "import time; time.sleep(600)"
    result = run(tmp_path, [("waits", 600, waits), ("late", 60, RECORDS)], "--minutes", "0.05")
    assert result.returncode == 1
    assert found(tmp_path, 1, "waits")["status"] == "timed out"
    late = found(tmp_path, 2, "late")
    assert late["status"] == "not begun"
    assert late["reason"] == "0 s of 0.05 minutes were left"


def test_a_run_that_is_told_to_stop_ends_its_stage_and_keeps_what_it_has(tmp_path: Path) -> None:
    words = command(tmp_path, [("hangs", 600, HANGS), ("next", 60, RECORDS)])
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    file = tmp_path / "1-hangs.json"
    try:
        end = time.monotonic() + 60
        while not file.exists() or "processes" not in json.loads(file.read_text()).get("results", {}):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)  # a file announces itself nowhere else
    finally:
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143, errors
    document = found(tmp_path, 1, "hangs")
    assert (document["status"], document["reason"]) == ("interrupted", "the run was stopped by a signal")
    assert not any(alive(pid) for pid in document["results"]["processes"])
    assert not (tmp_path / "2-next.json").exists()


def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPTS / "gpu_day.py"), "--output", str(tmp_path / "out")]
    result = subprocess.run(words, capture_output=True, text=True, env={"PATH": str(tmp_path)}, timeout=60)
    assert result.returncode == 2
    assert "error: nvidia-smi finds no GPU; --dry-run runs every stage on the CPU" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from gpu_stages import machine

    def version(name: str) -> str:
        if name == "math-verify":
            raise machine.PackageNotFoundError(name)
        return "2.5.1" if name == "torch" else real(name)

    real = machine.version
    monkeypatch.setattr(machine, "version", version)
    missing, unfit = machine.lacking()
    assert missing == ["math-verify>=0.5.2"]
    assert "torch>=2.6: 2.5.1" in unfit
