"""`entropy-rft inspect`: which tokens the entropy change of a run came from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from entropy_rft.cli.flags import path
from entropy_rft.errors import UserValueError


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "inspect",
        help="which tokens the entropy change of a run came from, and what the rule removed",
        description="Show what the lens recorded of runs: which share of the predicted entropy change came from which "
        "tokens, what the rule removed of it, and the measured change where the updates were audited. A run records "
        "with entropy_lens_steps, or with EntropyLens on a plain TRL trainer.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=path, metavar="RUN", help="run directory with a lens.jsonl")
    add("--from_step", type=int, default=1, metavar="N", help="first update to include (default: %(default)s)")
    add("--to_step", type=int, metavar="N", help="last update to include (default: the last one recorded)")
    add(
        "--tokens",
        type=int,
        default=5,
        metavar="N",
        help="of the stored tokens, show the N most negative and the N most positive (default: %(default)s)",
    )
    add("--json", type=path, metavar="FILE", help="also write everything as JSON, with the stored tokens")
    add("--output", type=path, metavar="FILE.html", help="also write a page with figures and the shown tokens")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a table for each run and its most extreme tokens; write the files that were asked for.

    Raises:
        ValueError: a run has no records, an argument is wrong, or a file cannot be written.
    """
    for name, least in (("from_step", 1), ("to_step", args.from_step), ("tokens", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserValueError(f"--{name} must be at least {least}, got {value}")

    from rich.console import Console

    from entropy_rft.evaluation.lens import load_lens
    from entropy_rft.evaluation.lens_table import as_json, header, lens_lines, note, title, token_line
    from entropy_rft.reporting.cells import distinct, lined_table

    lenses = [load_lens(directory, args.from_step, args.to_step) for directory in args.runs]
    labels = distinct([(lens.name, lens.directory) for lens in lenses])
    console = Console()
    for lens, label in zip(lenses, labels, strict=True):
        console.print(lined_table(title(lens, label), header(lens), lens_lines(lens), note(lens)))
        for token in lens.extremes(args.tokens):
            console.print(token_line(token), markup=False, highlight=False, soft_wrap=True)
        for problem in lens.notes:
            console.print(f"note: {label}: {problem}", markup=False, highlight=False)
    if args.json:
        from entropy_rft.files import json_text

        content = {"runs": [as_json(lens, label) for lens, label in zip(lenses, labels, strict=True)]}
        _write("--json", args.json, json_text(content, indent=1) + "\n")
    if args.output:
        from entropy_rft.evaluation.lens_page import lens_page

        try:
            page = lens_page(lenses, labels, args.tokens)
        except ImportError as error:
            raise UserValueError(str(error)) from error
        _write("--output", args.output, page)
        console.print(f"page: {args.output}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _write(flag: str, file: str, text: str) -> None:
    from entropy_rft.atomic import write_text

    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    except OSError as error:
        raise UserValueError(f"{flag} {file!r} cannot be written: {error.strerror}") from error
