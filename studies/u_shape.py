"""Whether a model's entropy has the U shape over difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropy_rft.difficulty.traces import Traces

RESAMPLES = 20_000  # the lower ends are small quantiles
U, NO_U, UNDECIDED = "U", "no U", "undecided"


def u_shape(traces: Sequence[Traces]) -> dict[str, Any]:
    """Whether the entropy is lower on medium difficulties than on the easiest and on the hardest.

    ``fall`` is the easiest level's mean entropy less the lowest of those between, ``rise`` the hardest level's less the
    same; nats, each with an interval from a bootstrap over the questions of each level. The lowest level stays that of
    the sample: were it determined again in each draw, the draws would repeat the bias that the lowest of several means
    has. Since it was chosen, the lower end is the quantile 0.025 divided by the number of levels between (Bonferroni);
    the upper end is the quantile 0.975. ``depth`` is the smaller of the two over the end that it is measured from. The
    verdict is U when both intervals are above 0, no U when one is below, and undecided otherwise; no U also with fewer
    than three levels.
    """
    by_question: dict[str, dict[str, list[float]]] = {}
    for own in traces:
        for identity, row in zip(own.ids, own.rows, strict=True):
            if row["level"] is not None and row["entropy"] is not None:
                by_question.setdefault(str(row["level"]), {}).setdefault(identity, []).append(row["entropy"])
    levels = sorted(by_question, key=float)
    values = [np.asarray([np.mean(each) for each in by_question[level].values()]) for level in levels]
    means = np.asarray([value.mean() for value in values])
    if len(levels) < 3:
        return {"verdict": NO_U, "levels": levels, "entropy": means.tolist(), "fall": None, "rise": None, "depth": None}
    rng = np.random.default_rng(0)
    drawn = np.stack(
        [value[rng.integers(len(value), size=(RESAMPLES, len(value)))].mean(1) for value in values], axis=1
    )
    between = len(levels) - 2
    lowest = 1 + int(means[1:-1].argmin())
    ends: dict[str, Any] = {}
    for name, end in (("fall", 0), ("rise", -1)):
        low, high = np.quantile(drawn[:, end] - drawn[:, lowest], [0.025 / between, 0.975])
        ends[name] = [float(means[end] - means[lowest]), float(low), float(high)]
    verdict = UNDECIDED
    if all(low > 0 for _, low, _ in ends.values()):
        verdict = U
    elif any(high < 0 for _, _, high in ends.values()):
        verdict = NO_U
    depth = min(ends["fall"][0] / means[0], ends["rise"][0] / means[-1])
    return {"verdict": verdict, "levels": levels, "entropy": means.tolist(), "depth": float(depth), **ends}
