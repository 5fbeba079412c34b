"""The router's own metrics as numbers: read from a Prometheus registry, summed over labels, quantiles of histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PREFIX = "entropy_rft_"

Buckets = tuple[tuple[float, float], ...]
"""(Upper bound in seconds, cumulative count), ascending; the last bound is infinite."""
Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""The labels and the value of each sample, by the sample's name without the prefix."""


def read(registry: CollectorRegistry) -> Samples:
    """Every sample of a metric whose name begins with `PREFIX`."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in registry.collect():
        if family.name.startswith(PREFIX):
            for sample in family.samples:
                samples.setdefault(sample.name[len(PREFIX) :], []).append((sample.labels, float(sample.value)))
    return samples


def quantile_ms(buckets: Buckets, share: float) -> float | None:
    """The `share` quantile in milliseconds of a histogram in seconds; linear inside a bucket, as Prometheus does it.

    None without any observation. What lies above the last finite bound is given as that bound.
    """
    observed = buckets[-1][1] if buckets else 0.0
    if observed <= 0:
        return None
    rank, low, below = share * observed, 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            if math.isinf(bound):
                return 1000 * low
            return 1000 * (low + (bound - low) * (rank - below) / (count - below))
        low, below = bound, count
    return 1000 * low


def sums(samples: Samples, name: str, label: str) -> dict[str, float]:
    """A metric's values, added up for each value of `label`; without the metric, empty."""
    found: dict[str, float] = {}
    for labels, value in samples.get(name, ()):
        key = labels.get(label, "")
        found[key] = found.get(key, 0.0) + value
    return found


def histogram(samples: Samples, name: str) -> Buckets:
    """A histogram's buckets, added up over its labels."""
    return tuple(sorted((float(bound), count) for bound, count in sums(samples, f"{name}_bucket", "le").items()))


def single(samples: Samples, name: str) -> float | None:
    """A metric's value, added up over its labels; None without it, or where it is NaN."""
    values = samples.get(name)
    value = sum(value for _, value in values) if values else math.nan
    return None if math.isnan(value) else value


def total(counts: Mapping[str, float]) -> float:
    return sum(counts.values())


def quantiles(old: Buckets, new: Buckets) -> dict[str, float | None]:
    """Of what was observed between two readings of a histogram."""
    before = dict(old)
    during = tuple((bound, count - before.get(bound, 0.0)) for bound, count in new)
    return {"p50_ms": quantile_ms(during, 0.5), "p99_ms": quantile_ms(during, 0.99)}
