from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from entropy_rft.training import lock as module
from entropy_rft.training.lock import LOCK, DirectoryLock

HOLD = """
import sys
from entropy_rft.training.lock import DirectoryLock
lock = DirectoryLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_holder_is_refused_in_one_line_until_the_first_lets_go(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path / "run"), DirectoryLock(tmp_path / "run")
    assert second.holder() is None
    assert not (tmp_path / "run").exists()  # asking makes nothing
    first.acquire()
    first.acquire()
    assert first.holder() is None
    assert second.holder() == f"process {os.getpid()} on {os.uname().nodename}"
    with pytest.raises(
        ValueError, match=r"run' is in use by another run \(process \d+ on .*\): wait .* another output"
    ):
        second.acquire()
    first.release()
    assert list((tmp_path / "run").iterdir()) == []
    second.acquire()
    assert first.holder() is not None
    second.release()


def test_it_dies_with_its_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        lock = DirectoryLock(tmp_path)
        assert lock.holder() == f"process {process.pid} on {os.uname().nodename}"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / LOCK).exists()
    assert lock.holder() is None
    lock.acquire()
    lock.release()


def test_it_moves_on_when_the_directory_is_renamed(tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "run.1"
    lock = DirectoryLock(run)
    lock.acquire()
    run.rename(moved)
    lock.follow(moved)
    assert list(moved.iterdir()) == []
    assert DirectoryLock(run).holder() is not None
    assert DirectoryLock(moved).holder() is None
    lock.release()


def test_a_link_and_its_target_are_one_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    lock = DirectoryLock(tmp_path / "link")
    lock.acquire()
    assert DirectoryLock(tmp_path / "target").holder() is not None
    lock.release()


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    (read, write), (forked, ready) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.write(ready, b".")
        os.read(read, 1)
        os._exit(0)
    try:
        os.read(forked, 1)
        assert DirectoryLock(tmp_path).holder() is not None  # the child's end of it does not let go for the parent
        os.close(lock._descriptor or -1)  # as if the parent had died
        lock._descriptor = None
        other = DirectoryLock(tmp_path)
        other.acquire()
        other.release()
    finally:
        for end in (write, read, forked, ready):
            os.close(end)
        os.waitpid(child, 0)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_lets_all_in_and_says_so(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    for _ in range(2):
        lock = DirectoryLock(tmp_path)
        assert lock.holder() is None
        lock.acquire()
    assert "this file system has no locks" in capsys.readouterr().err
