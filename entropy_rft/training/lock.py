"""One run at a time in a directory: a lock that is released when the process that holds it ends, in any way."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import weakref
from pathlib import Path

from entropy_rft.errors import UserValueError

LOCK = ".entropy_rft.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EROFS)


class DirectoryLock:
    """The right to write into a run directory, held by the main process of a run while it trains.

    The lock is `flock`'s on a file in the directory. It is released when the process ends, also by ``kill -9``. The
    file is deleted with the lock where the process ends normally. On NFS the lock works between machines. On a file
    system without locks every run is allowed; a line says so.

    Args:
        directory: of the run; :meth:`acquire` creates it if it is missing.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._given = Path(directory)
        self._descriptor: int | None = None
        _held.add(self)

    @property
    def _file(self) -> Path:
        return self._given.resolve() / LOCK

    def holder(self) -> str | None:
        """The process that holds the lock, or None where no other process does. Creates no file."""
        if self._descriptor is not None:
            return None
        try:
            descriptor = os.open(self._file, os.O_RDWR)
        except OSError:
            return None
        try:
            return None if _lock(descriptor) is not False else _written_by(descriptor)
        finally:
            os.close(descriptor)

    def acquire(self) -> None:
        """Take the lock; does nothing if this object already holds it.

        Raises:
            ValueError: in one line, when another process (or another object of this one) holds it.
        """
        while self._descriptor is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # the directory was renamed meanwhile
                continue
            locked = _lock(descriptor)
            if locked is False:
                who = _written_by(descriptor)
                os.close(descriptor)
                raise UserValueError(in_use(self._given, who))
            if locked is None:
                print(
                    f"{self._given}: this file system has no locks, so a second run in output_dir is not prevented",
                    file=sys.stderr,
                )
            elif not self._is_current(descriptor):  # removed or renamed between opening and locking
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            self._descriptor = descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self._file.stat(), os.fstat(descriptor))
        except OSError:
            return False

    def follow(self, moved: Path) -> None:
        """After the directory was renamed to `moved`: lock the new directory, and release the lock on the old one."""
        old, self._descriptor = self._descriptor, None
        try:
            self.acquire()
        finally:
            if old is not None:
                (moved / LOCK).unlink(missing_ok=True)
                os.close(old)

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            if self._is_current(self._descriptor):
                self._file.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def forget(self) -> None:
        """Close the lock in a forked child, which must not hold it longer than its parent does."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def in_use(directory: str | os.PathLike[str], who: str) -> str:
    """The line that refuses a second run."""
    return (
        f"output_dir {os.fspath(directory)!r} is in use by another run ({who}): wait for it, or name another output_dir"
    )


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was free; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _written_by(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "which has just started"


_held: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in _held:
        lock.forget()


os.register_at_fork(after_in_child=_forget_all)
