"""`entropy-rft probe train`: fit a probe to traces."""

from __future__ import annotations

import argparse
from typing import Any

from entropy_rft.cli import flags
from entropy_rft.cli.probe.common import one_line, say
from entropy_rft.difficulty.strategies import PLACEMENTS
from entropy_rft.errors import users


def add_parser(parts: Any) -> None:
    """Register the part."""
    parser = parts.add_parser(
        "train",
        help="fit a probe to traces",
        description=(
            "Label the traces' questions and fit a probe to them. A part of the questions is held out first; the "
            "table is for that part."
        ),
    )
    add = parser.add_argument
    add("--traces", required=True, nargs="+", type=flags.path, metavar="DIR", help="what `probe collect` wrote")
    add("--output_dir", required=True, type=flags.path, metavar="DIR", help="where the probe goes")
    add("--kind", default="mlp", choices=("mlp", "linear"), help="of classifier (default: %(default)s)")
    add("--hidden_units", type=int, default=256, metavar="N", help="of the mlp (default: %(default)s)")
    add(
        "--thresholds",
        type=float,
        nargs=3,
        metavar=("ACCURACY_NORMAL", "ENTROPY_NORMAL", "ACCURACY_HARD"),
        help="of the labels, such as 0.85 0.35 0.60; calibrated on the traces when not given",
    )
    add(
        "--min_share",
        type=float,
        default=0.05,
        help="smallest share of a class when calibrating (default: %(default)s)",
    )
    add(
        "--strategies",
        type=flags.path,
        metavar="FILE",
        help="YAML of the strategies to store with the probe; the default ones when not given",
    )
    add(
        "--placement",
        default="system",
        choices=PLACEMENTS,
        help="where the strategies' instructions go: the system message, or the end of the last user message; a "
        "router with this probe puts them there (default: %(default)s)",
    )
    add("--test_fraction", type=float, default=0.2, help="of the questions, held out (default: %(default)s)")
    add("--epochs", type=int, default=100, metavar="N", help="at most (default: %(default)s)")
    add("--learning_rate", type=float, default=1e-3, help="of AdamW (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the splits and the weights (default: %(default)s)")
    parser.set_defaults(run=one_line(run))


def run(args: argparse.Namespace) -> int:
    """Train a probe, print its metrics, and save it.

    Raises:
        ValueError: an argument is wrong, or the traces cannot be read or used.
    """
    from rich.console import Console

    from entropy_rft.difficulty import DEFAULT_STRATEGIES, Thresholds, load_strategies, load_traces, train_probe
    from entropy_rft.difficulty.compare.page import classifier_lines, confusion_lines
    from entropy_rft.difficulty.strategies import NAMES
    from entropy_rft.reporting.cells import lined_table

    thresholds = None if args.thresholds is None else Thresholds(*args.thresholds)
    strategies = DEFAULT_STRATEGIES if args.strategies is None else load_strategies(args.strategies)
    traces = load_traces(*args.traces)
    probe = train_probe(
        traces,
        kind=args.kind,
        hidden_units=args.hidden_units,
        thresholds=thresholds,
        strategies=strategies,
        placement=args.placement,
        test_fraction=args.test_fraction,
        min_share=args.min_share,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    with users(OSError):
        probe.save_pretrained(args.output_dir)
    metrics, found = probe.metrics, probe.thresholds
    assert found is not None
    for note in traces.notes():
        say(note)
    origin = "calibrated" if thresholds is None else "given"
    say(
        f"thresholds ({origin}): normal from accuracy {found.accuracy_normal:.3f} with entropy up to "
        f"{found.entropy_normal:.3f} nats, hard below accuracy {found.accuracy_hard:.3f}"
    )
    say("labels: " + ", ".join(f"{name} {metrics['labels'][name]}" for name in NAMES))
    reports = {"probe": metrics["test"], **metrics["baselines"]}
    console, caption = Console(), f"{metrics['test']['questions']} questions"
    for title, (header, *lines) in (
        ("Held-out questions", classifier_lines(reports)),
        ("Confusion", confusion_lines(metrics["test"])),
    ):
        console.print(lined_table(title, header, lines, caption))
    say(f"probe: {args.output_dir}")
    return 0
