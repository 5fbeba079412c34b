"""A model's tokenizer, without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from entropy_rft.errors import UserValueError


def load_tokenizer(source: str, **options: Any) -> Any:
    """The tokenizer of a directory or a name on the hub; of an adapter saved without one, its base model's.

    `options` are those of transformers' ``from_pretrained`` (``revision``, ``trust_remote_code``).

    Raises:
        ValueError: there is none, or the installed packages cannot read it; one line.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_with_tokenizer(source), **options)
    except Exception as error:  # of a file that cannot be read: `tokenizers` raises plain ones, transformers KeyErrors
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserValueError(f"the tokenizer of {source!r} cannot be loaded: {said}") from error


def _with_tokenizer(source: str) -> str:
    adapter = Path(source) / "adapter_config.json"
    if adapter.is_file() and not (Path(source) / "tokenizer_config.json").is_file():
        return str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    return source
