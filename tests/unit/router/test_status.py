from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from entropy_rft.router import status
from entropy_rft.router.readings import quantile_ms

BOUNDS = (0.001, 0.01, 0.1)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A registry with the router's metric names, a clock that is set by hand, and the board over both."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.clock = Clock()
        self.requests = self._counter("requests", "endpoint", "difficulty", "status")
        self.fallbacks = self._counter("fallbacks", "reason")
        self.cache = self._counter("feature_cache", "result")
        self.tokens = self._counter("tokens", "kind")
        self.failures = self._counter("backend_failures", "backend")
        self.routing = Histogram("entropy_rft_routing_seconds", "", buckets=BOUNDS, registry=self.registry)
        self.up = self._gauge("backend_up", "backend")
        self.breaker = self._gauge("backend_breaker_open", "backend")
        self.outstanding = self._gauge("backend_outstanding", "backend")
        self.limit = self._gauge("backend_limit", "backend")
        self.feature_up = self._gauge("feature_up")
        self.feature_up.set(1)
        self.up.labels("a").set(1)
        self.board = status.StatusBoard(self.registry, clock=self.clock)

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(f"entropy_rft_{name}", "", labels, registry=self.registry)

    def _gauge(self, name: str, *labels: str) -> Gauge:
        return Gauge(f"entropy_rft_{name}", "", labels, registry=self.registry)

    def answered(self, count: int, code: str = "200", difficulty: str = "easy") -> None:
        self.requests.labels("chat", difficulty, code).inc(count)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_quantile_is_linear_inside_a_bucket() -> None:
    buckets = ((0.001, 0.0), (0.002, 50.0), (0.004, 100.0), (math.inf, 100.0))
    assert quantile_ms(buckets, 0.25) == pytest.approx(1.5)
    assert quantile_ms(buckets, 0.5) == pytest.approx(2.0)
    assert quantile_ms(buckets, 0.75) == pytest.approx(3.0)


def test_quantile_without_observations_and_beyond_the_last_bound() -> None:
    assert quantile_ms((), 0.5) is None
    assert quantile_ms(((0.1, 0.0), (math.inf, 0.0)), 0.5) is None
    assert quantile_ms(((0.1, 1.0), (math.inf, 100.0)), 0.99) == pytest.approx(100.0)


def test_rates_are_those_of_the_last_minute(rig: Rig) -> None:
    rig.answered(6000)  # long ago
    rig.clock.now += 300
    rig.board.sample()
    rig.clock.now += 30
    rig.answered(90)
    rig.answered(10, "502")
    rig.answered(7, "404", "none")
    rig.answered(13, "499")  # the client left
    rig.clock.now += 30
    traffic = rig.board.snapshot()["traffic"]
    assert traffic["requests_per_s"] == pytest.approx(120 / 60)
    assert traffic["error_share"] == pytest.approx(10 / 120)
    assert (traffic["requests"], traffic["errors"], traffic["refused"]) == (6120, 10, 7)


def test_quantiles_forget_what_is_older_than_a_minute(rig: Rig) -> None:
    for _ in range(100):
        rig.routing.observe(0.09)
    rig.clock.now += 100
    rig.board.sample()
    rig.clock.now += 60
    rig.routing.observe(0.0005)
    latency = rig.board.snapshot()["latency"]
    assert latency["routing"]["p99_ms"] <= 1.0
    assert latency["first_token"] == {"p50_ms": None, "p99_ms": None}  # no such metric here: unknown, not zero


def test_shares_and_reasons_are_recent_and_in_all(rig: Rig) -> None:
    rig.answered(10, difficulty="hard")
    rig.fallbacks.labels("image").inc(3)
    for _ in range(status.POINTS + 1):
        rig.clock.now += status.STEP_S
        rig.board.sample()
    rig.answered(4, difficulty="easy")
    rig.fallbacks.labels("low_confidence").inc(5)
    rig.cache.labels("hit").inc(3)
    rig.cache.labels("miss").inc(1)
    rig.clock.now += 1
    snapshot = rig.board.snapshot()
    assert snapshot["difficulty"]["hard"] == {"recent": 0, "total": 10}
    assert snapshot["difficulty"]["easy"] == {"recent": 4, "total": 4}
    assert snapshot["fallbacks"] == [
        {"reason": "low_confidence", "recent": 5, "total": 5},
        {"reason": "image", "recent": 0, "total": 3},
    ]
    assert snapshot["features"] == {"up": True, "hit_share": 0.75}
    assert snapshot["history_s"] == pytest.approx(status.POINTS * status.STEP_S + 1)


