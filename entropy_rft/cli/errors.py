"""Mistakes of the user, as opposed to ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Shown as one line, without a traceback (set ENTROPY_RFT_TRACEBACK=1 to see it)."""

    @classmethod
    def of(cls, error: BaseException) -> UserError:
        """The message of `error` on one line."""
        return cls(" ".join(str(error).split()) or type(error).__name__)


@contextmanager
def user_errors() -> Iterator[None]:
    """Around what only reads and checks what the user gave: whatever is wrong there is the user's to mend.

    Warnings about the future of a library would only stand before the line that matters.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        raise UserError.of(error) from error
