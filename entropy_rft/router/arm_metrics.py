"""What an experiment is judged by: requests, tokens and durations of each arm."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

_WHOLE = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class ArmMetrics:
    """Metrics by arm (`experiment.Arm`), in the router's registry.

    Args:
        registry: of the router.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "entropy_rft_arm_requests", "Routed requests that have ended", ["arm", "status"], registry=registry
        )
        self._seconds = Histogram(
            "entropy_rft_arm_request_seconds",
            "From the head of an answered request to its answer's end",
            ["arm"],
            buckets=_WHOLE,
            registry=registry,
        )
        self._completion = Histogram(
            "entropy_rft_arm_completion_tokens",
            "Completion tokens of the answers that report them in their usage",
            ["arm"],
            buckets=_TOKENS,
            registry=registry,
        )
        self._prompt = Counter(
            "entropy_rft_arm_prompt_tokens", "Prompt tokens of the same answers", ["arm"], registry=registry
        )
        self._would = Counter(
            "entropy_rft_would_apply",
            "Answered requests in which the router would have set this field (mode: shadow)",
            ["field", "difficulty"],
            registry=registry,
        )
        self._bound: dict[tuple[Any, ...], Any] = {}

    def ended(self, arm: str, status: str, seconds: float) -> None:
        """Count a request; only the time of one that was answered well says something about the arm."""
        self._child(self._requests, arm, status).inc()
        if status == "200":
            self._child(self._seconds, arm).observe(seconds)

    def answered(self, arm: str, prompt: int | None, completion: int) -> None:
        """Count the tokens of an answer."""
        self._child(self._completion, arm).observe(completion)
        if prompt is not None:
            self._child(self._prompt, arm).inc(prompt)

    def would_apply(self, difficulty: str, fields: list[str]) -> None:
        """Count what the router would have set in a request, each field once."""
        for name in dict.fromkeys(fields):
            self._child(self._would, name, difficulty).inc()

    def _child(self, metric: Any, *labels: str) -> Any:
        """A metric's child; looked up in one step after the first time."""
        key = (metric, *labels)
        child = self._bound.get(key)
        if child is None:
            child = self._bound[key] = metric.labels(*labels)
        return child
