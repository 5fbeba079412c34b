from __future__ import annotations

import pytest
from datasets import Dataset

from entropy_rft.training.columns import without_trls_columns


@pytest.mark.parametrize("empty", [None, []])
def test_columns_of_no_image_are_left_out(empty: object) -> None:
    dataset = Dataset.from_dict(
        {"prompt": ["a", "b"], "level": [1, 2], "image": [None, None], "images": [empty, empty]}
    )
    assert without_trls_columns(dataset, "jsonl").column_names == ["prompt", "level"]


@pytest.mark.parametrize(
    ("column", "value"), [("image", "cat.png"), ("images", ["cat.png"]), ("completion", "x"), ("messages", "x")]
)
def test_others_are_named(column: str, value: object) -> None:
    dataset = Dataset.from_dict({"prompt": ["a", "b"], column: [value, None]})
    with pytest.raises(ValueError, match=f"task 'jsonl'.* the column '{column}' .*rename it"):
        without_trls_columns(dataset, "jsonl")
