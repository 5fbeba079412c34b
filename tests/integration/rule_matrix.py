"""Every rule with settings under which it drops some tokens of a small batch: what the tests over all rules run.

A new rule is included when it is in `RULES`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from entropy_rft.entropy import RULES, Rule

LOOSE = {"target": "10x"}
"""Of options that are no thresholds: a value with which the rule drops tokens at once."""


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
    """The same as fields of the trainer's configuration."""
    return {"entropy_clip": name, **{f"entropy_clip_{option}": value for option, value in loosened(name).items()}}


def loose_rules() -> list[Rule]:
    return [rule(**loosened(name)) for name, rule in RULES.items()]
