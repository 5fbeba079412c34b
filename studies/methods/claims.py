"""The papers' claims, each a few comparisons with intervals: does it hold, does it not, or is it undecided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from operator import ge, gt, le, lt
from typing import Any

from entropy_rft.errors import UserValueError
from studies.methods.compare import Estimate, Group, Quantity, difference, in_points, proportion, three_digits, trend
from studies.methods.plan import START, Plan, point

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
        """Holds when it holds at both ends of the interval, does not hold when it holds at neither end.

        The ends are those that the tables show, three digits: what the bootstrap's random draws could change decides
        nothing.
        """
        low, high = (float(three_digits(end)) for end in (self.estimate.low, self.estimate.high))
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


def judge(plan: Plan, groups: Groups, sweeps: Sweeps) -> list[Claim]:
    """Judge the claims that `plan` has methods and sweeps for.

    Each method whose aim is entropy is to keep it; the one whose aim is length is to shorten the thinking; a method
    that builds on it is to keep both. μ and α are judged where they are swept.

    Args:
        plan: of the study.
        groups: method (and ``start``) to its runs, as far as they are measured.
        sweeps: by name, value to its runs, as far as they are measured.

    Raises:
        ValueError: two of them were measured on different questions.
    """
    everything = [*groups.values(), *(group for points in sweeps.values() for group in points.values())]
    if len({(group.questions_digest, group.samples) for group in everything}) > 1:
        raise UserValueError("the runs were measured on different questions: only the same ones can be compared")
    grpo = plan.baseline

    def claim(text: str, checks: Callable[[], list[Check]], *needed: str) -> tuple[str, list[Check], list[str]]:
        absent = [name for name in needed if name not in groups]
        return text, [] if absent else checks(), absent

    found = [claim("GRPO's entropy falls", lambda: _collapse(groups[START], groups[grpo]), START, grpo)]
    aims = {name: method.aim for name, method in plan.methods.items() if name != grpo}
    titles = {name: method.title for name, method in plan.methods.items()}
    for name in (name for name, aim in aims.items() if aim in ("entropy", "target")):
        text = (
            f"{titles[name]} ends with at least 1.3 times GRPO's entropy, avg@k not lower, and pass@k on the hardest "
        )
        keeps = partial(_keeps_entropy, name, titles, groups, grpo)
        found.append(claim(f"{text}level higher", keeps, grpo, name))
    for name in (name for name, aim in aims.items() if aim == "length" and plan.methods[name].builds_on is None):
        text = f"{titles[name]} ends with at least 25 % fewer thinking tokens than GRPO within a point of avg@k"
        found.append(claim(text, partial(_shorter, name, titles, groups, grpo), grpo, name))
        both = [own for own, method in plan.methods.items() if method.builds_on == name]
        if both:
            text, checks, absent = claim(
                f"{titles[name]} alone drives entropy lower than GRPO; a rule with it keeps the shorter thinking and "
                "the entropy",
                partial(_lower_entropy, name, titles, groups, grpo),
                grpo,
                name,
            )
            for other in both:
                if other in groups and not absent:
                    checks += _keeps_both(other, name, titles, groups, grpo)
            found.append((text, checks, absent + [other for other in both if other not in groups]))
    for name, sweep in plan.sweeps.items():
        if sweep.field in _SWEPT and len(sweep.values) > 1:
            text, checks_of = _SWEPT[sweep.field]
            swept = sweeps.get(name, {})
            absent = [f"{name} = {point(value)}" for value in sweep.values if value not in swept]
            checks = checks_of(_numeric(swept))
            found.append((text.format(title=titles[sweep.method]), checks, absent))
    return [Claim(number, *parts) for number, parts in enumerate(found, 1)]


def _numeric(points: Mapping[float | str, Group]) -> dict[float, Group]:
    return {float(value): group for value, group in points.items()}


def _collapse(start: Group, grpo: Group) -> list[Check]:
    return [Check("entropy, GRPO / start", proportion(start.entropy(), grpo.entropy()), "<", 1.0)]


def _keeps_entropy(name: str, titles: Mapping[str, str], groups: Groups, baseline: str) -> list[Check]:
    own, grpo, title = groups[name], groups[baseline], titles[name]
    k = own.samples
    hardest = _points(grpo.pass_at(k, grpo.hardest), own.pass_at(k, own.hardest))
    return [
        Check(f"entropy, {title} / GRPO", proportion(grpo.entropy(), own.entropy()), "≥", 1.3),
        _not_less_accurate(title, own, grpo),
        Check(f"pass@{k} on the hardest level, {title} - GRPO", hardest, ">", 0.0, "points"),
    ]


def _not_less_accurate(title: str, own: Group, grpo: Group) -> Check:
    change = _points(grpo.accuracy(), own.accuracy())
    return Check(f"avg@{own.samples}, {title} - GRPO", change, "≥", -100 * MARGIN, "points")


def _shorter(name: str, titles: Mapping[str, str], groups: Groups, baseline: str) -> list[Check]:
    own, grpo, title = groups[name], groups[baseline], titles[name]
    return [
        Check(f"thinking tokens, {title} / GRPO", proportion(grpo.thinking(), own.thinking()), "≤", 0.75),
        _not_less_accurate(title, own, grpo),
    ]


def _lower_entropy(name: str, titles: Mapping[str, str], groups: Groups, baseline: str) -> list[Check]:
    ratio = proportion(groups[baseline].entropy(), groups[name].entropy())
    return [Check(f"entropy, {titles[name]} / GRPO", ratio, "<", 1.0)]


def _keeps_both(name: str, base: str, titles: Mapping[str, str], groups: Groups, baseline: str) -> list[Check]:
    own, alone, grpo, title = groups[name], groups[base], groups[baseline], titles[name]
    return [
        Check(f"thinking tokens, {title} / GRPO", proportion(grpo.thinking(), own.thinking()), "<", 1.0),
        Check(f"thinking tokens, {title} / {titles[base]}", proportion(alone.thinking(), own.thinking()), "≤", KEPT),
        Check(f"entropy, {title} / {titles[base]}", proportion(alone.entropy(), own.entropy()), ">", 1.0),
    ]


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
        Check(f"avg@{groups[0].samples}, {where}", in_points(accuracy), ">", 0.0, "points"),
    ]


def _points(first: Quantity, second: Quantity) -> Estimate:
    return in_points(difference(first, second))


# Field to the claim about it, where it is swept.
_SWEPT: Mapping[str, tuple[str, Callable[[dict[float, Group]], list[Check]]]] = {
    "entropy_clip_mu_low": ("{title}: a smaller μ keeps more entropy", _mu),
    "pear_alpha": ("{title}: α trades length against accuracy", _alpha),
}
