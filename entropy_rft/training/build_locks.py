"""Finds locks that a killed build of a torch extension has left: every later build waits for them without a message.

DeepSpeed builds its C++ parts at the first launch. torch marks a build by a file ``lock`` in its directory. Only the
building process deletes the file, and it keeps it open until then. So a lock that no process has open is a left one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

OLD_S = 5 * 60.0
"""Seconds after which a lock is checked: a build takes about a minute, and may run on another machine."""


def left_locks(root: Path | None = None, older_than_s: float = OLD_S) -> list[Path]:
    """The locks below `root` that are older than `older_than_s` and that no process of this machine has open.

    Args:
        root: by default where torch builds extensions: ``TORCH_EXTENSIONS_DIR``, or the user's cache.
    """
    own = os.environ.get("TORCH_EXTENSIONS_DIR")
    if root is None and own:
        root = Path(own)
    elif root is None:
        from torch.utils.cpp_extension import get_default_build_root

        root = Path(get_default_build_root())
    limit = time.time() - older_than_s
    old = [lock for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")) if _changed(lock) < limit]
    return sorted(set(old) - _open(old)) if old else []


def message(locks: Iterable[Path]) -> str:
    """One line that names the files and says what to do."""
    names = ", ".join(map(str, locks))
    return (
        f"a build of a torch extension was killed and left {names}: DeepSpeed may wait for it forever; delete it, "
        "unless another machine is building there"
    )


def _changed(lock: Path) -> float:
    try:
        return lock.stat().st_mtime
    except OSError:  # the build has just ended
        return float("inf")


def _open(locks: list[Path]) -> set[Path]:
    """The locks that a process has open; processes that this user may not inspect are left out."""
    found: set[Path] = set()
    wanted = {str(lock.resolve()): lock for lock in locks}
    for process in psutil.process_iter():
        try:
            found |= {wanted[file.path] for file in process.open_files() if file.path in wanted}
        except (psutil.Error, OSError):
            continue
    return found
