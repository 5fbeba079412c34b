"""Columns of a data set that have a special meaning to TRL, whatever the task means by them."""

from __future__ import annotations

from typing import Any

from entropy_rft.errors import UserValueError

_IMAGES = ("image", "images")
# TRL decides by these too, not only by the prompt, whether the data are conversations.
_FORMATS = ("completion", "chosen", "rejected", "messages")


def without_trls_columns(dataset: Any, task: str) -> Any:
    """`dataset` as TRL accepts it: image columns that contain no image are removed.

    Raises:
        ValueError: in one line, for any other column whose name TRL gives a meaning.
    """
    for name in _IMAGES:
        if name not in dataset.column_names:
            continue
        if any(dataset[name]):
            raise UserValueError(
                f"task {task!r}: TRL would pass the column {name!r} to the model as images, but the tasks here are "
                "text: rename it or leave it out"
            )
        dataset = dataset.remove_columns(name)
    for name in _FORMATS:
        if name in dataset.column_names:
            raise UserValueError(f"task {task!r}: the column {name!r} has a special meaning to TRL: rename it")
    return dataset
