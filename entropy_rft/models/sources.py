"""The model names that the package defines itself."""

from __future__ import annotations

from pathlib import Path

from entropy_rft.assets import EMBEDDED_MODELS
from entropy_rft.errors import UserValueError
from entropy_rft.models import smollm2


def model_source(name: str) -> str:
    """The directory of an embedded model or of ``smollm2``; any other name as it is, ``~`` for the home directory.

    Raises:
        ValueError: ``smollm2`` was not fetched.
    """
    if name == smollm2.NAME and not smollm2.is_there():
        raise UserValueError(
            f"model {name!r} is not in {str(smollm2.cache_directory())!r} yet: `entropy-rft fetch {name}` puts it "
            "there, without a hub (ENTROPY_RFT_CACHE names another directory)"
        )
    return model_place(name)


def model_place(name: str) -> str:
    """As `model_source`, also where nothing lies there: for comparing names."""
    if name in EMBEDDED_MODELS:
        return str(EMBEDDED_MODELS[name])
    if name == smollm2.NAME:
        return str(smollm2.directory())
    return str(Path(name).expanduser() if name[:1] == "~" else name)
