"""To which backend a conversation belongs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from entropy_rft.router.affinity import affine, affinity_key
from entropy_rft.router.backends import Backend
from entropy_rft.router.pool import Pool
from entropy_rft.router.settings import RouterSettings
from entropy_rft.router.settings_parts import BackendSettings, BreakerSettings

ASKED: list[dict[str, Any]] = [{"role": "system", "content": "s"}, {"role": "user", "content": "first"}]
LATER = [*ASKED, {"role": "assistant", "content": "answer"}, {"role": "user", "content": "go on"}]
KEYS = [number.to_bytes(16, "big") for number in range(2000)]


def some(*weights: float) -> list[Backend]:
    settings = [BackendSettings(url=f"http://b{number}", weight=weight) for number, weight in enumerate(weights)]
    return [Backend(each, BreakerSettings(failures=2, cooldown_s=10)) for each in settings]


def test_a_conversation_keeps_its_beginning() -> None:
    assert affinity_key(ASKED) == affinity_key(LATER)
    assert affinity_key([{"role": "system", "content": "another"}, *ASKED[1:]]) != affinity_key(ASKED)
    assert affinity_key(None) is None
    assert affinity_key(ASKED[:1]) is None


def test_each_gets_its_share_by_weight() -> None:
    backends = some(1, 1, 2)
    found = Counter(backend.name for key in KEYS if (backend := affine(key, backends)) is not None)
    assert found.total() == len(KEYS)
    for each in backends:  # the standard error is 0.011
        assert abs(found[each.name] / len(KEYS) - each.weight / 4) < 0.04


def test_only_the_conversations_of_a_lost_backend_move() -> None:
    backends = some(1, 1, 1)
    for key in KEYS[:200]:
        before, after = affine(key, backends), affine(key, backends[:2])
        assert before is backends[2] or after is before


def test_no_backend_gets_more_than_its_bound() -> None:
    backends = some(1, 1, 1)
    for _ in range(300):  # one conversation asks again and again, and no answer comes
        backend = affine(KEYS[0], backends)
        assert backend is not None
        backend.begin(0.0)
    assert sorted(each.outstanding for each in backends) == [50, 125, 125]


def test_one_that_may_not_be_asked_is_left_out() -> None:
    backends = some(1, 1)
    for backend in backends:
        backend.up = True
    pool = Pool(RouterSettings(), backends)
    mine = pool.affine(KEYS[0], 0.0)
    assert mine is not None
    (other,) = (each for each in backends if each is not mine)
    mine.checked(False, 0.0)
    assert pool.affine(KEYS[0], 0.0) is other
    other.failed(0.0)
    other.failed(0.0)
    assert pool.affine(KEYS[0], 0.0) is None
    mine.checked(True, 0.0)
    assert pool.affine(KEYS[0], 0.0) is mine
