"""A probe on the disk: JSON, safetensors and a card. Nothing here unpickles anything."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG, WEIGHTS, CARD = "probe.json", "probe.safetensors", "README.md"
SCHEMA = 1


def write_probe(target: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], card: str) -> None:
    """Write the three files into the directory `target`. Each is replaced in one go, the JSON last."""
    from safetensors.torch import save

    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    _replace(target / WEIGHTS, save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    _replace(target / CARD, card.encode())
    _replace(target / CONFIG, text.encode())


def read_config(source: Path) -> dict[str, Any]:
    """The JSON of the probe in the directory `source`; raises ValueError when there is none or it cannot be read."""
    path = source / CONFIG
    if not path.is_file():
        raise ValueError(f"probe {str(source)!r} has no {CONFIG}: give a directory that save_pretrained wrote")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"probe {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"probe {str(path)!r} is of schema {found!r}, not {SCHEMA}")
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
        raise ValueError(f"probe {str(path)!r} cannot be read: {reason}") from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != dict(expected):
        wrong = next(name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name))
        raise ValueError(
            f"probe {str(path)!r} does not fit its {CONFIG}: {wrong} has the shape {found.get(wrong)}, "
            f"expected {expected.get(wrong)}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ValueError(f"probe {str(path)!r} is corrupted: {name} is not finite float32")
    # In the order of the formula, whatever the file's.
    return {name: tensors[name] for name in expected}


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
