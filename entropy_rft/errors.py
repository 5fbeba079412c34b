"""A mistake of the user, as opposed to a fault of this package.

The command line shows the first as one line with exit code 2, the second with its traceback. A library user needs no
name from here: each class is also the built-in one that the documentation promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserMistake(Exception):
    """What a check of ours found wrong in what the user gave; the message names it, its value and the fix."""


class UserValueError(UserMistake, ValueError):
    """A value that cannot be used."""


class UserTypeError(UserMistake, TypeError):
    """A value of the wrong type."""


class UserOSError(UserMistake, OSError):
    """A file, a directory or a server, named by the user, that cannot be used."""


def user_mistake(error: BaseException, prefix: str = "") -> UserMistake:
    """`error` as the user's, its message on one line after `prefix`; to be raised from the error itself."""
    kind = UserOSError if isinstance(error, OSError) else UserTypeError if isinstance(error, TypeError) else None
    return (kind or UserValueError)(prefix + (" ".join(str(error).split()) or type(error).__name__))


@contextmanager
def users(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Around a library's look at what the user gave: its errors of these `kinds` are the user's mistakes.

    Keep what stands inside to that one call. An error of ours in it would be taken for the user's.
    """
    try:
        yield
    except UserMistake:
        raise
    except kinds as error:
        raise user_mistake(error, prefix) from error
