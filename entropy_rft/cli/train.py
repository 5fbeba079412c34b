"""`entropy-rft train`: one recipe, one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropy_rft.cli.collector import importing
from entropy_rft.cli.errors import UserError, training_failures, user_errors


def add_parser(subparsers: Any) -> None:
    """List the verb; its flags are the recipe's fields, see :func:`run`."""
    subparsers.add_parser(
        "train",
        add_help=False,
        help="train a model by a recipe: --config recipe.yaml, flags override its fields (train --help lists all)",
    )


def run(argv: Sequence[str]) -> int:
    """Parse the recipe, find every mistake in it, then train."""
    with importing():
        from entropy_rft.training.launch import USER_MISTAKE, Launch, leave_to_launcher
        from entropy_rft.training.recipe import RecipeParser, without_secrets

    parser = RecipeParser()
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return 0
    # A reward of the user's own, module:function, may be in the current directory, as with `python` itself.
    sys.path.insert(0, str(Path.cwd()))
    with user_errors():
        launch = Launch.of(argv, parser.flags)
        if launch is not None:
            parser.check(launch.training)
            return launch.run()
    try:
        with user_errors():
            recipe = parser.parse(argv)

            with importing():
                from entropy_rft.training.run import TrainingRun

            prepared = TrainingRun(recipe, command=["entropy-rft", "train", *without_secrets(argv)])
    except UserError as error:
        if leave_to_launcher(error):
            return USER_MISTAKE
        raise
    with training_failures():
        trainer = prepared.train()
        trainer.accelerator.print(f"model, metrics and recipe: {recipe.training.output_dir}")
        prepared.close()
    return 0
