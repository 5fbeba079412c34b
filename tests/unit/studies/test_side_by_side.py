"""The claims of several studies in one table, and the pages that show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studies.methods.side_by_side import ROWS, STUDIES, stored_claims, table

ROOT = Path(__file__).parents[3]


def study(seeds: list[int], k: int, checks: dict[str, tuple[float, float | None, float | None, str]]) -> dict[str, Any]:
    found = [
        {"text": text, "estimate": {"value": value, "low": low, "high": high}, "verdict": verdict}
        for text, (value, low, high, verdict) in checks.items()
    ]
    return {"seeds": seeds, "test": {"samples": k}, "claims": [{"checks": found, "missing": []}]}


def cells(of: dict[str, Any], label: str) -> list[str]:
    (line,) = (line for line in table(of).splitlines() if line.startswith(f"| {label}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def test_a_cell_has_the_value_its_interval_and_the_verdict_of_the_study() -> None:
    first = study([0, 1], 8, {"avg@8, PEAR - GRPO": (1.234, -3.0, 4.0, "undecided")})
    second = study(
        [0, 1, 2],
        16,
        {
            "entropy, GRPO / start": (0.30912, 0.2, 0.4, "holds"),
            "entropy, target + PEAR / PEAR": (0.5, 0.4, 0.6, "does not hold"),
        },
    )
    of = {"one": first, "two": second}
    assert cells(of, "GRPO's entropy falls") == ["–", "× 0.309 (0.200 to 0.400), **holds**"]
    assert cells(of, "A rule with PEAR") == ["–", "× 0.500 (0.400 to 0.600), **does not hold**"]
    assert table(of).count("1.23 (-3.00 to 4.00), undecided") == 1


def test_one_seed_decides_nothing() -> None:
    of = {"one": study([0], 8, {"entropy, GRPO / start": (0.2, 0.19, 0.21, "holds")})}
    assert cells(of, "GRPO's entropy falls") == ["× 0.200, one seed"]


def test_an_estimate_without_an_interval_is_undecided() -> None:
    of = {"one": study([0, 1], 8, {"entropy, GRPO / start": (0.2, None, None, "undecided")})}
    assert cells(of, "GRPO's entropy falls") == ["× 0.200, undecided"]


def test_each_row_asks_what_some_study_measured() -> None:
    stored = stored_claims(ROOT / "scripts" / "results")
    assert set(stored) == set(STUDIES)
    asked = [line.split(" | ")[1:] for line in table(stored).splitlines()[2:]]
    assert [row.label for row, found in zip(ROWS, asked, strict=True) if set("".join(found)) <= set("–| ")] == []


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_pages_show_the_stored_numbers(page: str) -> None:
    def shown(text: str) -> list[str]:
        labels = {row.label for row in ROWS}
        return [line for line in text.splitlines() if line.startswith("| ") and line[2:].split(" | ")[0] in labels]

    made = table(stored_claims(ROOT / "scripts" / "results"))
    on_page = shown((ROOT / page).read_text(encoding="utf-8"))
    if page == "README.md":  # some of the rows, in their order: "…" belongs to the row before
        rest = iter(made.splitlines())
        assert all(line in rest for line in on_page)
        assert len(on_page) > 5
    else:
        assert made in (ROOT / page).read_text(encoding="utf-8")


def test_only_studies_with_claims_are_read(tmp_path: Path) -> None:
    assert stored_claims(tmp_path) == {}
    where = tmp_path / STUDIES["SmolLM2"]
    where.mkdir(parents=True)
    (where / "claims.json").write_text(json.dumps(study([0, 1], 8, {})))
    assert list(stored_claims(tmp_path)) == ["SmolLM2"]
