"""Which backend is asked, and when one is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from entropy_rft.router.backends import CLOSED, HALF_OPEN, OPEN, Backend
from entropy_rft.router.pool import Pool, context_length
from entropy_rft.router.proxy import retry_after_s
from entropy_rft.router.settings import DEFAULT_BUDGET, RouterSettings
from entropy_rft.router.settings_parts import BackendSettings, BreakerSettings

BREAKER = BreakerSettings(failures=2, cooldown_s=10)


def pool_of(*options: dict[str, Any]) -> Pool:
    """A pool of backends that were all found up."""
    settings = [BackendSettings(url=f"http://b{number}", **each) for number, each in enumerate(options)]
    backends = [Backend(each, BREAKER) for each in settings]
    for backend in backends:
        backend.up = True
    return Pool(RouterSettings(), backends)


def test_fewest_outstanding_first() -> None:
    pool = pool_of({}, {}, {})
    for backend, outstanding in zip(pool.backends, (2, 0, 1), strict=True):
        backend.outstanding = outstanding
    assert pool.choose(0.0) is pool.backends[1]


def test_equals_take_turns() -> None:
    pool = pool_of({}, {}, {})
    chosen = [pool.choose(0.0) for _ in range(6)]
    assert all(chosen.count(backend) == 2 for backend in pool.backends)


def test_weights_share_the_load() -> None:
    pool = pool_of({"weight": 3}, {"weight": 1})
    for _ in range(40):
        backend = pool.choose(0.0)
        assert backend is not None
        backend.begin(0.0)
    assert [backend.outstanding for backend in pool.backends] == [30, 10]


def test_a_full_one_is_left_out() -> None:
    pool = pool_of({"max_outstanding": 1}, {"max_outstanding": 1})
    for _ in range(2):
        backend = pool.choose(0.0)
        assert backend is not None
        backend.begin(0.0)
    assert pool.choose(0.0) is None
    assert pool.wait_s(0.0) == 1.0
    pool.backends[0].ended(False)
    assert pool.choose(0.0) is pool.backends[0]


def test_one_that_is_down_is_asked_only_when_all_are() -> None:
    pool = pool_of({}, {})
    pool.backends[0].up = False
    pool.backends[1].outstanding = 100
    assert pool.choose(0.0) is pool.backends[1]
    assert pool.choose(0.0, without=[pool.backends[1]]) is pool.backends[0]
    pool.backends[1].up = False
    assert pool.choose(0.0) is pool.backends[0]


def test_breaker() -> None:
    (backend,) = (pool := pool_of({})).backends
    backend.failed(0.0)
    backend.succeeded()
    backend.failed(0.0)
    assert backend.breaker(0.0) == CLOSED  # not in a row
    backend.failed(1.0)
    assert backend.breaker(1.0) == OPEN
    assert pool.choose(5.0) is None
    assert pool.wait_s(5.0) == 6.0
    assert backend.breaker(11.0) == HALF_OPEN
    assert pool.choose(11.0) is backend
    trial = backend.begin(11.0)
    assert trial
    assert pool.choose(11.0) is None  # one at a time
    backend.failed(11.5)
    backend.ended(trial)
    assert backend.breaker(12.0) == OPEN
    trial = backend.begin(22.0)
    backend.succeeded()
    backend.ended(trial)
    assert backend.breaker(22.0) == CLOSED


def test_a_trial_that_is_given_up_leaves_room_for_the_next() -> None:
    (backend,) = pool_of({}).backends
    backend.failed(0.0)
    backend.failed(0.0)
    backend.ended(backend.begin(10.0))
    assert backend.blocked_s(10.0) == 0
    assert backend.begin(10.0)


def test_a_trial_that_became_a_long_answer_holds_up_no_other() -> None:
    (backend,) = pool_of({}).backends
    backend.failed(0.0)
    backend.failed(0.0)
    stream = backend.begin(10.0)
    backend.succeeded()  # it streams, for an hour
    backend.failed(11.0)
    backend.failed(11.0)
    assert backend.breaker(11.0) == OPEN
    backend.checked(True, 12.0)
    assert backend.blocked_s(12.0) == 0
    second = backend.begin(12.0)
    assert second
    backend.ended(stream)
    assert backend.blocked_s(12.0) > 0  # the second one is still under way
    backend.ended(second)
    assert backend.blocked_s(12.0) == 0
    assert backend.outstanding == 0


def test_a_healthy_check_lets_a_trial_through_at_once() -> None:
    (backend,) = pool_of({}).backends
    backend.failed(0.0)
    backend.failed(0.0)
    backend.checked(True, 1.0)
    assert backend.breaker(1.0) == HALF_OPEN


def test_a_pause_that_was_asked_for() -> None:
    pool = pool_of({}, {})
    first, second = pool.backends
    first.cool(0.0, 30)
    assert pool.choose(1.0) is second
    assert not pool.cooling(1.0)
    assert pool.cooling(1.0, [first])
    assert not pool.cooling(1.0, [second])
    assert [pool.wait_s(1.0, [each]) for each in pool.backends] == [29, 0]
    second.cool(0.0, 10**9)
    assert pool.cooling(1.0)
    assert pool.wait_s(1.0) == 29
    assert pool.choose(30.0) is first
    assert second.cooling_s(301.0) == 0  # whatever it said


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7.0),
        (b"0.5", 0.5),
        (b" 3 ", 3.0),
        (b"9" * 400, float("inf")),
        (b"Fri, 01 Jan 1990 00:00:00 GMT", 0.0),
        (b"soon", None),
        (b"", None),
        (b".", None),
        (b"-1", None),
        (b"nan", None),
        (b"\xb2", None),  # a digit to Python, but no number
        (b"Fri, 99 Jan 1990 99:00:00 GMT", None),
    ],
)
def test_retry_after(value: bytes, seconds: float | None) -> None:
    assert retry_after_s([(b"x", b"y"), (b"retry-after", value)]) == seconds


def test_budget_is_the_shortest_context() -> None:
    pool = pool_of({}, {})
    assert pool.budget() == DEFAULT_BUDGET
    pool.backends[0].max_model_len = 4096
    assert pool.budget() == 4096
    pool.backends[1].max_model_len = 2048
    assert pool.budget() == 2048


@pytest.mark.parametrize(
    ("models", "name", "length"),
    [
        (b'{"data": [{"id": "a", "max_model_len": 10}, {"id": "b", "max_model_len": 20}]}', "b", 20),
        (b'{"data": [{"id": "a", "max_model_len": 10}]}', None, 10),
        (b'{"data": [{"id": "a"}]}', None, None),
        (b'{"data": [{"id": "a", "max_model_len": "10"}]}', None, None),
        (b'{"data": [3]}', None, None),
        (b"[]", None, None),
        (b"<html>", None, None),
    ],
)
def test_model_len(models: bytes, name: str | None, length: int | None) -> None:
    assert context_length(models, name) == length


def test_a_backend_that_comes_back_may_know_more() -> None:
    """It may have been started again with a reasoning parser."""
    (backend,) = pool_of({}).backends
    backend.limits_thinking["/v1/chat/completions"] = False
    backend.checked(True, 0.0)
    assert backend.limits_thinking == {"/v1/chat/completions": False}
    backend.checked(False, 1.0)
    backend.checked(True, 2.0)
    assert backend.limits_thinking == {}


def test_one_that_was_gone_is_the_last_resort() -> None:
    first, second = (pool := pool_of({}, {})).backends
    for _ in range(2):
        first.failed(0.0, gone=True)
        second.failed(0.0)  # it answers with errors
    assert pool.choose(1.0) is None
    assert pool.last_resort(1.0) is first
    assert pool.last_resort(1.0, without=[first]) is None
    first.cool(1.0, 5.0)
    assert pool.last_resort(1.0) is None
    assert pool.last_resort(7.0) is first
    first.outstanding = first.limit
    assert pool.last_resort(7.0) is None
    first.outstanding = 0
    first.succeeded()
    assert pool.choose(7.0) is first
    assert pool.last_resort(7.0) is None


def test_one_that_is_being_tried_is_the_last_resort() -> None:
    """The trial may be a long generation: it must not keep all others waiting."""
    (backend,) = (pool := pool_of({})).backends
    for _ in range(2):
        backend.failed(0.0)  # it answers with errors
    assert pool.last_resort(1.0) is None
    now = 1000.0  # its breaker is half open
    assert pool.choose(now) is backend
    trial = backend.begin(now)
    assert pool.choose(now) is None
    assert pool.last_resort(now) is backend
    other = backend.begin(now)
    backend.failed(now)  # and it still answers with errors
    backend.ended(other)
    assert pool.last_resort(now) is None
    backend.ended(trial)
