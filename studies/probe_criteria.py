"""What decides whether the probe is better than another way to choose, and than another classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropy_rft.difficulty.compare.policies import Measured, Outcomes, saved_fraction
from entropy_rft.difficulty.metrics import confusion_matrix, macro_f1
from entropy_rft.difficulty.strategies import NAMES
from entropy_rft.difficulty.traces import Traces, levels
from entropy_rft.reporting.estimators import paired_difference

OTHERS = ("easy", "normal", "hard", "random_same_mix", "prompt_length")
"""What the probe is compared with, by name; see `measure_policies`."""
BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"
RESAMPLES = 2000
_ROUNDING = 1e-12  # a mean of differences that cancel is rarely exactly 0


def against(measured: Mapping[str, Measured], others: Sequence[str] = OTHERS) -> dict[str, dict[str, Any]]:
    """The probe beside each of `others` on the same answers.

    Args:
        measured: policies question by question, ``probe`` among them.
        others: names; one that was not measured is left out.

    Returns:
        By name: ``accuracy``, the probe's less the other's, and ``saving``, the fraction of the other's tokens that the
        probe saves, each with its 95 % interval from a paired bootstrap over questions; and the ``verdict``.
    """
    probe = measured["probe"]
    usable = np.isfinite(measured["normal"].right)
    found: dict[str, dict[str, Any]] = {}
    for name in others:
        if name not in measured:
            continue
        other = measured[name]
        accuracy = paired_difference(list(other.right[usable]), list(probe.right[usable]))
        saving = saved_fraction(other.tokens[usable], probe.tokens[usable])
        found[name] = {"accuracy": list(accuracy), "saving": saving, "verdict": verdict(accuracy, saving)}
    return found


def verdict(accuracy: Sequence[float], saving: Sequence[float]) -> str:
    """Better: one of the two intervals lies above 0 and the other number is not below 0. Worse: the reverse.

    Args:
        accuracy, saving: each the number with the ends of its interval.
    """
    pairs = ((accuracy, saving), (saving, accuracy))
    if any(first[1] > 0 and second[0] >= -_ROUNDING for first, second in pairs):
        return BETTER
    if any(first[2] < 0 and second[0] <= _ROUNDING for first, second in pairs):
        return WORSE
    return NOT_SHOWN


def macro_f1_difference(seeds: Sequence[Mapping[str, str]], first: str, second: str) -> list[float]:
    """Macro-F1 of `second` less that of `first`, mean over seeds, with a 95 % bootstrap interval over questions.

    Each resample draws the same questions for all seeds and both classifiers.

    Args:
        seeds: for each seed the class of each question, a digit each: ``label`` and what each classifier said.
        first, second: two classifiers.
    """
    said = [{name: np.asarray(list(text), dtype=np.int64) for name, text in seed.items()} for seed in seeds]

    def difference(chosen: Any) -> float:
        scores = [
            [macro_f1(confusion_matrix(own["label"][chosen], own[name][chosen])) for name in (second, first)]
            for own in said
        ]
        return float(np.mean([one - other for one, other in scores]))

    questions = len(said[0]["label"])
    rng = np.random.default_rng(0)
    drawn = [difference(rng.integers(questions, size=questions)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [difference(slice(None)), float(low), float(high)]


def strategies_by_level(answers: Outcomes, traces: Traces) -> dict[str, dict[str, dict[str, float]]]:
    """What each strategy gains and costs on the questions of each level: ``accuracy`` and ``tokens``.

    Args:
        answers: of the three strategies.
        traces: of the same questions, in the same order; questions without a level are left out.
    """
    own = np.asarray([str(row["level"]) for row in traces.rows])
    return {
        level: {
            name: {
                "accuracy": float(np.nanmean(answers.correct[index][own == level])),
                "tokens": float(answers.tokens[index][own == level].mean()),
            }
            for index, name in enumerate(NAMES)
        }
        for level in levels(traces.rows)
    }


def length_correlations(traces: Traces) -> dict[str, float | None]:
    """Pearson's correlation of the prompt's length with the level (where levels are numbers) and the pass rate."""
    lengths = traces.column("prompt_tokens")
    found: dict[str, float | None] = {"pass_rate": _correlation(lengths, traces.column("accuracy")), "level": None}
    if numbered(traces):
        found["level"] = _correlation(lengths, traces.column("level"))
    return found


def numbered(traces: Traces) -> bool:
    """Whether every question has a level that is a number."""
    try:
        return bool(np.isfinite(traces.column("level")).all())
    except (TypeError, ValueError):
        return False


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
