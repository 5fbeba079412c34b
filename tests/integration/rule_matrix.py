"""Every rule with settings under which it acts on some tokens of a small batch: what the tests over all rules run.

A new rule is included when it is in `RULES`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from entropy_rft.entropy import RULES, Decision, Rule

LOOSE = {"target": "1.03x", "share": 0.1, "beta": 1.0}
"""Of options that are no thresholds: a value with which the rule acts on tokens at once, and at no bound of its own."""


def loosened(name: str) -> dict[str, Any]:
    """Options of the rule: thresholds a twentieth of the preset, any sign of the advantage, a tenth of the batch."""
    options: dict[str, Any] = {}
    for each in fields(RULES[name]):  # type: ignore[arg-type]
        if each.name in LOOSE:
            options[each.name] = LOOSE[each.name]
        elif each.metadata["choices"] is not None:
            if "all" in each.metadata["choices"]:
                options[each.name] = "all"
        elif each.default is not None:
            options[each.name] = 0.1 if each.name == "max_fraction" else each.default / 20
    return options


def loose_fields(name: str) -> dict[str, Any]:
    """The same as fields of the trainer's configuration, with the updates that the rule needs."""
    options = {f"entropy_clip_{option}": value for option, value in loosened(name).items()}
    return {"entropy_clip": name, **({"num_iterations": 2} if RULES[name].later_updates_only else {}), **options}


def loose_rules() -> list[Rule]:
    return [rule(**loosened(name)) for name, rule in RULES.items()]


def acted_on(decision: Decision) -> Tensor:
    """The tokens that are dropped or get a penalty: bool, the shape of the mask."""
    penalised = torch.zeros_like(decision.keep) if decision.penalty is None else decision.penalty.weight != 0
    return ~decision.keep | penalised
