"""`entropy-rft probe tune-strategies`: search temperatures and budgets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from entropy_rft.cli import flags
from entropy_rft.cli.probe.common import add_running, one_line, prepared, say
from entropy_rft.errors import users


def add_parser(parts: Any) -> None:
    """Register the part."""
    parser = parts.add_parser(
        "tune-strategies",
        help="search temperatures and budgets on a validation split",
        description=(
            "Try a small grid of temperatures and shares of the budget for each difficulty, on questions of a "
            "validation split, and write the cheapest strategies that are about as accurate as Normal. Never on a "
            "test split."
        ),
    )
    add = parser.add_argument
    flags.add_probe(add)
    add("--traces", required=True, nargs="+", type=flags.path, metavar="DIR", help="of validation questions")
    add(
        "--output",
        default="strategies.yaml",
        type=flags.path,
        metavar="FILE",
        help="strategies to write (default: %(default)s)",
    )
    add(
        "--temperatures", type=float, nargs="+", default=(0.2, 0.4, 0.6, 0.8), metavar="T", help="(default: 0.2 to 0.8)"
    )
    add(
        "--fractions",
        type=float,
        nargs="+",
        default=(0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
        metavar="F",
        help="shares of the budget (default: 0.3 to 1)",
    )
    add(
        "--thinking_tokens",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="limits on the thinking to try instead of shares (default: a strategy's own limit stays, if it has one)",
    )
    add("--tolerance", type=float, default=0.01, help="accuracy that may be lost (default: %(default)s)")
    flags.add_sampling(add, samples=4, of="question and temperature", temperature=False, top_p=False)
    add_running(add)
    parser.set_defaults(run=one_line(run))


def run(args: argparse.Namespace) -> int:
    """Tune the strategies, print the trials, and write the YAML.

    Raises:
        ValueError: an argument is wrong, the traces are of a test split, or the probe or the model cannot be used.
        OSError: the server cannot be reached, or the file cannot be written.
    """
    from rich.console import Console

    from entropy_rft.difficulty import save_strategies
    from entropy_rft.difficulty.compare.tuning import check_grid, trial_lines, tune_strategies
    from entropy_rft.reporting.cells import lined_table

    flags.check_output(Path(args.output))
    check_grid(args.temperatures, args.fractions, args.tolerance, args.thinking_tokens)
    probe, questions, _, tokenizer, sampler = prepared(args, tuning=True)
    found, tried = tune_strategies(
        probe,
        questions,
        sampler,
        tokenizer,
        samples=args.samples,
        max_tokens=args.max_tokens,
        temperatures=args.temperatures,
        fractions=args.fractions,
        thinking_tokens=args.thinking_tokens,
        tolerance=args.tolerance,
        min_confidence=args.min_confidence,
        seed=args.seed,
    )
    header = ["", "temperature", "budget", "accuracy (%)", "tokens", "questions"]
    caption = "→ chosen, on the questions that the probe sends there; budget: share, or ≤ thinking"
    tasks = ", ".join(f"{task.name}/{task.split}" for task, _ in questions.parts)
    with users(OSError):
        save_strategies(
            found, args.output, f"Tuned for {questions.traces.model} on {tasks}, {len(questions)} questions."
        )
    Console().print(lined_table("Trials", header, trial_lines(tried, found), caption))
    say(f"strategies: {args.output} (give them to `probe train --strategies`)")
    return 0
