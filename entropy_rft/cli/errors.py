"""How the command line shows mistakes of the user, and faults of this package."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from entropy_rft.errors import UserMistake
from entropy_rft.signals import Terminated

TERMINATED = 143
REPORT = "please report it with the traceback above and the command that led to it"


class UserError(Exception):
    """Shown as one line, without a traceback (set ENTROPY_RFT_TRACEBACK=1 to see it)."""

    exit_code = 2

    @classmethod
    def of(cls, error: BaseException) -> UserError:
        """The message of `error` on one line."""
        return cls(" ".join(str(error).split()) or type(error).__name__)


@contextmanager
def user_errors() -> Iterator[None]:
    """For code that reads and checks the user's input: a mistake that a check of this package finds becomes one line.

    Warnings about future versions of a library are hidden: they would only come before that line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except UserMistake as error:
        raise UserError.of(error) from error


@contextmanager
def training_failures() -> Iterator[None]:
    """For a training: a failure whose cause is known becomes one line, and no process of several waits for others."""
    from entropy_rft.training.failures import TrainingFailed, leave_at_once

    try:
        yield
    except Terminated:
        print("entropy-rft: terminated; --resume_from_checkpoint auto resumes the run", file=sys.stderr)
        raise SystemExit(TERMINATED) from None
    except Exception as failure:
        error: Exception = failure
        if isinstance(failure, TrainingFailed):
            error = UserError.of(failure)
            error.exit_code = failure.exit_code
        elif isinstance(failure, UserMistake):
            error = UserError.of(failure)
        if "LOCAL_RANK" in os.environ:
            show(error, failure)
            leave_at_once(error.exit_code if isinstance(error, UserError) else 1)
        raise error from failure


def show(error: Exception, cause: Exception | None = None) -> None:
    """Print a user's mistake as one line, and a fault of this package with its traceback.

    ENTROPY_RFT_TRACEBACK=1 prints the traceback of a user's mistake too.
    """
    if not isinstance(error, UserError) or os.environ.get("ENTROPY_RFT_TRACEBACK") == "1":
        traceback.print_exception(cause or error)
    if isinstance(error, UserError):
        print(f"entropy-rft: error: {error}", file=sys.stderr)
    else:
        print(f"entropy-rft: this is a bug in entropy_rft, not your mistake: {REPORT}", file=sys.stderr)
