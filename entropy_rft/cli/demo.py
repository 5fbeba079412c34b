"""`entropy-rft demo`: train and compare the methods on the embedded model, in minutes."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.cli.collector import importing
from entropy_rft.cli.errors import TERMINATED
from entropy_rft.cli.flags import path
from entropy_rft.demo.models import MODELS
from entropy_rft.signals import Terminated, sigterm_raises


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "demo",
        help="train GRPO, the target rule and that rule with PEAR on a small model and compare them",
        description=(
            "From one checkpoint and the same questions, train GRPO, the target rule, and that rule with PEAR; "
            "evaluate each on held-out questions; print a table and write an HTML report. Needs no GPU, and with the "
            "embedded model no download."
        ),
    )
    add = parser.add_argument
    add(
        "--output_dir",
        default="runs/demo",
        type=path,
        metavar="DIR",
        help="where runs and report go (default: %(default)s)",
    )
    add(
        "--model",
        default=DEFAULT_MODEL,
        choices=MODELS,
        help="; ".join(f"{model.name}: {model.about}" for model in MODELS.values()) + " (default: %(default)s)",
    )
    add("--steps", type=int, metavar="N", help="optimisation steps of each method (default: the recipes')")
    questions, samples = (
        ", ".join(f"{getattr(model, name)} with {model.name}" for model in MODELS.values())
        for name in ("questions", "samples")
    )
    add("--questions", type=int, metavar="N", help=f"held-out questions (default: {questions})")
    add("--samples", type=int, metavar="N", help=f"completions per question (default: {samples})")
    add("--seed", type=int, default=0, help="of training and of sampling (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; SIGTERM ends it as Ctrl-C does.

    Raises:
        ValueError: an argument is out of range, the model was not fetched, or a package is missing.
    """
    try:
        with sigterm_raises():
            # On a busy machine this takes longer than a log should be silent.
            print("loading torch and TRL", flush=True)
            with importing():
                from entropy_rft.demo.run import Demo

            demo = Demo(
                args.output_dir,
                model=args.model,
                steps=args.steps,
                questions=args.questions,
                samples=args.samples,
                seed=args.seed,
            )
            return demo.run()
    except Terminated:
        print("entropy-rft: terminated", file=sys.stderr)
        return TERMINATED
