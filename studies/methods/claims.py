"""The papers' claims, each a few comparisons with intervals: does it hold, does it not, or is it undecided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from operator import ge, gt, le, lt
from typing import Any

from entropy_rft.errors import UserValueError
from studies.methods.compare import Estimate, Group, Quantity, difference, proportion, trend
from studies.methods.plan import point

HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "undecided", "not measured"
MARGIN = 0.01  # of avg@k: "not lower" and "within a point" allow this much
KEPT = 1.1  # up to this many times PEAR's thinking counts as its shorter thinking


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        text: what is compared; for people.
        estimate: with its 95 % interval.
        relation: of the estimate to the threshold, a key of `_RELATIONS`.
        threshold: of the claim.
        unit: of the numbers.
    """

    text: str
    estimate: Estimate
    relation: str
    threshold: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Holds when it holds at both ends of the interval, does not hold when it holds at neither end."""
        low, high = self.estimate.low, self.estimate.high
        if not low <= high:  # NaN
            return UNDECIDED
        ends = {_RELATIONS[self.relation](end, self.threshold) for end in (low, high)}
        return UNDECIDED if len(ends) > 1 else HOLDS if ends == {True} else FAILS

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "verdict": self.verdict}


_RELATIONS: Mapping[str, Callable[[float, float], bool]] = {">": gt, "≥": ge, "<": lt, "≤": le}


@dataclass(frozen=True)
class Claim:
    """A claim holds when all its checks do, and does not hold when one of them does not.

    Attributes:
        missing: the methods, or points of a sweep, that it needs and that are not measured; without them it can fail,
            but not hold.
    """

    number: int
    text: str
    checks: Sequence[Check]
    missing: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        verdicts = {check.verdict for check in self.checks}
        if FAILS in verdicts:
            return FAILS
        if self.missing or not verdicts:
            return MISSING
        return UNDECIDED if UNDECIDED in verdicts else HOLDS

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        checks = [check.to_dict() for check in self.checks]
        return {
            "number": self.number, "text": self.text, "verdict": self.verdict, "missing": list(self.missing),
            "checks": checks,
        }  # fmt: skip


Groups = Mapping[str, Group]
Sweeps = Mapping[str, Mapping[float | str, Group]]


def judge(groups: Groups, sweeps: Sweeps, points: Mapping[str, Sequence[float | str]]) -> list[Claim]:
    """Judge all six claims.

    Args:
        groups: method (and ``start``) to its runs, as far as they are measured.
        sweeps: ``mu`` and ``alpha`` to value to its runs, as far as they are measured.
        points: the values that each sweep is to have.

    Raises:
        ValueError: two of them were measured on different questions.
    """
    everything = [*groups.values(), *(group for points in sweeps.values() for group in points.values())]
    if len({(group.questions_digest, group.samples) for group in everything}) > 1:
        raise UserValueError("the runs were measured on different questions: only the same ones can be compared")

    def missing(*names: str) -> list[str]:
        return [name for name in names if name not in groups]

    def missing_points(name: str) -> list[str]:
        wanted = points.get(name, ())
        absent = [f"{name} = {point(value)}" for value in wanted if value not in sweeps.get(name, {})]
        return absent if len(wanted) > 1 else [f"a sweep of {name}"]

    return [
        Claim(1, "GRPO's entropy falls", _collapse(groups), missing("start", "grpo")),
        Claim(
            2,
            "Clip_B and Clip_V end with at least 1.3 times GRPO's entropy, avg@k not lower, and pass@k on the hardest "
            "level higher",
            [check for method in ("clip_b", "clip_v") for check in _keeps_entropy(groups, method)],
            missing("grpo", "clip_b", "clip_v"),
        ),
        Claim(
            3,
            "PEAR ends with at least 25 % fewer thinking tokens than GRPO within a point of avg@k",
            _pear(groups),
            missing("grpo", "pear"),
        ),
        Claim(
            4,
            "PEAR alone drives entropy lower than GRPO; clipping with it keeps the shorter thinking and the entropy",
            _pear_and_clipping(groups),
            missing("grpo", "pear", "clip_b_pear", "clip_v_pear"),
        ),
        Claim(5, "a smaller μ keeps more entropy", _mu(_numeric(sweeps.get("mu", {}))), missing_points("mu")),
        Claim(
            6,
            "PEAR's α trades length against accuracy",
            _alpha(_numeric(sweeps.get("alpha", {}))),
            missing_points("alpha"),
        ),
    ]


def _numeric(points: Mapping[float | str, Group]) -> dict[float, Group]:
    return {float(value): group for value, group in points.items()}


def _collapse(groups: Groups) -> list[Check]:
    if not {"start", "grpo"} <= set(groups):
        return []
    ratio = proportion(groups["start"].entropy(), groups["grpo"].entropy())
    return [Check("entropy, GRPO / start", ratio, "<", 1.0)]


def _keeps_entropy(groups: Groups, method: str) -> list[Check]:
    if not {"grpo", method} <= set(groups):
        return []
    own, grpo, name = groups[method], groups["grpo"], _NAMES[method]
    k = own.samples
    hardest = _points(grpo.pass_at(k, grpo.hardest), own.pass_at(k, own.hardest))
    return [
        Check(f"entropy, {name} / GRPO", proportion(grpo.entropy(), own.entropy()), "≥", 1.3),
        _not_less_accurate(name, own, grpo),
        Check(f"pass@{k} on the hardest level, {name} - GRPO", hardest, ">", 0.0, "points"),
    ]


def _not_less_accurate(name: str, own: Group, grpo: Group) -> Check:
    change = _points(grpo.accuracy(), own.accuracy())
    return Check(f"avg@{own.samples}, {name} - GRPO", change, "≥", -100 * MARGIN, "points")


def _pear(groups: Groups) -> list[Check]:
    if not {"grpo", "pear"} <= set(groups):
        return []
    grpo, pear = groups["grpo"], groups["pear"]
    return [
        Check("thinking tokens, PEAR / GRPO", proportion(grpo.thinking(), pear.thinking()), "≤", 0.75),
        _not_less_accurate("PEAR", pear, grpo),
    ]


def _pear_and_clipping(groups: Groups) -> list[Check]:
    if not {"grpo", "pear"} <= set(groups):
        return []
    grpo, pear = groups["grpo"], groups["pear"]
    checks = [Check("entropy, PEAR / GRPO", proportion(grpo.entropy(), pear.entropy()), "<", 1.0)]
    for method in ("clip_b_pear", "clip_v_pear"):
        if method in groups:
            own, name = groups[method], _NAMES[method]
            checks += [
                Check(f"thinking tokens, {name} / GRPO", proportion(grpo.thinking(), own.thinking()), "<", 1.0),
                Check(f"thinking tokens, {name} / PEAR", proportion(pear.thinking(), own.thinking()), "≤", KEPT),
                Check(f"entropy, {name} / PEAR", proportion(pear.entropy(), own.entropy()), ">", 1.0),
            ]
    return checks


def _mu(points: Mapping[float, Group]) -> list[Check]:
    values = sorted(points)
    return [
        Check(f"entropy, μ = {small:g} / μ = {large:g}", proportion(points[large].entropy(), points[small].entropy()),
              ">", 1.0)
        for small, large in pairwise(values)
    ]  # fmt: skip


def _alpha(points: Mapping[float, Group]) -> list[Check]:
    """Both are to rise with α: a larger one takes more of the penalty away."""
    if len(points) < 2:
        return []
    groups = [group for _, group in sorted(points.items())]
    thinking, accuracy = trend([g.thinking() for g in groups]), trend([g.accuracy() for g in groups])
    where = f"from one α to the next of {', '.join(f'{value:g}' for value in sorted(points))}"
    return [
        Check(f"thinking tokens, {where}", thinking, ">", 0.0, "tokens"),
        Check(f"avg@{groups[0].samples}, {where}", _in_points(accuracy), ">", 0.0, "points"),
    ]


def _points(first: Quantity, second: Quantity) -> Estimate:
    return _in_points(difference(first, second))


def _in_points(found: Estimate) -> Estimate:
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high)


_NAMES = {"clip_b": "Clip_B", "clip_v": "Clip_V", "clip_b_pear": "Clip_B + PEAR", "clip_v_pear": "Clip_V + PEAR"}
