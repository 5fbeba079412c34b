"""``entropy-rft VERB …``: finds the verb, and turns a user's mistake into one line and exit code 2."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from entropy_rft import __version__
from entropy_rft.cli import collector, demo, evaluate, fetch, inspect, probe, report, serve, train
from entropy_rft.cli.errors import UserError, show
from entropy_rft.errors import UserMistake
from entropy_rft.threads import share_cores

INTERRUPTED = 130
FAULT = 1


class OneLineParser(argparse.ArgumentParser):
    """Names what is wrong in one line, instead of printing the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; `train` parses its own flags, which are hundreds."""
    parser = OneLineParser(
        prog="entropy-rft",
        description="Entropy-aware reinforcement fine-tuning: train, evaluate, compare, serve.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"entropy-rft {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (demo, train, evaluate, report, inspect, probe, serve, fetch):
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a user's mistake, 1 for a fault, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("--local_rank="):
        del arguments[0]  # the deepspeed launcher puts it there; the environment has it too
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 gets "?" for an arrow, not a traceback
    share_cores()
    collector.end_quickly()
    try:
        if arguments[:1] == ["train"]:
            return train.run(arguments[1:])
        args = build_parser().parse_args(arguments)
        try:
            return args.run(args)
        except UserMistake as error:
            raise UserError.of(error) from error
    except UserError as error:
        if os.environ.get("ENTROPY_RFT_TRACEBACK") == "1":
            raise
        print(f"entropy-rft: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("entropy-rft: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        show(error)
        return FAULT


if __name__ == "__main__":
    raise SystemExit(main())
