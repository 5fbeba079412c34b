from __future__ import annotations

import pytest

from entropy_rft.router.cache import LRUCache


def test_forgets_what_was_not_asked_for_the_longest():
    cache = LRUCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1  # now b is the oldest
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    cache.put("a", 4)  # so is what was written again
    cache.put("d", 5)
    assert (cache.get("a"), cache.get("c"), len(cache)) == (4, None, 2)


def test_never_holds_more_than_its_size():
    cache = LRUCache(10)
    for number in range(1000):
        cache.put(number, number)
        assert len(cache) <= 10
    assert [cache.get(number) for number in range(988, 1000)] == [None, None, *range(990, 1000)]


def test_size_0_remembers_nothing():
    cache = LRUCache(0)
    cache.put("a", 1)
    assert cache.get("a") is None
    assert len(cache) == 0
    with pytest.raises(ValueError, match="cache_size must be at least 0, got -1"):
        LRUCache(-1)
