"""The tables of rules and rewards say what the lists in the code say."""

from __future__ import annotations

import re
from dataclasses import fields

from reading import ROOT

from entropy_rft.entropy import RULES
from entropy_rft.rewards.catalogue import reward_names

COLUMNS = ["rule", "fields and presets", "reads", "drops or adds", "costs", "does nothing when"]
TABLE = re.compile(rf"^\| {re.escape(' | '.join(COLUMNS))} \|\n\|[- |]+\n((?:\|.*\n)+)", re.MULTILINE)


def test_each_rule_has_a_row_with_its_fields_and_presets() -> None:
    page = (ROOT / "docs" / "rules-and-rewards.md").read_text(encoding="utf-8")
    (table,) = TABLE.findall(page)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
    assert [row[0] for row in rows] == [f"`{name}`" for name in RULES]
    assert all(len(row) == len(COLUMNS) and all(row) for row in rows)
    for row, rule in zip(rows, RULES.values(), strict=True):
        said = dict(re.findall(r"`(\w+)` ([^,]+)", row[1]))
        presets = {each.name: each.default for each in fields(rule)}  # type: ignore[arg-type]
        assert said.keys() == presets.keys(), row[0]
        for name, preset in presets.items():
            expected = "none" if preset is None else preset
            assert (said[name] if isinstance(expected, str) else float(said[name])) == expected, (row[0], name)


def test_each_field_of_a_rule_is_explained() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, rule in RULES.items():
        assert f"`{name}`" in page
        for each in fields(rule):  # type: ignore[arg-type]
            assert f"`entropy_clip_{each.name}`" in page, each.name


def test_each_reward_that_can_be_named_is_in_the_table() -> None:
    page = (ROOT / "docs" / "rules-and-rewards.md").read_text(encoding="utf-8")
    table = page[page.index("## Rewards in a recipe") :]
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)))
    assert set(reward_names()) <= set(named)
