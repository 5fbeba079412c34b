"""Keys come from the environment or a file, never from the settings themselves, and are never shown."""

from __future__ import annotations

import os
from pathlib import Path

from entropy_rft.errors import UserValueError


def read_key(whose: str, env: str | None, file: str | None) -> str | None:
    """The one key that `env` (a variable's name) or `file` holds; ``None`` when neither is given.

    Raises:
        ValueError: both are given, or it cannot be read, is empty, or is not one line of printable ASCII.
    """
    if env is None and file is None:
        return None
    key = _text(whose, env, file, ("api_key_env", "api_key_file")).strip()
    _check(whose, key, env or file)
    return key


def read_keys(env: str | None, file: str | None) -> tuple[str, ...]:
    """All keys: in the variable separated by commas or white space, in the file one per line. () when neither is given.

    Raises:
        ValueError: as `read_key`.
    """
    if env is None and file is None:
        return ()
    text = _text("auth", env, file, ("keys_env", "keys_file"))
    if env is not None:
        keys = text.replace(",", " ").split()
    else:
        keys = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise UserValueError(f"auth: {env or file!r} holds no key")
    for key in keys:
        _check("auth", key, env or file)
    return tuple(dict.fromkeys(keys))


def _text(whose: str, env: str | None, file: str | None, names: tuple[str, str]) -> str:
    if env is not None and file is not None:
        raise UserValueError(f"{whose}: give {names[0]} or {names[1]}, not both")
    if env is not None:
        if not os.environ.get(env, "").strip():
            raise UserValueError(f"{whose}: {names[0]} names the environment variable {env!r}, which is not set")
        return os.environ[env]
    assert file is not None
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserValueError(f"{whose}: {names[1]} {file!r} cannot be read: {reason}") from error


def _check(whose: str, key: str, where: str | None) -> None:
    if not key:
        raise UserValueError(f"{whose}: {where!r} holds no key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserValueError(f"{whose}: {where!r} holds a key that is not one word of printable ASCII")