def test_curves_are_bounded_and_have_gaps_where_nothing_was_measured(rig: Rig) -> None:
    for count in [2, 0, *[1] * status.POINTS]:
        rig.clock.now += status.STEP_S
        if count:
            rig.answered(count)
            rig.routing.observe(0.0005)
        rig.board.sample()
        if rig.clock.now == 1000 + 2 * status.STEP_S:
            early = rig.board.snapshot()["history"]
    assert early["requests_per_s"] == [2 / status.STEP_S, 0.0]
    assert early["seconds"] == [-status.STEP_S, 0.0]
    assert early["error_share"] == [0.0, None]
    assert early["routing_p50_ms"][1] is None
    late = rig.board.snapshot()["history"]
    assert {len(values) for values in late.values()} == {status.POINTS}
    assert late["seconds"][0] == pytest.approx(-(status.POINTS - 1) * status.STEP_S)


def test_the_latest_seconds_are_in_the_curve_before_they_are_sampled(rig: Rig) -> None:
    rig.clock.now += 2
    rig.answered(10)
    assert rig.board.snapshot()["history"]["requests_per_s"] == [5.0]
    assert rig.board.snapshot()["history"]["requests_per_s"] == [5.0]  # looking changes nothing


def test_healthy_degraded_down(rig: Rig) -> None:
    assert (rig.board.snapshot()["state"], rig.board.snapshot()["reasons"]) == ("healthy", [])
    rig.up.labels("b").set(0)
    snapshot = rig.board.snapshot()
    assert (snapshot["state"], snapshot["reasons"]) == ("degraded", ["backend b is down"])
    rig.breaker.labels("a").set(0.5)
    assert rig.board.snapshot()["backends"][0]["breaker"] == "half-open"
    rig.breaker.labels("a").set(1)
    snapshot = rig.board.snapshot()
    assert snapshot["state"] == "down"
    assert "backend a is blocked by its circuit breaker" in snapshot["reasons"]


def test_feature_source_down_and_errors_degrade(rig: Rig) -> None:
    rig.feature_up.set(0)
    assert rig.board.snapshot()["state"] == "degraded"
    rig.feature_up.set(math.nan)  # there is none, on purpose
    assert rig.board.snapshot()["features"]["up"] is None
    rig.clock.now += 10
    rig.answered(96)
    rig.answered(4, "503")
    assert rig.board.snapshot()["state"] == "healthy"
    rig.answered(20, "stream_error")
    assert rig.board.snapshot()["reasons"] == ["20 % of the last minute's requests failed"]


def test_tokens_saved_are_net_of_what_strategies_cost_more(rig: Rig) -> None:
    assert rig.board.snapshot()["tokens"]["saved_estimate"] is None
    rig._counter("tokens_saved_estimate").inc(500)
    rig._counter("tokens_extra_estimate").inc(120)
    assert rig.board.snapshot()["tokens"]["saved_estimate"] == 380


def test_backends_table(rig: Rig) -> None:
    rig.up.labels("b").set(0)
    rig.outstanding.labels("a").set(3)
    rig.limit.labels("a").set(64)
    rig.failures.labels("b").inc(2)
    assert rig.board.snapshot()["backends"] == [
        {"name": "a", "up": True, "breaker": "closed", "outstanding": 3, "limit": 64, "failures": None},
        {"name": "b", "up": False, "breaker": "closed", "outstanding": None, "limit": None, "failures": 2},
    ]


def test_empty_registry_is_unknown_and_json() -> None:
    snapshot = status.StatusBoard(CollectorRegistry()).snapshot()
    assert snapshot["state"] == "down"
    assert snapshot["reasons"] == ["no backend is known"]
    assert snapshot["traffic"]["in_flight"] is None
    assert snapshot["tokens"]["saved_estimate"] is None
    assert snapshot["features"]["up"] is None
    assert json.loads(json.dumps(snapshot, allow_nan=False)) == snapshot


class Parts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.inline: list[str] = []
        self.referred: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data"):
                self.addresses.append(value)
            elif name == "id":
                self.ids.append(value)
            elif name == "style" or name.startswith("on"):
                self.inline.append(name)
            elif name in ("aria-labelledby", "aria-describedby", "for"):
                self.referred.append(value)


def test_page_is_self_contained() -> None:
    body, _ = status.page()
    parts = Parts()
    parts.feed(body.decode())
    assert [a for a in parts.addresses if not a.startswith("data:")] == ["metrics", "metrics", "openapi.json"]
    assert parts.inline == []  # the policy would refuse them
    assert len(set(parts.ids)) == len(parts.ids)
    assert set(parts.referred) <= set(parts.ids)
    assert "innerHTML" not in body.decode()


def test_every_id_that_the_script_names_is_there() -> None:
    text = status.page()[0].decode()
    named = set(re.findall(r'(?:\$|put|show|rows|curve)\("([a-z0-9-]+)"', text))
    assert len(named) > 30
    assert named <= set(re.findall(r' id="([a-z0-9-]+)"', text))


def test_policy_allows_exactly_the_pages_own_script_and_style() -> None:
    body, headers = status.page()
    policy = dict(headers)[b"content-security-policy"].decode()
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
