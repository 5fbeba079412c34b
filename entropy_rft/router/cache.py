"""A bounded memory that forgets what was not asked for the longest."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from entropy_rft.errors import UserValueError

K = TypeVar("K")
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """At most `size` entries; of one thread (the event loop's).

    Args:
        size: 0 remembers nothing.

    Raises:
        ValueError: `size` is below 0.
    """

    __slots__ = ("_entries", "size")

    def __init__(self, size: int) -> None:
        if size < 0:
            raise UserValueError(f"cache_size must be at least 0, got {size}")
        self.size = size
        self._entries: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, now the last one to be forgotten; ``None`` where there is none."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Remember a value (not ``None``), and forget the oldest where there is no room."""
        if not self.size:
            return
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self.size:
            self._entries.popitem(last=False)
