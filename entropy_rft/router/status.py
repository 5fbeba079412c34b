"""The status page: the most important numbers, read from the Prometheus registry only.

So the page shows nothing that the metrics do not have: no question, no answer, no key.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropy_rft.router.readings import Buckets, Samples, histogram, quantiles, read, single, sums, total

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

STEP_S = 5.0  # between two points of the page's curves
POINTS = 120  # ten minutes of them
RECENT_S = 60.0  # "now": rates and quantiles are over the last minute
ERROR_SHARE = 0.05  # of the last minute's requests: at this share the router is not healthy

_LEFT = "499"  # the client disconnected; not counted as an error
_DIFFICULTIES = ("easy", "normal", "hard")


@dataclass(frozen=True, slots=True)
class _Point:
    """The counters at one moment."""

    time: float
    status: Mapping[str, float]
    difficulty: Mapping[str, float]
    fallbacks: Mapping[str, float]
    routing: Buckets
    first_token: Buckets
    features: Buckets
    cache: Mapping[str, float]
    tokens: Mapping[str, float]
    saved: float | None


@dataclass(frozen=True, slots=True)
class _Step:
    """One point of each curve: what happened between two moments."""

    time: float
    requests_per_s: float
    error_share: float | None
    routing_p50_ms: float | None
    routing_p99_ms: float | None
    first_token_p50_ms: float | None
    first_token_p99_ms: float | None
    features_p50_ms: float | None
    features_p99_ms: float | None
    saved_per_s: float | None


class StatusBoard:
    """Keeps ten minutes of the counters and computes the page's numbers from them.

    Args:
        registry: that the router's metrics are in. A metric that is missing shows as unknown, never as zero.
        clock: seconds, monotonic.
    """

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        samples = read(self._registry)
        began = single(samples, "start_time_seconds")
        self._started = clock() - (0.0 if began is None else max(0.0, time.time() - began))
        self._points: deque[_Point] = deque([self._point(samples)], maxlen=POINTS + 1)
        self._curves: deque[_Step] = deque(maxlen=POINTS)  # computed once each, because the page polls often

    async def run(self) -> None:
        """Add a point to the curves every `STEP_S` seconds, until cancelled."""
        while True:
            await asyncio.sleep(STEP_S)
            self.sample()

    def sample(self) -> None:
        """Add a point to the curves now."""
        point = self._point(read(self._registry))
        self._curves.append(_step(self._points[-1], point))
        self._points.append(point)

    def snapshot(self) -> dict[str, Any]:
        """What ``GET /status.json`` answers, in seconds, milliseconds and tokens; None: not known."""
        samples = read(self._registry)
        now = self._point(samples)
        recent = self._before(now.time - RECENT_S)
        oldest = self._points[0]
        seconds = max(now.time - recent.time, 1e-3)
        requests = total(now.status) - total(recent.status)
        errors = _errors(now.status) - _errors(recent.status)
        backends = _backends(samples)
        feature_up = single(samples, "feature_up")
        state, reasons = _health(backends, feature_up, requests, errors)
        info = next((labels for labels, _ in samples.get("build_info", ())), {})
        return {
            "state": state,
            "reasons": reasons,
            "version": info.get("version"),
            "model": info.get("model"),
            "uptime_s": round(now.time - self._started, 1),
            "recent_s": round(min(RECENT_S, seconds), 1),
            "history_s": round(now.time - oldest.time, 1),
            "traffic": {
                "requests_per_s": requests / seconds,
                "error_share": errors / requests if requests else None,
                "in_flight": single(samples, "in_flight"),
                "requests": total(now.status),
                "errors": _errors(now.status),
                "refused": total({s: n for s, n in now.status.items() if s.startswith("4") and s != _LEFT}),
            },
            "difficulty": {
                name: {
                    "recent": now.difficulty.get(name, 0.0) - oldest.difficulty.get(name, 0.0),
                    "total": now.difficulty.get(name, 0.0),
                }
                for name in _DIFFICULTIES
            },
            "latency": {
                "routing": quantiles(recent.routing, now.routing),
                "first_token": quantiles(recent.first_token, now.first_token),
                "features": quantiles(recent.features, now.features),
            },
            "tokens": {
                "prompt": now.tokens.get("prompt"),
                "completion": now.tokens.get("completion"),
                "saved_estimate": now.saved,
            },
            "features": {
                "up": None if feature_up is None else bool(feature_up),
                "hit_share": _hit_share(oldest.cache, now.cache),
            },
            "fallbacks": [
                {"reason": reason, "recent": count - oldest.fallbacks.get(reason, 0.0), "total": count}
                for reason, count in sorted(now.fallbacks.items(), key=lambda item: (-item[1], item[0]))
                if count
            ],
            "backends": backends,
            "history": self._history(now),
        }

    def _history(self, now: _Point) -> dict[str, list[float | None]]:
        """The curves, one list each; "seconds" is their common axis, 0 now and negative before."""
        last = self._points[-1]
        steps = [*self._curves, *([_step(last, now)] if now.time - last.time >= 1.0 else [])]
        return {name: [getattr(step, name) for step in steps] for name in _Step.__slots__ if name != "time"} | {
            "seconds": [round(step.time - now.time, 1) for step in steps]
        }

    def _before(self, moment: float) -> _Point:
        """The last point that is at least as old as `moment`; the oldest where none is."""
        return next((point for point in reversed(self._points) if point.time <= moment), self._points[0])

    def _point(self, samples: Samples) -> _Point:
        saved = single(samples, "tokens_saved_estimate_total")
        if saved is not None:
            saved -= single(samples, "tokens_extra_estimate_total") or 0.0
        return _Point(
            self._clock(),
            sums(samples, "requests_total", "status"),
            sums(samples, "requests_total", "difficulty"),
            sums(samples, "fallbacks_total", "reason"),
            histogram(samples, "routing_seconds"),
            histogram(samples, "first_token_seconds"),
            histogram(samples, "feature_seconds"),
            sums(samples, "feature_cache_total", "result"),
            sums(samples, "tokens_total", "kind"),
            saved,
        )


def _errors(status: Mapping[str, float]) -> float:
    """Failed answers that the client did not cause: 5xx, and streams that broke off."""
    return sum(count for name, count in status.items() if name.startswith("5") or name.endswith("error"))


def _hit_share(old: Mapping[str, float], new: Mapping[str, float]) -> float | None:
    hits, misses = (new.get(name, 0.0) - old.get(name, 0.0) for name in ("hit", "miss"))
    return hits / (hits + misses) if hits + misses else None


def _backends(samples: Samples) -> list[dict[str, Any]]:
    up, outstanding, limit, breaker, errors = (
        sums(samples, name, "backend")
        for name in (
            "backend_up",
            "backend_outstanding",
            "backend_limit",
            "backend_breaker_open",
            "backend_failures_total",
        )
    )
    return [
        {
            "name": name,
            "up": bool(is_up),
            "breaker": {0.0: "closed", 1.0: "open"}.get(breaker.get(name, 0.0), "half-open"),
            "outstanding": outstanding.get(name),
            "limit": limit.get(name) or None,
            "failures": errors.get(name),
        }
        for name, is_up in sorted(up.items())
    ]


def _health(
    backends: Sequence[Mapping[str, Any]], feature_up: float | None, requests: float, errors: float
) -> tuple[str, list[str]]:
    """The state (healthy, degraded, down) and one short sentence for each reason."""
    reasons = [
        f"backend {backend['name']} {'is down' if not backend['up'] else 'is blocked by its circuit breaker'}"
        for backend in backends
        if not backend["up"] or backend["breaker"] == "open"
    ]
    down = len(reasons) == len(backends)
    if not backends:
        reasons.append("no backend is known")
    if feature_up == 0:
        reasons.append("the feature source does not answer: every question is asked as Normal")
    if requests and errors / requests >= ERROR_SHARE:
        reasons.append(f"{100 * errors / requests:.0f} % of the last minute's requests failed")
    return ("down" if down else "degraded" if reasons else "healthy"), reasons


def _step(old: _Point, new: _Point) -> _Step:
    seconds = max(new.time - old.time, 1e-3)
    requests = total(new.status) - total(old.status)
    routing, first, features = (
        quantiles(getattr(old, name), getattr(new, name)) for name in ("routing", "first_token", "features")
    )
    return _Step(
        new.time,
        requests / seconds,
        (_errors(new.status) - _errors(old.status)) / requests if requests else None,
        routing["p50_ms"],
        routing["p99_ms"],
        first["p50_ms"],
        first["p99_ms"],
        features["p50_ms"],
        features["p99_ms"],
        None if new.saved is None or old.saved is None else (new.saved - old.saved) / seconds,
    )


@lru_cache(maxsize=1)
def page() -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """What ``GET /`` answers: the page, and its headers.

    The policy names the page's own script and style by their hashes, so that nothing else runs or is fetched.
    """
    text = Path(__file__).with_name("status.html").read_text(encoding="utf-8")
    script, style = _hash(text, "script"), _hash(text, "style")
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return text.encode(), tuple((name.encode(), value.encode()) for name, value in headers.items())


def _hash(text: str, tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
