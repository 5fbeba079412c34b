"""`entropy-rft demo`: train and compare the methods on the embedded model, in minutes."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from entropy_rft.cli.errors import TERMINATED
from entropy_rft.cli.flags import path
from entropy_rft.signals import Terminated, sigterm_raises


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "demo",
        help="train GRPO, Clip_B and Clip_B with PEAR on the embedded model and compare them",
        description=(
            "From one checkpoint and the same questions, train GRPO, Clip_B, and Clip_B with PEAR; evaluate each on "
            "held-out questions; print a table and write an HTML report. Needs no GPU and no download."
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
    add("--steps", type=int, metavar="N", help="optimisation steps of each method (default: the recipes')")
    add("--questions", type=int, default=120, metavar="N", help="held-out questions (default: %(default)s)")
    add("--samples", type=int, default=8, metavar="N", help="completions per question (default: %(default)s)")
    add("--seed", type=int, default=0, help="of training and of sampling (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; SIGTERM ends it as Ctrl-C does.

    Raises:
        ValueError: an argument is out of range, or matplotlib is missing.
    """
    try:
        with sigterm_raises():
            from entropy_rft.demo import Demo

            return Demo(args.output_dir, args.steps, args.questions, args.samples, args.seed).run()
    except Terminated:
        print("entropy-rft: terminated", file=sys.stderr)
        return TERMINATED
