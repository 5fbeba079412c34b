"""What a killed build has left, and what a build that goes on holds."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from entropy_rft.training.build_locks import left_locks, message
from entropy_rft.training.launch import warn_of_left_builds


def aged(lock: Path, seconds: float = 3600.0) -> Path:
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    os.utime(lock, (time.time() - seconds,) * 2)
    return lock


def test_an_old_lock_that_nobody_holds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = aged(tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock")
    aged(tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "build.ninja")
    assert left_locks(tmp_path) == [lock]
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "py311_cpu"))
    assert left_locks() == [lock]
    assert str(lock) in message([lock])
    assert "\n" not in message([lock])


def test_a_new_one_is_not(tmp_path: Path) -> None:
    aged(tmp_path / "py311_cpu" / "cpu_adam" / "lock", seconds=20)
    assert left_locks(tmp_path) == []
    assert left_locks(tmp_path / "nowhere") == []


def test_one_that_torch_holds_is_not(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    aged(lock)
    assert left_locks(tmp_path) == []
    baton.release()
    assert left_locks(tmp_path) == []


@pytest.mark.parametrize(
    ("deepspeed", "environment", "warned"),
    [
        ("zero2.json", {}, True),
        (None, {"ACCELERATE_USE_DEEPSPEED": "true"}, True),
        (None, {}, False),
        ("zero2.json", {"LOCAL_RANK": "1"}, False),
    ],
)
def test_a_launch_with_deepspeed_warns_once(
    deepspeed: str | None, environment: dict[str, str], warned: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lock = aged(tmp_path / "deepspeed_shm_comm" / "lock")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name in ("ACCELERATE_USE_DEEPSPEED", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    warn_of_left_builds(deepspeed)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == int(warned)
    assert all(str(lock) in line for line in lines)
