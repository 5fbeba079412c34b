"""`entropy-rft report`: compare run directories."""

from __future__ import annotations

import argparse
from typing import Any

from entropy_rft.cli.collector import importing
from entropy_rft.cli.flags import path
from entropy_rft.errors import UserValueError
from entropy_rft.run_files import REPORT


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "report",
        help="compare training runs in one HTML page",
        description="Compare run directories: a summary here, plots and tables in one self-contained HTML page.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=path,
        metavar="RUN",
        help="run directory, as training writes it; the first is the baseline of differences",
    )
    parser.add_argument(
        "--output", type=path, default=REPORT, metavar="FILE", help="page to write (default: %(default)s)"
    )
    parser.add_argument("--title", default="Training report", help="title of the page (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the summary and write the page.

    Raises:
        ValueError: a directory is no run, the page cannot be written, or matplotlib is missing.
    """
    from rich.console import Console

    with importing():
        from entropy_rft.evaluation.report import evaluation_rows, run_labels, write_report
        from entropy_rft.evaluation.run import load_run
        from entropy_rft.evaluation.summary import SUMMARY_NOTE, summary_lines
        from entropy_rft.evaluation.table import evaluation_table
        from entropy_rft.reporting.cells import lined_table

    runs = [load_run(directory) for directory in args.runs]
    console = Console()
    labels = run_labels(runs)
    console.print(lined_table("Runs", ["", *labels], summary_lines(runs), SUMMARY_NOTE))
    rows = [(label, evaluation) for _, label, evaluation in evaluation_rows(runs)]
    if rows:
        console.print(evaluation_table(rows))
    for one, label in zip(runs, labels, strict=True):
        for finding in one.findings:
            console.print(f"doctor: {label}: {finding}", markup=False, highlight=False)
        for note in one.notes:
            console.print(f"note: {label}: {note}", markup=False, highlight=False)
    try:
        write_report(runs, args.output, title=args.title)
    except ImportError as error:
        raise UserValueError(str(error)) from error
    except OSError as error:
        raise UserValueError(f"--output {args.output!r} cannot be written: {error.strerror}") from error
    console.print(f"report: {args.output}", markup=False, highlight=False)
    return 0
