"""What each worker gets of the settings."""

from __future__ import annotations

from typing import Any

import pytest

from entropy_rft.router.settings import RouterSettings, load_settings
from entropy_rft.router.supervisor import share_of
from entropy_rft.threads import CHOSEN_BY_USER

SETTINGS: dict[str, Any] = {
    "workers": 3,
    "backends": ["http://a:1/v1", {"url": "http://b:2", "name": "b", "max_outstanding": 10}],
    "probe": "embedded",
    "features": {"kind": "vllm", "deadline_ms": 50},
    "limits": {"max_requests": 100, "max_body_bytes": 1000},
    "timeouts": {"connect_s": 1.5},
}


def test_it_is_loaded_as_the_same_settings_but_for_the_shares() -> None:
    settings = load_settings(None, SETTINGS)
    share = load_settings(None, share_of(settings))
    assert share.workers == 1
    assert share.limits.max_requests == 34
    assert share.health.interval_s == 15.0
    assert [each.max_outstanding for each in share.backends] == [342, 4]
    changed = {"workers", "limits", "health", "backends"}
    assert share.model_dump(exclude=changed) == settings.model_dump(exclude=changed)
    assert share.limits.max_body_bytes == 1000
    assert [(each.url, each.name) for each in share.backends] == [("http://a:1", "a:1"), ("http://b:2", "b")]
    assert share.features.model_fields_set == settings.features.model_fields_set


def test_the_environment_cannot_take_a_share_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTROPY_RFT_ROUTER_WORKERS", "4")
    monkeypatch.setenv("ENTROPY_RFT_ROUTER_BACKENDS", "http://a:1")
    monkeypatch.setenv("ENTROPY_RFT_ROUTER_LIMITS__MAX_REQUESTS", "8")
    settings = load_settings(None)
    assert (settings.workers, settings.limits.max_requests) == (4, 8)
    share = load_settings(None, share_of(settings))
    assert (share.workers, share.limits.max_requests, share.backends[0].max_outstanding) == (1, 2, 256)


def test_a_model_in_each_worker_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entropy_rft.router.supervisor.own_cores", lambda: list(range(9)))
    for name in CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    settings = load_settings(None, SETTINGS | {"features": {"kind": "local"}})
    assert share_of(settings)["features"]["threads"] == 2
    settings = load_settings(None, SETTINGS | {"features": {"kind": "local", "threads": 5}})
    assert load_settings(None, share_of(settings)).features.threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "threads" not in share_of(load_settings(None, SETTINGS | {"features": {"kind": "local"}}))["features"]


def test_the_embedded_model_answers_in_one_process() -> None:
    with pytest.raises(ValueError, match="workers: 2 need backends"):
        load_settings(None, {"workers": 2})
    assert RouterSettings().workers == 1
