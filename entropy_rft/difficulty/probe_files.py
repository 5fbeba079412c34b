"""A probe on the disk: JSON, safetensors and a card. Nothing here unpickles anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from entropy_rft.atomic import write_bytes, write_text
from entropy_rft.errors import UserValueError

CONFIG, WEIGHTS, CARD = "probe.json", "probe.safetensors", "README.md"
SCHEMA = 1
_Kind: TypeAlias = "tuple[tuple[type, ...], str]"
_TEXT: _Kind = ((str,), "text")
_NAME: _Kind = ((str, type(None)), "text or null")
_WHOLE: _Kind = ((int,), "a whole number")
_LIST: _Kind = ((list,), "a list of texts")
_OBJECT: _Kind = ((dict,), "an object")
_FIELDS: dict[str, _Kind] = {
    "kind": _TEXT,
    "width": _WHOLE,
    "hidden_units": _WHOLE,
    "base_model": _NAME,
    "fingerprint": _NAME,
    "layer": _WHOLE,
    "classes": _LIST,
    "temperature": ((int, float), "a number"),
    "thresholds": ((dict, type(None)), "an object or null"),
    "strategies": _OBJECT,
    "seed": _WHOLE,
    "metrics": _OBJECT,
    "questions": _LIST,
}


def write_probe(target: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str) -> None:
    """Write the three files into the directory `target`. Each is replaced in one step, the JSON last."""
    from safetensors.torch import save

    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    write_bytes(target / WEIGHTS, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    write_text(target / CARD, card)
    write_text(target / CONFIG, text)


def read_config(source: Path) -> dict[str, Any]:
    """The JSON of the probe in the directory `source`, each field of its type.

    Raises:
        ValueError: there is none, it cannot be read, or a field is missing or of another type; one line.
    """
    path = source / CONFIG
    if not path.is_file():
        raise UserValueError(f"probe {str(source)!r} has no {CONFIG}: give a directory that save_pretrained wrote")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserValueError(f"probe {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise UserValueError(f"probe {str(path)!r} is of schema {found!r}, not {SCHEMA}")
    for name, (kinds, expected) in _FIELDS.items():
        if name not in data:
            raise UserValueError(f"probe {str(path)!r} has no field {name!r}")
        value = data[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserValueError(f"probe {str(path)!r} is malformed: {name} must be {expected}, not {value!r}")
    for name in ("classes", "questions"):
        if not all(isinstance(item, str) for item in data[name]):
            raise UserValueError(f"probe {str(path)!r} is malformed: {name} must contain only text")
    return data


def read_weights(source: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of the probe in `source`, in the order of `expected`.

    Raises:
        ValueError: the file is missing or corrupted, or a tensor has another shape than in `expected`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = source / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise UserValueError(f"probe {str(path)!r} cannot be read: {reason}") from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != dict(expected):
        wrong = next(name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name))
        raise UserValueError(
            f"probe {str(path)!r} does not fit its {CONFIG}: {wrong} has the shape {found.get(wrong)}, "
            f"expected {expected.get(wrong)}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise UserValueError(f"probe {str(path)!r} is corrupted: {name} is not finite float32")
    # In the order of the formula, not that of the file.
    return {name: tensors[name] for name in expected}
