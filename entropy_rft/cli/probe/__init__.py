"""`entropy-rft probe`: traces, a probe of a question's difficulty, and what choosing a strategy by it saves."""

from __future__ import annotations

from typing import Any

from entropy_rft.cli.probe import check, collect, evaluate, train, tune


def add_parser(subparsers: Any) -> None:
    """Register the verb and its parts."""
    parser = subparsers.add_parser(
        "probe",
        help="choose a strategy by a question's difficulty: collect, train, evaluate, tune-strategies, check",
        description=(
            "Difficulty-adaptive inference (DiffAdapt): collect traces of a model's answers, train a probe that "
            "estimates a question's difficulty from its hidden state, and measure what choosing a strategy by it saves."
        ),
    )
    parts = parser.add_subparsers(title="parts", metavar="PART", required=True)
    for part in (collect, train, evaluate, tune, check):
        part.add_parser(parts)
