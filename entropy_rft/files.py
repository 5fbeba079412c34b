"""How the package reads YAML and writes JSON, in one place for every such file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from entropy_rft.errors import UserValueError


class _RepeatedKey(yaml.YAMLError):
    """A mapping has one key twice; YAML would silently take the last one."""


class _Loader(yaml.SafeLoader):
    # Checked while the nodes are composed: later, merges (`<<`) may repeat keys.
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise _RepeatedKey(f"the key {key.value!r} occurs twice, in lines {lines[name]} and {line}")
            lines[name] = line
        return node


def read_yaml(text: str) -> Any:
    """The content of a YAML document, as `yaml.safe_load` reads it.

    Raises:
        yaml.YAMLError: the text is not YAML, or a mapping has a key twice; the message names the key and the lines.
    """
    return yaml.load(text, _Loader)


def text_of(path: str | os.PathLike[str], what: str) -> str:
    """The text of a file that a user wrote.

    Args:
        what: the file's kind, for the messages: a recipe, a plan.

    Raises:
        ValueError: the file cannot be read; one line that names it.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserValueError(f"{what} {os.fspath(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserValueError(f"{what} {os.fspath(path)!r} is not UTF-8: {error}") from error


def load_yaml(path: str | os.PathLike[str], what: str) -> Any:
    """The content of a YAML file that a user wrote; ``None`` for an empty one.

    Args:
        what: the file's kind, for the messages: a recipe, a plan.

    Raises:
        ValueError: the file cannot be read, or is not YAML; one line that names it.
    """
    return parse_yaml(text_of(path, what), f"{what} {os.fspath(path)!r}")


def parse_yaml(text: str, where: str) -> Any:
    """As `load_yaml`, of a text that was read already; `where` names it in the message."""
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise UserValueError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def switched_off_or_on(text: str) -> dict[str, str]:
    """The top-level fields of a YAML mapping whose value YAML reads as a truth value, with the text as written.

    YAML 1.1 reads ``no``, ``off``, ``yes`` and ``on`` as truth values. A field that takes words may mean the word
    itself, so the caller needs the text.
    """
    node = yaml.compose(text, _Loader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: value.value for key, value in pairs if value.tag == "tag:yaml.org,2002:bool"}


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text; NaN and the infinities, for which JSON has no number, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
