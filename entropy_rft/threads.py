"""Chooses the number of threads of a command on a CPU by the load of the machine.

torch's threads spin while they wait for one another. If another process uses one of the cores, each small operation
(there are thousands a second) waits for a time slice. Two threads on two cores then become ten times slower; one thread
is hardly affected. So a command of this package measures the load twice a second, and computes with as many threads as
there are free cores. On an idle machine that is torch's own number.

Only the command line, the studies and the scripts do this (`share_cores`). A program that imports the trainer keeps
torch's threads. A setting in the environment has priority, and nothing changes for a model on a GPU.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

CHOSEN_BY_USER = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "MKL_NUM_THREADS", "MKL_DYNAMIC")
"""If one of these is set, the user has chosen the threads."""

INTERVAL = 0.5  # seconds between two measurements: the clock's own resolution is tens of milliseconds

_sharing = False


def chosen_by_user() -> bool:
    """Whether the environment says how many threads there are to be."""
    return any(os.environ.get(name) for name in CHOSEN_BY_USER)


def share_cores() -> None:
    """Make this process's models follow the load of the machine; call it before torch is imported.

    It also asks MKL for results that do not depend on the number of threads (``MKL_CBWR``, read when the library
    loads), so that a run repeats bit for bit under any load.
    """
    global _sharing
    if chosen_by_user():
        return
    _sharing = True
    if "torch" not in sys.modules:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def watch(model: Any) -> Any:
    """If `share_cores` was called, make `model` measure the load before its forward passes; returns `model`."""
    if _sharing and model.get_input_embeddings().weight.device.type == "cpu":
        # Every forward pass begins with the embedding, also when the model is wrapped.
        model.get_input_embeddings().register_forward_pre_hook(FollowLoad())
    return model


class FollowLoad:
    """A forward hook that sets torch's threads to the number of cores that no other process uses.

    Args:
        cores: numbers of the cores that this process may run on.
        most: threads on an idle machine; by default torch's current number.
        used: gives the processor time in seconds, of all processes on these cores and of this process alone.
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
        """Set the number of threads that operations of the calling thread use."""
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def threads_beside(others: float, cores: int, most: int) -> int:
    """The number of threads for this process; `others` is the number of cores that others use, with a fraction.

    More than half a core counts as one: two spinning threads and another process on two cores get two thirds each.
    """
    return max(1, min(most, int(cores - others + 0.5)))


def own_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor_seconds(cores: list[int]) -> tuple[float, float]:
    """Processor time in seconds since a fixed moment: of `cores` while not idle, and of this process alone."""
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
