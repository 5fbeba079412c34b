"""Keeps Python's garbage collector out of a command's imports and of its end.

torch, transformers, TRL and DeepSpeed are 5,000 modules, and nothing of them is garbage. Python collects 1,500 times
while it imports them, and once more over all of them when it exits: 5 of the 13 seconds that a command took which did
nothing else (CPU time of a busy core). Only the command line does this; a program that imports the trainer keeps the
collector as it is.
"""

from __future__ import annotations

import atexit
import functools
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Of one import with torch below it. Fewer are imported fast, and what is left to freeze is hardly worth a collection.
_MANY = 500


@contextmanager
def importing() -> Iterator[None]:
    """Collect nothing within; what was imported is left out of all later collections too.

    A program that has disabled the collector finds it disabled afterwards.
    """
    if not gc.isenabled():
        yield
        return
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before + _MANY:
            gc.freeze()
        gc.enable()


@functools.cache
def end_quickly() -> None:
    """At this process's exit, collect nothing: the system takes its memory back in any case.

    What must happen at the exit (files, other processes, trackers) is done by functions of `atexit` and by threads that
    are waited for; both still run.
    """
    atexit.register(gc.freeze)
