"""What an experiment is judged by: requests, tokens and durations of each arm."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from entropy_rft.router.metric_parts import WHOLE, Children

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
            buckets=WHOLE,
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
        self._child = Children()

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
