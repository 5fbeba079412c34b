"""Runs compared on the same questions, pair by pair: intervals over seeds and questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from scipy.stats import norm, t

from entropy_rft.errors import UserValueError
from studies.methods.results import RunResult

RESAMPLES = 20_000  # with fewer, an end of an interval changes in its third digit
CONFIDENCE = 0.95
_SIGMAS = float(norm.ppf((1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quantity:
    """A mean over seeds of ``Σ numerator / Σ denominator`` over questions, both of shape (seeds, questions)."""

    numerator: np.ndarray
    denominator: np.ndarray

    def at(self, counts: np.ndarray) -> np.ndarray:
        """(draws, seeds): of questions that were drawn so often, (draws, questions)."""
        return (counts @ self.numerator.T) / (counts @ self.denominator.T)

    @property
    def value(self) -> float:
        return float(np.mean(self.by_seed()))

    def by_seed(self) -> list[float]:
        """One number a seed; NaN where there is nothing to divide by, such as no answer at all."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return [float(x) for x in self.numerator.sum(1) / self.denominator.sum(1)]


class Group:
    """The runs of one method, one a seed, all measured on the same questions in the same order.

    Args:
        runs: one a seed.
        temperature: a further one of the measurement; None: its own.

    Raises:
        ValueError: there is none, or they were measured on different questions.
    """

    def __init__(self, runs: Sequence[RunResult], temperature: float | None = None) -> None:
        if not runs:
            raise UserValueError("no run to compare")
        if len({(run.questions_digest, run.samples) for run in runs}) > 1:
            names = ", ".join(run.spec["name"] for run in runs)
            raise UserValueError(
                f"the runs {names} were measured on different questions: only the same can be compared"
            )
        self.runs = list(runs)
        self.temperature = temperature
        self.samples = runs[0].samples
        self.questions_digest = runs[0].questions_digest
        self.difficulty = np.asarray(runs[0].questions["difficulty"])
        self.hardest = self.difficulty.max()

    def _stacked(self, name: str) -> np.ndarray:
        return np.stack([run.column(name, self.temperature) for run in self.runs])

    def _only(self, values: np.ndarray, level: float | None) -> np.ndarray:
        return values if level is None else values * (self.difficulty == level)

    def ratio(self, numerator: str, denominator: str, level: float | None = None) -> Quantity:
        """Of two columns; ``"completions"`` is the number of samples. `level` keeps the questions of one difficulty."""
        lower = np.full_like(self._stacked("correct"), self.samples)
        if denominator != "completions":
            lower = self._stacked(denominator)
        return Quantity(self._only(self._stacked(numerator), level), self._only(lower, level))

    def accuracy(self, level: float | None = None) -> Quantity:
        """avg@k, a fraction; what cannot be scored is left out (see `sampling.verdicts`)."""
        correct, scored = self._stacked("correct"), self._stacked("scored")
        means = np.divide(correct, scored, out=np.zeros_like(correct), where=scored > 0)
        return Quantity(self._only(means, level), self._only((scored > 0).astype(np.float64), level))

    def entropy(self) -> Quantity:
        """Nats per token, over all tokens."""
        return self.ratio("entropy", "tokens")

    def thinking(self, level: float | None = None) -> Quantity:
        """Thinking tokens per completion."""
        return self.ratio("thinking", "completions", level)

    def pass_at(self, k: int, level: float | None = None) -> Quantity:
        """Unbiased pass@k, a fraction; over the questions with at least `k` answers that can be scored."""
        correct, scored = self._stacked("correct").astype(int), self._stacked("scored").astype(int)
        passed = np.zeros(correct.shape)
        for n in np.unique(scored[scored >= k]):
            table = np.asarray([1 - comb(int(n) - c, k) / comb(int(n), k) for c in range(n + 1)])
            own = scored == n
            passed[own] = table[correct[own]]
        return Quantity(self._only(passed, level), self._only((scored >= k).astype(np.float64), level))


def estimate(
    quantities: Sequence[Quantity], combine: Callable[..., np.ndarray], *, positive: bool = False, seed: int = 0
) -> Estimate:
    """The mean over seeds of ``combine(*values)``, of quantities over the same seeds and questions.

    The interval covers other seeds and other questions. The runs of a seed are compared with each other, and these few
    comparisons follow Student's t. The spread over questions is that of resampling them with replacement, the same ones
    for all runs. The two variances are added. (Drawing three seeds with replacement, as is often done, never leaves
    their range: such a "95 %" interval holds three times in four.) With one seed the interval is of questions alone.

    Args:
        combine: from arrays, one of each quantity and all of one shape, to an array of that shape, value by value.
        positive: take the mean and the spread of the logarithm, as is right for a ratio; the value is then the
            geometric mean over seeds.

    Raises:
        ValueError: the quantities are of different numbers of seeds or questions.
    """
    shapes = {quantity.numerator.shape for quantity in quantities}
    if len(shapes) > 1:
        raise UserValueError(f"only runs of the same seeds and questions can be compared, got {sorted(shapes)}")
    ((seeds, questions),) = shapes
    scale, back = (np.log, np.exp) if positive else (np.asarray, np.asarray)
    counts = _counts(questions, RESAMPLES, seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw without a question of the level
        by_seed = scale(combine(*(np.asarray(quantity.by_seed()) for quantity in quantities)))
        centre = np.mean(by_seed)
        value = float(back(centre))
        over_questions = scale(combine(*(quantity.at(counts) for quantity in quantities))).mean(1)
        over_questions = over_questions[np.isfinite(over_questions)]
        if not over_questions.size:
            return Estimate(value, np.nan, np.nan)
        squares = (_SIGMAS * np.std(over_questions)) ** 2
        if seeds > 1:
            reach = t.ppf((1 + CONFIDENCE) / 2, seeds - 1)
            squares += reach**2 * np.var(by_seed, ddof=1) / seeds
        half = np.sqrt(squares)
        return Estimate(value, float(back(centre - half)), float(back(centre + half)))


def difference(first: Quantity, second: Quantity) -> Estimate:
    """`second` minus `first`."""
    return estimate([first, second], lambda a, b: b - a)


def proportion(first: Quantity, second: Quantity) -> Estimate:
    """`second` over `first`: the geometric mean of the seeds' ratios."""
    return estimate([first, second], lambda a, b: b / a, positive=True)


def in_points(found: Estimate) -> Estimate:
    """Of fractions, in points of percent."""
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high)


def three_digits(value: float) -> str:
    """``"13.0"``, ``"-1.00"``: a rounded number that ends in zeros must not look exact."""
    return f"{value:#.3g}".rstrip(".")


def signed(found: Estimate) -> str:
    """Of points: ``"+1.5 (-0.5 to 3.5)"``."""
    return f"{found.value:+.1f} ({found.low:.1f} to {found.high:.1f})"


def trend(points: Sequence[Quantity]) -> Estimate:
    """What a quantity changes by from one point to the next: the slope of the line through all, by least squares."""
    place = np.arange(len(points)) - (len(points) - 1) / 2
    weights = place / np.square(place).sum()
    return estimate(points, lambda *values: np.tensordot(weights, np.stack(values), 1))


@lru_cache(maxsize=2)  # tens of megabytes each; a report asks again and again for the same ones
def _counts(questions: int, draws: int, seed: int) -> np.ndarray:
    """How often each question is drawn, (draws, questions), so that one product does all sums."""
    drawn = np.random.default_rng(seed).multinomial(questions, np.full(questions, 1 / questions), draws)
    return drawn.astype(np.float64)
