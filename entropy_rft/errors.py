"""A mistake of the user, as opposed to a fault of this package.

The command line shows the first as one line with exit code 2, the second with its traceback. A library user does
not need these names: each class is also a subclass of the built-in exception that the documentation names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserMistake(Exception):
    """A check of this package found a mistake in the user's input. The message names field, value and fix."""


class UserValueError(UserMistake, ValueError):
    """A value that cannot be used."""


class UserTypeError(UserMistake, TypeError):
    """A value of the wrong type."""


class UserOSError(UserMistake, OSError):
    """A file, a directory or a server, named by the user, that cannot be used."""


def user_mistake(error: BaseException, prefix: str = "") -> UserMistake:
    """`error` as a user's mistake, with its message on one line after `prefix`; raise it from the error itself."""
    kind = UserOSError if isinstance(error, OSError) else UserTypeError if isinstance(error, TypeError) else None
    return (kind or UserValueError)(prefix + (" ".join(str(error).split()) or type(error).__name__))


@contextmanager
def users(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """For a library call that checks the user's input: errors of these `kinds` become the user's mistakes.

    Keep only that one call in the block. A bug of this package in it would be reported as the user's mistake.
    """
    try:
        yield
    except UserMistake:
        raise
    except kinds as error:
        raise user_mistake(error, prefix) from error
