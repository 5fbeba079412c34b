"""Writing a file in one step: a reader, and a crash, see the old file or the new one, never a part of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = False, keep: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to; when the block ends, that file takes the place of `path`.

    The temporary file is a hidden one in the same directory, so that the replacement is a rename on one file system.
    It is opened by the caller, so it gets the mode bits of any new file. When the block raises, it is deleted and
    `path` stays as it was. A `path` that is no regular file (``/dev/stdout``) is given itself.

    Args:
        path: the file; its directory must exist.
        sync: flush the content to the disk before the rename, and the rename after it, so that both survive a power
            cut.
        keep: leave a file that is there already as it is, also one that another process has written in the meantime.
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
    """A hidden name beside `path` that no other process uses: on several machines two may have the same number."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def is_temporary(path: Path, of: str) -> bool:
    """Whether `path` is what :func:`replacing` left of the file called `of` when its process was killed."""
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
