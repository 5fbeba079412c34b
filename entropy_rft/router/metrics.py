"""Prometheus metrics. Counters of the hot path are bound once; the backends' state is read when it is scraped."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from entropy_rft import __version__
from entropy_rft.difficulty.strategies import NAMES
from entropy_rft.router.arm_metrics import ArmMetrics
from entropy_rft.router.backends import CLOSED, OPEN
from entropy_rft.router.experiment import UNCHANGED
from entropy_rft.router.metric_parts import WHOLE, Children

if TYPE_CHECKING:
    from entropy_rft.router.pool import Pool

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)

USAGE_TAIL = 4096  # bytes at an answer's end that hold its usage, if it reports one
# As OpenAI's chat names them, and as its Responses and Anthropic do.
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})')


class Metrics:
    """All metrics of one router, in a registry of their own.

    Args:
        mean_tokens: measured mean length of an answer with each strategy, by its name, as the probe's
            `metrics["mean_tokens"]`; the estimate of saved tokens is the difference to Normal's. Empty: no estimate.
        model: what `build_info` names.
        process: also of the process; without it, another registry has them.
    """

    def __init__(
        self, mean_tokens: Mapping[str, float] | None = None, model: str = "", *, process: bool = True
    ) -> None:
        self._state: _State | None = None
        self.registry = registry = CollectorRegistry()
        self._register: Callable[[Any], None] = registry.register
        self.publish: Callable[[], None] = lambda: None
        """Makes the latest state known to other workers."""
        if process:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)
        self._requests = Counter(
            "entropy_rft_requests",
            "Requests to be routed that have ended, by difficulty and status; 499: the client disconnected, "
            "stream_error: the backend died in the middle",
            ["endpoint", "difficulty", "status"],
            registry=registry,
        )
        self._child = Children()
        self._fallbacks = Counter(
            "entropy_rft_fallbacks",
            "Requests routed as Normal because the probe gave no choice",
            ["reason"],
            registry=registry,
        )
        self._applied = Counter(
            "entropy_rft_applied",
            "Answered requests in which the router set this field, by the difficulty's strategy",
            ["field", "difficulty"],
            registry=registry,
        )
        self.routing = Histogram(
            "entropy_rft_routing_seconds",
            "From a request's last byte to the request for the backend, the features included",
            buckets=_FAST,
            registry=registry,
        )
        self.feature = Histogram(
            "entropy_rft_feature_seconds", "Until the probe's answer, cached or not", buckets=_FAST, registry=registry
        )
        self.first_token = Histogram(
            "entropy_rft_first_token_seconds",
            "From a request's last byte to the first of a streamed answer",
            buckets=_SLOW,
            registry=registry,
        )
        self.duration = Histogram(
            "entropy_rft_request_seconds",
            "From a request's head to its answer's end",
            buckets=WHOLE,
            registry=registry,
        )
        self.arms = ArmMetrics(registry)
        tokens = Counter(
            "entropy_rft_tokens", "Tokens that answers report in their usage", ["kind", "difficulty"], registry=registry
        )
        self._tokens = {
            name: (tokens.labels("prompt", name), tokens.labels("completion", name)) for name in (*NAMES, "none")
        }
        self._saved = Counter(
            "entropy_rft_tokens_saved_estimate",
            "Estimate: the measured mean length of Normal answers minus that of the strategy's, where positive",
            registry=registry,
        )
        self._extra = Counter(
            "entropy_rft_tokens_extra_estimate", "The same, summed where the strategy costs more", registry=registry
        )
        self.retries = Counter("entropy_rft_retries", "Requests that were sent to a backend again", registry=registry)
        # The modes say how the values of several workers become one.
        self.in_flight = Gauge(
            "entropy_rft_in_flight", "Requests being answered now", registry=registry, multiprocess_mode="livesum"
        )
        self.ready = Gauge(
            "entropy_rft_ready", "Whether /ready answers 200", registry=registry, multiprocess_mode="livemin"
        )
        self.feature_up = Gauge(
            "entropy_rft_feature_up",
            "Whether the feature source answers; NaN where there is none",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.feature_up.set(math.nan)
        info = Gauge(
            "entropy_rft_build_info", "Always 1", ["version", "model"], registry=registry, multiprocess_mode="max"
        )
        info.labels(__version__, model).set(1)
        start = Gauge("entropy_rft_start_time_seconds", "Since the epoch", registry=registry, multiprocess_mode="min")
        start.set(time.time())
        self._digest = ""
        self._probe = Gauge(
            "entropy_rft_probe_info",
            "1 for the digest of the probe in use, 0 for those before it",
            ["digest"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        reloads = Counter(
            "entropy_rft_reloads",
            "Reloads of probe and strategies; error: the old ones stay in use",
            ["result"],
            registry=registry,
        )
        self._reloads = {True: reloads.labels("ok"), False: reloads.labels("error")}
        self.watch_probe(mean_tokens or {}, "")

    def reloaded(self, well: bool) -> None:
        """Count a reload."""
        self._reloads[well].inc()

    def watch_probe(self, mean_tokens: Mapping[str, float], digest: str) -> None:
        """Name the probe in use, and estimate by its mean lengths (see the class) from now on."""
        if self._digest:
            self._probe.labels(self._digest).set(0)  # removed it could not be where several processes share metrics
        self._digest = digest[:12]
        if digest:
            self._probe.labels(self._digest).set(1)
        mean = dict(mean_tokens)
        usual = mean.get("normal")
        self._saving = {n: float(usual - mean[n]) if usual is not None and n in mean else 0.0 for n in (*NAMES, "none")}

    def ended(self, endpoint: str, difficulty: str, status: str) -> None:
        """Count a request."""
        self._child(self._requests, endpoint, difficulty, status).inc()

    def fell_back(self, reason: str) -> None:
        """Count a request that is Normal because the probe gave no choice."""
        self._child(self._fallbacks, reason).inc()

    def applied(self, difficulty: str, fields: Iterable[str]) -> None:
        """Count what the router set in a request, each field once."""
        for name in dict.fromkeys(fields):
            self._child(self._applied, name, difficulty).inc()

    def answered(self, difficulty: str, tail: bytes, answers: int, arm: str = "treatment") -> None:
        """Count the tokens of an answer, by the usage near its end, and estimate what was saved.

        Args:
            difficulty: the decision's; `none` where nothing was decided.
            tail: the answer's last bytes.
            answers: how many it holds (`n`).
            arm: of the conversation. Without a strategy nothing was saved.
        """
        prompts, completions = _PROMPT.findall(tail), _COMPLETION.findall(tail)
        if completions:
            for counter, found in zip(self._tokens[difficulty], (prompts, completions), strict=True):
                if found:
                    counter.inc(int(found[-1]))
            self.arms.answered(arm, int(prompts[-1]) if prompts else None, int(completions[-1]))
        if arm in UNCHANGED:
            return
        saving = self._saving[difficulty] * answers
        if saving > 0:
            self._saved.inc(saving)
        elif saving < 0:
            self._extra.inc(-saving)

    def watch(self, pool: Pool, features: Any) -> None:
        """Let scrapes read the backends' state and the feature cache's."""
        self._state = _State(pool, features)
        self._register(self._state)

    def watch_features(self, features: Any) -> None:
        """Let scrapes read the cache of these features from now on."""
        if self._state is not None:
            self._state.features = features

    def share(self, directory: Path) -> None:
        """From now on `registry` has what all workers count; call it before `watch`. See `shared_registry`."""
        from entropy_rft.router.shared_metrics import shared_registry

        self.registry, published = shared_registry(directory)
        self._register, self.publish = published.add, published.publish


class _State:
    """Reads the state that the pool and the features keep."""

    def __init__(self, pool: Pool, features: Any) -> None:
        self._pool = pool
        self.features = features

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        try:
            now = asyncio.get_running_loop().time()
        except RuntimeError:  # scraped outside the loop, whose clock is this one
            now = time.monotonic()
        families: list[tuple[Any, Any]] = [
            (_gauge("up", "Whether the last health check succeeded"), lambda b: 1.0 if b.up else 0.0),
            (_gauge("outstanding", "Requests that it has not answered completely"), lambda b: b.outstanding),
            (_gauge("limit", "Most requests at the same time"), lambda b: b.limit),
            (_gauge("breaker_open", "1: no request; 0.5: one may try; 0: closed"), lambda b: _open(b.breaker(now))),
            (
                _gauge("cooling_seconds", "Seconds left of the pause that it asked for (429)"),
                lambda b: b.cooling_s(now),
            ),
            (
                _gauge(
                    "limits_thinking",
                    "Whether it knows a limit on the thinking, at each path tried; absent until that is known",
                ),
                lambda b: all(b.limits_thinking.values()) if b.limits_thinking else None,
            ),
            (_counter("requests", "Sent to it, health checks excluded"), lambda b: b.requests),
            (_counter("failures", "No answer, or a server error"), lambda b: b.failures),
        ]
        for family, value in families:
            for backend in self._pool.backends:
                found = value(backend)
                if found is not None:
                    family.add_metric([backend.name], float(found))
            yield family
        if hasattr(self.features, "hits"):
            cache = CounterMetricFamily(
                "entropy_rft_feature_cache", "Questions found in the cache, or not", labels=["result"]
            )
            cache.add_metric(["hit"], self.features.hits)
            cache.add_metric(["miss"], self.features.misses)
            yield cache


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"entropy_rft_backend_{name}", text, labels=["backend"])


def _counter(name: str, text: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"entropy_rft_backend_{name}", text, labels=["backend"])


def _open(state: int) -> float:
    return 0.0 if state == CLOSED else 1.0 if state == OPEN else 0.5
