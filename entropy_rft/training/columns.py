"""Columns of a data set that TRL gives a meaning of its own, whatever the task meant by them."""

from __future__ import annotations

from typing import Any

from entropy_rft.errors import UserValueError

_IMAGES = ("image", "images")
# By any of these, and not by the prompt alone, TRL decides whether the data are conversations.
_FORMATS = ("completion", "chosen", "rejected", "messages")


def without_trls_columns(dataset: Any, task: str) -> Any:
    """`dataset` as TRL can take it: columns of images that hold none are left out.

    Raises:
        ValueError: in one line, for any other column whose name TRL gives a meaning.
    """
    for name in _IMAGES:
        if name not in dataset.column_names:
            continue
        if any(dataset[name]):
            raise UserValueError(
                f"task {task!r}: TRL would take the column {name!r} for pictures to show the model, and the tasks here "
                "are text: rename it or leave it out"
            )
        dataset = dataset.remove_columns(name)
    for name in _FORMATS:
        if name in dataset.column_names:
            raise UserValueError(f"task {task!r}: the column {name!r} has a meaning of its own to TRL: rename it")
    return dataset
