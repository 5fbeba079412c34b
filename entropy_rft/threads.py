"""How many threads a command computes with on a CPU, beside whatever else the machine is doing.

torch's threads spin while they wait for one another. On a core that another process uses too, each of thousands of
small operations a second then waits for a time slice: two threads on two cores become ten times slower, where one
thread would hardly notice. So a command of ours looks at the machine twice a second and computes with as many threads
as there are cores to itself. On a quiet machine that is as many as torch would take.

Only the command line, the studies and the scripts do this (`share_cores`); whoever imports the trainer keeps torch's
threads. What the user sets in the environment wins, and a model on a GPU is left alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

CHOSEN_BY_USER = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "MKL_NUM_THREADS", "MKL_DYNAMIC")
"""Whoever sets one of these has decided on the threads."""

INTERVAL = 0.5  # seconds between two looks: tens of milliseconds are the clock's own resolution

_sharing = False


def share_cores() -> None:
    """Let this process's models follow the load of the machine; to be called before torch is imported.

    It also asks MKL for results that do not depend on the number of threads (``MKL_CBWR``, read when the library
    loads), so that a run repeats bit for bit whatever else the machine was doing.
    """
    global _sharing
    if any(os.environ.get(name) for name in CHOSEN_BY_USER):
        return
    _sharing = True
    if "torch" not in sys.modules:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def watch(model: Any) -> Any:
    """Have `model` look at the machine before its forward passes, where `share_cores` was called; returns it."""
    if _sharing and model.get_input_embeddings().weight.device.type == "cpu":
        # Every forward pass begins there, whatever the model is wrapped in.
        model.get_input_embeddings().register_forward_pre_hook(FollowLoad())
    return model


class FollowLoad:
    """A forward hook that sets torch's threads to the cores which nobody else uses.

    Args:
        cores: that this process may run on.
        most: threads on a quiet machine; by default what torch has now.
        used: seconds of processor time that these cores have spent on anything, and this process on its own.
        clock: seconds.
    """

    def __init__(
        self,
        cores: list[int] | None = None,
        most: int | None = None,
        used: Callable[[list[int]], tuple[float, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import torch

        self.cores = own_cores() if cores is None else cores
        self.most = torch.get_num_threads() if most is None else most
        self._used = used or processor_seconds
        self._clock = clock
        self._last = (clock(), *self._used(self.cores))

    def __call__(self, *_: Any) -> None:
        elapsed = self._clock() - self._last[0]
        if elapsed < INTERVAL:
            return
        at, busy, own = self._last
        self._last = now_at, now_busy, now_own = (at + elapsed, *self._used(self.cores))
        others = max(0.0, (now_busy - busy) - (now_own - own)) / (now_at - at)
        self.set(threads_beside(others, len(self.cores), self.most))

    @staticmethod
    def set(threads: int) -> None:
        """Compute with so many threads in the calling thread."""
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def threads_beside(others: float, cores: int, most: int) -> int:
    """The threads for a process beside `others`, the cores (not a whole number) that other processes use.

    Half a core of others counts as one: two spinning threads and another process on two cores get two thirds each.
    """
    return max(1, min(most, int(cores - others + 0.5)))


def own_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor_seconds(cores: list[int]) -> tuple[float, float]:
    """What `cores` have spent on anything but idling, and this process on its own, in seconds since some moment."""
    import psutil

    idling = ("idle", "iowait", "guest", "guest_nice")  # guests are counted as user time too
    times = psutil.cpu_times(percpu=True)
    busy = sum(
        sum(seconds for name, seconds in times[core]._asdict().items() if name not in idling)
        for core in cores
        if core < len(times)
    )
    own = psutil.Process().cpu_times()
    return busy, own.user + own.system
