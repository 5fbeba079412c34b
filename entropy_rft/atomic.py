"""Writes a file in one step. A reader sees the old file or the new one, never a part of one, after a crash too."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = False, keep: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to. When the block ends, that file replaces `path`.

    The temporary file is hidden and in the same directory, so that the replacement is a rename on one file system.
    The caller opens it, so it gets the mode bits of any new file. When the block raises, it is deleted and `path` is
    unchanged. If `path` is not a regular file (``/dev/stdout``), it is given itself.

    Args:
        path: the file; its directory must exist.
        sync: flush the content to the disk before the rename, and the rename after it, so that both survive a power
            failure.
        keep: do not replace an existing file, also when another process has written it in the meantime.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        yield target
        return
    temporary = temporary_name(target)
    try:
        yield temporary
        if sync:
            _sync(temporary)
        if keep:
            _link(temporary, target)
        else:
            temporary.replace(target)
        if sync:
            with suppress(OSError):  # not every network file system can flush a directory
                _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = False, keep: bool = False) -> None:
    """Write `text` as UTF-8; see :func:`replacing`."""
    write_bytes(path, text.encode(), sync=sync, keep=keep)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, sync: bool = False, keep: bool = False) -> None:
    """Write `data`; see :func:`replacing`."""
    with replacing(path, sync=sync, keep=keep) as temporary:
        temporary.write_bytes(data)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses. (Processes on two machines may have the same number.)"""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def is_temporary(path: Path, of: str) -> bool:
    """Whether `path` is a temporary file of :func:`replacing` for the file `of`, left by a killed process."""
    return path.name.startswith(f".{of}.") and path.suffix == ".tmp"


def _link(source: Path, target: Path) -> None:
    with suppress(FileExistsError):  # a rename would replace the file
        os.link(source, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
