"""A model's tokenizer, or one line about why there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entropy_rft.assets import TINY_REASONER
from entropy_rft.errors import UserValueError
from entropy_rft.models.tokenizers import load_tokenizer


def test_an_adapter_saved_without_a_tokenizer_has_its_base_models(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(TINY_REASONER)}))
    assert load_tokenizer(str(tmp_path)).get_vocab() == load_tokenizer(str(TINY_REASONER)).get_vocab()


@pytest.mark.parametrize("content", ["{", '{"model": {"type": "BPE"}}', "[]"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserValueError, match=r"^the tokenizer of '.*' cannot be loaded: ") as caught:
        load_tokenizer(str(tmp_path), revision=None, trust_remote_code=False)
    assert len(str(caught.value).splitlines()) == 1
