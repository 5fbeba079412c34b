"""The claims of several studies in one table, from their claims.json alone; README.md and docs/results.md show it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropy_rft.reporting.cells import MISSING
from studies.methods.claims import UNDECIDED
from studies.methods.compare import three_digits

# Where a study's claims.json is, below scripts/results, and the table's column for it; the real model first.
STUDIES = {"SmolLM2": "smollm2", "first embedded model": "first/tiny", "second embedded model": "frontier"}


@dataclass(frozen=True)
class Row:
    """One claim's comparison in each study.

    Attributes:
        label: the claim, for people.
        checks: the text of its `claims.Check`, ``{k}`` for the study's samples; where studies differ, the text of each.
        ratio: the numbers are ratios.
    """

    label: str
    checks: Sequence[str]
    ratio: bool = False


def _keeps_entropy(title: str, label: str) -> list[Row]:
    return [
        Row(f"{label} ends with ≥ 1.3 × GRPO's entropy", [f"entropy, {title} / GRPO"], ratio=True),
        Row("… avg@k at most 1 point lower", [f"avg@{{k}}, {title} - GRPO"]),
        Row("… pass@k on the hardest level higher", [f"pass@{{k}} on the hardest level, {title} - GRPO"]),
    ]


def _with_pear(label: str, quantity: str, other: str) -> Row:
    """Of a rule with PEAR: Clip_B in the first study, the target rule in the second."""
    return Row(label, [f"{quantity}, {rule} + PEAR / {other}" for rule in ("Clip_B", "target")], ratio=True)


# A rule's published setting is no use on these small models: the one that the search of its study chose is compared.
ROWS = [
    Row("GRPO's entropy falls", ["entropy, GRPO / start"], ratio=True),
    *_keeps_entropy("target", "The target rule"),
    *_keeps_entropy("Clip_B", "Clip_B"),
    *_keeps_entropy("Clip_V", "Clip_V"),
    *_keeps_entropy("Clip-Cov", "Clip-Cov"),
    *_keeps_entropy("TRL's adaptive coefficient", "TRL's adaptive coefficient"),
    Row("PEAR ends with ≥ 25 % fewer thinking tokens than GRPO", ["thinking tokens, PEAR / GRPO"], ratio=True),
    Row("… avg@k at most 1 point lower", ["avg@{k}, PEAR - GRPO"]),
    Row("PEAR alone lowers the entropy below GRPO's", ["entropy, PEAR / GRPO"], ratio=True),
    _with_pear("A rule with PEAR (Clip_B; target) keeps more entropy than PEAR alone", "entropy", "PEAR"),
    _with_pear("… and PEAR's thinking length, up to a tenth", "thinking tokens", "PEAR"),
    _with_pear("… which is shorter than GRPO's", "thinking tokens", "GRPO"),
    Row(
        "A smaller μ keeps more entropy (Clip_B; first model: 1 against 2, second: 2.5 against 3)",
        ["entropy, μ = 1 / μ = 2", "entropy, μ = 2.5 / μ = 3"],
        ratio=True,
    ),
    Row(
        "PEAR's α trades length (tokens from one α to the next of -50, 1, 50: the slope of a line)",
        ["thinking tokens, from one α to the next of -50, 1, 50"],
    ),
    Row("… against avg@k (points, in the same way)", ["avg@{k}, from one α to the next of -50, 1, 50"]),
]


def table(claims: Mapping[str, Mapping[str, Any]]) -> str:
    """Of a column's title to its study's claims.json."""
    columns = {title: _Column(of_study) for title, of_study in claims.items()}
    lines = [f"| claim | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    lines += [f"| {row.label} | {' | '.join(own.cell(row) for own in columns.values())} |" for row in ROWS]
    return "\n".join(lines) + "\n"


def stored_claims(results: Path) -> dict[str, Mapping[str, Any]]:
    """What `table` reads, of the studies that have a claims.json below `results`."""
    files = {title: results / where / "claims.json" for title, where in STUDIES.items()}
    return {title: json.loads(file.read_text(encoding="utf-8")) for title, file in files.items() if file.is_file()}


class _Column:
    def __init__(self, study: Mapping[str, Any]) -> None:
        self._one_seed = len(study["seeds"]) == 1  # its interval would be of questions alone, and decides nothing
        self._k = study["test"]["samples"]
        self._checks = {check["text"]: check for claim in study["claims"] for check in claim["checks"]}

    def cell(self, row: Row) -> str:
        texts = [text.format(k=self._k) for text in row.checks]
        check = next((self._checks[text] for text in texts if text in self._checks), None)
        if check is None:
            return MISSING  # not asked there, or not measured yet
        found, times = check["estimate"], "× " if row.ratio else ""
        value = f"{times}{three_digits(found['value'])}"
        if self._one_seed:
            return f"{value}, one seed"
        if found["low"] is None:
            return f"{value}, {UNDECIDED}"
        verdict = check["verdict"] if check["verdict"] == UNDECIDED else f"**{check['verdict']}**"
        return f"{value} ({three_digits(found['low'])} to {three_digits(found['high'])}), {verdict}"
