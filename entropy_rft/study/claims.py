"""The papers' claims, each a few comparisons with intervals: does it hold, does it not, or is it undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from entropy_rft.study.compare import Estimate, Group, Quantity, difference, proportion, trend

HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "undecided", "not measured"
MARGIN = 0.01  # of avg@k: "not lower" and "within a point" allow this much


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        text: what is compared; for people.
        estimate: with its 95 % interval.
        threshold: the estimate must be above it, or below it with `below`.
        unit: of the numbers.
    """

    text: str
    estimate: Estimate
    threshold: float
    below: bool = False
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Holds, or does not, when the whole interval lies on one side of the threshold."""
        low, high = self.estimate.low, self.estimate.high
        if not low <= high:  # NaN
            return UNDECIDED
        right, wrong = low >= self.threshold, high < self.threshold
        if self.below:
            right, wrong = high <= self.threshold, low > self.threshold
        return HOLDS if right else FAILS if wrong else UNDECIDED

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Claim:
    """A claim holds when all its checks do, and does not hold when one of them does not."""

    number: int
    text: str
    checks: Sequence[Check]

    @property
    def verdict(self) -> str:
        verdicts = {check.verdict for check in self.checks}
        if not verdicts:
            return MISSING
        return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        checks = [check.to_dict() for check in self.checks]
        return {"number": self.number, "text": self.text, "verdict": self.verdict, "checks": checks}


Groups = Mapping[str, Group]
Sweeps = Mapping[str, Mapping[float, Group]]


def judge(groups: Groups, sweeps: Sweeps) -> list[Claim]:
    """All six.

    Args:
        groups: method (and ``start``) to its runs; a claim whose methods are missing has no checks.
        sweeps: ``mu`` and ``alpha`` to value to its runs.

    Raises:
        ValueError: two of them were measured on different questions.
    """
    everything = [*groups.values(), *(group for points in sweeps.values() for group in points.values())]
    if len({(group.questions_digest, group.samples) for group in everything}) > 1:
        raise ValueError("the runs were measured on different questions: only the same ones can be compared")
    return [
        Claim(1, "GRPO's entropy falls", _collapse(groups)),
        Claim(
            2,
            "Clip_B and Clip_V end with at least 1.3 times GRPO's entropy, avg@k not lower, and pass@k on the hardest "
            "level higher",
            [check for method in ("clip_b", "clip_v") for check in _keeps_entropy(groups, method)],
        ),
        Claim(3, "PEAR ends with at least 25 % fewer thinking tokens than GRPO within a point of avg@k", _pear(groups)),
        Claim(
            4,
            "PEAR alone drives entropy lower than GRPO; clipping with it keeps the shorter thinking and the entropy",
            _pear_and_clipping(groups),
        ),
        Claim(5, "a smaller μ keeps more entropy", _mu(sweeps.get("mu", {}))),
        Claim(6, "PEAR's α trades length against accuracy", _alpha(sweeps.get("alpha", {}))),
    ]


def _collapse(groups: Groups) -> list[Check]:
    if not {"start", "grpo"} <= set(groups):
        return []
    ratio = proportion(groups["start"].entropy(), groups["grpo"].entropy())
    return [Check("entropy, GRPO / start", ratio, 1.0, below=True)]


def _keeps_entropy(groups: Groups, method: str) -> list[Check]:
    if not {"grpo", method} <= set(groups):
        return []
    own, grpo, name = groups[method], groups["grpo"], _NAMES[method]
    k = own.samples
    return [
        Check(f"entropy, {name} / GRPO", proportion(grpo.entropy(), own.entropy()), 1.3),
        Check(f"avg@{k}, {name} - GRPO", _points(grpo.accuracy(), own.accuracy()), -100 * MARGIN, unit="points"),
        Check(
            f"pass@{k} on the hardest level, {name} - GRPO",
            _points(grpo.pass_at(k, grpo.hardest), own.pass_at(k, own.hardest)),
            0.0,
            unit="points",
        ),
    ]


def _pear(groups: Groups) -> list[Check]:
    if not {"grpo", "pear"} <= set(groups):
        return []
    grpo, pear = groups["grpo"], groups["pear"]
    return [
        Check("thinking tokens, PEAR / GRPO", proportion(grpo.thinking(), pear.thinking()), 0.75, below=True),
        Check(
            f"avg@{pear.samples}, PEAR - GRPO", _points(grpo.accuracy(), pear.accuracy()), -100 * MARGIN, unit="points"
        ),
    ]


def _pear_and_clipping(groups: Groups) -> list[Check]:
    if not {"grpo", "pear"} <= set(groups):
        return []
    grpo, pear = groups["grpo"], groups["pear"]
    checks = [Check("entropy, PEAR / GRPO", proportion(grpo.entropy(), pear.entropy()), 1.0, below=True)]
    for method in ("clip_b_pear", "clip_v_pear"):
        if method in groups:
            own, name = groups[method], _NAMES[method]
            checks += [
                Check(f"thinking tokens, {name} / GRPO", proportion(grpo.thinking(), own.thinking()), 1.0, below=True),
                Check(f"entropy, {name} / PEAR", proportion(pear.entropy(), own.entropy()), 1.0),
            ]
    return checks


def _mu(points: Mapping[float, Group]) -> list[Check]:
    if len(points) < 2:
        return []
    entropies = {value: group.entropy() for value, group in sorted(points.items())}
    smallest, largest = min(entropies), max(entropies)
    ratio = proportion(entropies[largest], entropies[smallest])
    return [
        Check("slope of entropy over μ", trend(entropies), 0.0, below=True, unit="nats per σ"),
        Check(f"entropy, μ = {smallest:g} / μ = {largest:g}", ratio, 1.0),
    ]


def _alpha(points: Mapping[float, Group]) -> list[Check]:
    if len(points) < 2:
        return []
    smallest, largest = points[min(points)], points[max(points)]
    text = f"α = {max(points):g} - α = {min(points):g}"
    return [
        Check(f"thinking tokens, {text}", difference(smallest.thinking(), largest.thinking()), 0.0, unit="tokens"),
        Check(f"avg@{largest.samples}, {text}", _points(smallest.accuracy(), largest.accuracy()), 0.0, unit="points"),
    ]


def _points(first: Quantity, second: Quantity) -> Estimate:
    found = difference(first, second)
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high)


_NAMES = {"clip_b": "Clip_B", "clip_v": "Clip_V", "clip_b_pear": "Clip_B + PEAR", "clip_v_pear": "Clip_V + PEAR"}
