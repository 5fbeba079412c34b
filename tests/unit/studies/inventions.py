"""Results that nobody trained for."""

from __future__ import annotations

from typing import Any

import numpy as np

from studies.methods.plan import RunSpec
from studies.methods.results import RunResult

QUESTIONS, SAMPLES = 40, 8


def invented(spec: RunSpec, accuracy: float = 0.5, entropy: float = 0.3, thinking: float = 50.0) -> RunResult:
    """A result with these means, and questions that differ in the same way in every run."""
    rng = np.random.default_rng(0)
    questions, samples = spec.measurement.questions, spec.measurement.samples
    ease = np.linspace(0.4, -0.4, questions)
    correct = rng.binomial(samples, np.clip(accuracy + ease, 0, 1))
    lengths = np.round(thinking * samples * (1 - ease / 2))
    tokens = lengths + 10 * samples
    columns: dict[str, Any] = {
        "difficulty": [2 + i * 3 // questions for i in range(questions)],
        "correct": correct.tolist(),
        "tokens": tokens.tolist(),
        "thinking": lengths.tolist(),
        "answer": [10 * samples] * questions,
        "truncated": [0] * questions,
        "marker_missing": [0] * questions,
        "entropy": (entropy * tokens * (1 - ease / 4)).tolist(),
        "entropy_thinking": (entropy * tokens).tolist(),
        "entropy_answer": [0.04 * samples] * questions,
    }
    steps = list(range(1, spec.steps + 1))
    logged = ("entropy", "reward", "thinking", "length")
    curves = {name: {"steps": steps, "values": [0.1 * s for s in steps]} for name in logged}
    about = {"seconds": 0.01 * spec.completions, "completions": spec.completions, "device": "an abacus"}
    about["versions"] = {"trl": "1.16.0"}
    also = {f"{temperature:g}": columns for temperature in spec.measurement.also_at}
    return RunResult(spec.to_dict(), spec.digest, curves if spec.steps else {}, columns, samples, "same", about, also)
