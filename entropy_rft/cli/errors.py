"""Mistakes of the user, as opposed to ours."""

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
    """Around what reads and checks what the user gave: what a check of ours finds wrong is one line.

    Warnings about the future of a library would only stand before the line that matters.
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
    """Around a training: a failure whose cause is known is one line, and no process of several waits for the others."""
    from entropy_rft.training.failures import TrainingFailed, leave_at_once

    try:
        yield
    except Terminated:
        print("entropy-rft: terminated; --resume_from_checkpoint auto goes on", file=sys.stderr)
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
    """A user's mistake as one line, a fault of ours with its traceback; with ENTROPY_RFT_TRACEBACK=1 always that."""
    if not isinstance(error, UserError) or os.environ.get("ENTROPY_RFT_TRACEBACK") == "1":
        traceback.print_exception(cause or error)
    if isinstance(error, UserError):
        print(f"entropy-rft: error: {error}", file=sys.stderr)
    else:
        print(f"entropy-rft: this is a fault of entropy_rft, not of yours: {REPORT}", file=sys.stderr)
