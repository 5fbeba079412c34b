"""One set of metrics over several processes, by prometheus_client's files in a directory that they share.

Each process writes its counters into files of its own, and any process adds up those of all, also of one that has
ended. What is only read at a scrape, such as the state of the backends, is copied into such metrics.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the directory to prometheus_client. It must be set before that is imported."""

# How a gauge of the workers becomes one: what is not listed is the highest of them.
_MODES = {
    "entropy_rft_backend_up": "livemin",
    "entropy_rft_backend_outstanding": "livesum",
    "entropy_rft_backend_limit": "livesum",
    "entropy_rft_backend_limits_thinking": "livemin",
}
_ATTEMPTS, _PAUSE_S = 5, 0.01  # at files that other processes change at this moment
_LIVE = re.compile(r"gauge_livesum_(\d+)\.db")  # removed when its process has ended


def shared_registry(directory: Path) -> tuple[CollectorRegistry, Published]:
    """What all processes count together, for /metrics and the status page.

    Args:
        directory: that `VARIABLE` names.

    Returns:
        The registry, and what makes the metrics of this process's own collectors known to all.
    """
    registry = CollectorRegistry()
    published = Published()
    registry.register(published)  # first, so that a scrape has the latest of the process that answers it
    registry.register(_Merged(directory))
    registry.register(_Workers(directory))
    return registry, published


class _Merged:
    """What all files say together. A worker that starts or ends meanwhile may leave one half made, or take one away."""

    def __init__(self, directory: Path) -> None:
        self._collector: Any = MultiProcessCollector(None, str(directory))

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        for attempt in range(_ATTEMPTS):
            try:
                return list(self._collector.collect())
            except (OSError, ValueError, struct.error):
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE_S)
        raise AssertionError("unreachable")


class Published:
    """Copies what collectors read into metrics that the other processes can read, whenever it is collected."""

    def __init__(self) -> None:
        self._collectors: list[Any] = []
        self._metrics: dict[str, Any] = {}
        self._counted: dict[tuple[str, tuple[str, ...]], float] = {}
        self._own = CollectorRegistry()  # nobody reads it: the files are read

    def add(self, collector: Any) -> None:
        """From now on also of this collector."""
        self._collectors.append(collector)

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        self.publish()
        return []

    def publish(self) -> None:
        """Copy the values of this moment."""
        for collector in self._collectors:
            for family in collector.collect():
                for sample in family.samples:
                    self._copy(family, tuple(sample.labels), tuple(sample.labels.values()), sample.value)

    def _copy(self, family: Metric, names: tuple[str, ...], values: tuple[str, ...], value: float) -> None:
        metric = self._metrics.get(family.name)
        if metric is None:
            make: Any = Counter if family.type == "counter" else Gauge
            more = {} if make is Counter else {"multiprocess_mode": _MODES.get(family.name, "livemax")}
            metric = make(family.name, family.documentation, names, registry=self._own, **more)
            self._metrics[family.name] = metric
        if family.type == "counter":
            before = self._counted.get((family.name, values), 0.0)
            metric.labels(*values).inc(value - before)
            self._counted[family.name, values] = value
        else:
            metric.labels(*values).set(value)


class _Workers:
    """Memory, processor time and descriptors of each process, by its id."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        matches = (_LIVE.fullmatch(file.name) for file in sorted(self._directory.iterdir()))
        for pid in (match[1] for match in matches if match):
            for family in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                merged = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "worker": pid}, sample.value)
        return found.values()
