"""What Prometheus' own parser makes of /metrics after real traffic."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from running import FixedFeatures, RunningRouter, running_router
from stub import Stub
from stub_answers import Behaviour, stream_events
from wire import exchange, request

pytestmark = pytest.mark.integration

QUESTION = "Why does the swordfish sing?"


@pytest.fixture
def router(stub: Stub) -> Iterator[RunningRouter]:
    backends = [{"url": stub.url, "name": 'the "best" \\ one\n'}]
    with running_router(backends, features=FixedFeatures((0.9, 0.05, 0.05)), retries={"attempts": 1}) as router:
        yield router


def ask(router: RunningRouter, **body: object) -> int:
    content = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], **body}
    return exchange(router.port, request(json.dumps(content).encode())).status


def scraped(router: RunningRouter) -> dict[str, Metric]:
    with urllib.request.urlopen(f"{router.url}/metrics", timeout=30) as response:
        assert response.headers["content-type"].startswith("text/plain; version=")
        text = response.read().decode("utf-8")
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a family occurs twice"
    return {family.name: family for family in families}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_every_family_is_typed_and_explained_and_consistent(router: RunningRouter) -> None:
    assert ask(router) == 200
    assert ask(router, stream=True) == 200
    router.wait_for_metric(0, "entropy_rft_in_flight")
    families = scraped(router)
    ours = {name: family for name, family in families.items() if name.startswith("entropy_rft_")}
    assert len(ours) >= 20
    for family in ours.values():
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert family.documentation, family.name
        for sample in family.samples:
            assert math.isfinite(sample.value) or family.name == "entropy_rft_feature_up"
            assert sample.value >= 0 or family.type == "gauge"
    for family in ours.values():
        if family.type == "histogram":
            buckets = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
            assert buckets == sorted(buckets), family.name
            assert [count for _, count in buckets] == sorted(count for _, count in buckets)
            assert math.isinf(buckets[-1][0])
            assert buckets[-1][1] == value(ours, f"{family.name}_count")


def test_counts_are_those_of_the_traffic(router: RunningRouter, stub: Stub) -> None:
    for _ in range(3):
        assert ask(router) == 200
    assert ask(router, difficulty="hard") == 200
    assert ask(router, stream=True) == 200
    assert ask(router, difficulty="nonsense") == 400
    stub.script(Behaviour.error(500))
    assert ask(router) == 500
    stub.script(Behaviour.stream(stream_events(), stop_before=3, stop="abort"))
    ask(router, stream=True)
    router.wait_for_metric(8, "entropy_rft_requests_total")
    families = scraped(router)
    total = "entropy_rft_requests_total"
    assert value(families, total, difficulty="easy", status="200") == 4
    assert value(families, total, difficulty="hard", status="200") == 1
    assert value(families, total, status="400") == 1
    assert value(families, total, status="500") == 1
    assert value(families, total, status="stream_error") == 1
    assert value(families, "entropy_rft_backend_requests_total") == 7
    assert value(families, "entropy_rft_first_token_seconds_count") >= 1
    assert value(families, "entropy_rft_routing_seconds_count") >= 6
    assert value(families, "entropy_rft_tokens_total", kind="completion", difficulty="hard") == 12
    assert value(families, "entropy_rft_backend_up", backend='the "best" \\ one\n') == 1


def test_what_clients_send_is_in_no_name_and_makes_no_new_series(router: RunningRouter) -> None:
    ask(router)
    router.wait_for_metric(1, "entropy_rft_requests_total")
    before = {(s.name, *sorted(s.labels.items())) for f in scraped(router).values() for s in f.samples}
    for number in range(20):
        ask(router, model=f"model-{number}", user=f"user-{number}")
        exchange(router.port, request(path=f"/path-{number}", method="GET", body=b""))
    router.wait_for_metric(21, "entropy_rft_requests_total")
    after = {(s.name, *sorted(s.labels.items())) for f in scraped(router).values() for s in f.samples}
    assert after == before
    assert "swordfish" not in str(after)
