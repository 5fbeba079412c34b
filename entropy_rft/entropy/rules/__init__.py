"""Rules that choose which tokens of a batch leave the policy gradient or get a penalty, one module each.

The modules of this package are the list of rules: a new one is found automatically. The configuration, the command
line's choices and help, and the tests read `RULES`.
"""

from __future__ import annotations

import importlib
import pkgutil

from entropy_rft.entropy.rules.rule import Decision, Penalty, Rule


def _rules() -> dict[str, type[Rule]]:
    found: dict[str, type[Rule]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Rule) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


RULES = _rules()
"""Every rule by its name."""

__all__ = ["RULES", "Decision", "Penalty", "Rule"]
