"""Settings: three sources, one line for every mistake, and no key in sight."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from entropy_rft.cli.serve import FLAGS
from entropy_rft.router.settings import PREFIX, RouterSettings, load_settings

PARTS = {"backends", "timeouts", "retries", "breaker", "health", "features", "limits", "auth"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def written(directory: Path, text: str) -> Path:
    path = directory / "router.yaml"
    path.write_text(text)
    return path


def test_defaults_need_nothing() -> None:
    settings = load_settings()
    assert settings.backends == []
    assert settings.auth.keys() == ()
    assert settings.cors_origins == []
    assert settings.log_prompts is False


def test_flag_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "port: 1\nmin_confidence: 0.1\nlimits: {max_body_bytes: 10, max_header_count: 7}\n")
    monkeypatch.setenv(f"{PREFIX}PORT", "2")
    monkeypatch.setenv(f"{PREFIX}LIMITS__MAX_BODY_BYTES", "20")
    settings = load_settings(path, {"port": "3"})
    assert (settings.port, settings.min_confidence) == (3, 0.1)
    assert (settings.limits.max_body_bytes, settings.limits.max_header_count) == (20, 7)
    assert load_settings(path).port == 2


def test_off_is_a_word_in_yaml_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(written(tmp_path, "reload: off\n")).reload == "off"
    assert load_settings(written(tmp_path, "reload: 'off'\n")).reload == "off"
    monkeypatch.setenv(f"{PREFIX}RELOAD", "watch")
    assert load_settings().reload == "watch"


def test_backends_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "backends:\n- http://a:1/v1/\n- {url: https://b, name: big, weight: 2}\n")
    first, second = load_settings(path).backends
    assert (first.url, first.name, first.weight) == ("http://a:1", "a:1", 1.0)
    assert (second.url, second.name, second.weight) == ("https://b", "big", 2.0)
    monkeypatch.setenv(f"{PREFIX}BACKENDS", "http://a:1, http://b:2")
    assert [backend.url for backend in load_settings().backends] == ["http://a:1", "http://b:2"]
    monkeypatch.setenv(f"{PREFIX}BACKENDS", '[{"url": "http://c", "max_outstanding": 3}]')
    assert load_settings().backends[0].max_outstanding == 3


def test_what_kubernetes_sets_for_a_service_of_that_name_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv(f"{PREFIX}SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(f"{PREFIX}SERVICE_PORT_HTTP", "80")
    monkeypatch.setenv(f"{PREFIX}PORT_80_TCP_ADDR", "10.0.0.1")
    assert load_settings().port == 8000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backend: []", "there is no setting 'backend'; did you mean backends?"),
        ("limits: {max_body_byte: 1}", "there is no setting 'limits.max_body_byte'; did you mean max_body_bytes?"),
        ("max_body_bytes: 1", "there is no setting 'max_body_bytes'; did you mean limits.max_body_bytes?"),
        ("backends: [http://a, {ur: b}]", "there is no setting 'backends[1].ur'; did you mean url?"),
        ("mode: shadows", "mode: input should be 'route' or 'shadow', got 'shadows'"),
        ("rollout: 10", "rollout: input should be less than or equal to 1, got 10"),
        ("port: many", "port: input should be a valid integer, unable to parse string as an integer, got 'many'"),
        ("min_confidence: 1.5", "min_confidence: input should be less than or equal to 1, got 1.5"),
        ("backends: [ftp://a]", "backends[0].url: must be an address such as http://10.0.0.1:8000, got 'ftp://a'"),
        ("backends: ['http://[::1:8000']", "backends[0].url: is not an address: Invalid IPv6 URL"),
        ("backends: ['http://a:80800']", "backends[0].url: is not an address: Port out of range 0-65535"),
        (
            "features: {kind: vllm_pooling, url: 'http://a:80800'}",
            "features: url is not an address: Port out of range 0-65535",
        ),
        ("drain_s: .inf", "drain_s: input should be a finite number, got inf"),
        ("limits: {keep_alive_s: .inf}", "limits.keep_alive_s: input should be a finite number, got inf"),
        ("backends: [http://a, http://a]", "backends: 'a' occurs twice: give each a name of its own"),
        (
            "features: {kind: vlm}",
            "features.kind: input should be 'vllm', 'vllm_pooling', 'sglang', 'local' or 'none', got 'vlm'",
        ),
        ("features: {kind: vllm_pooling}", "features: vllm_pooling needs url, the address of a server"),
        ("features: {kind: local}", "probe is missing: features need a probe that reads them"),
        ("- a", "must map names to values, not be a list"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_settings(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_an_environment_variable_that_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}BACKEND", "http://a")
    with pytest.raises(ValueError, match=f"{PREFIX}BACKEND is not a setting; did you mean {PREFIX}BACKENDS"):
        load_settings()


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="must not hold a user or a password") as caught:
        load_settings(None, {"backends": "http://user:hunter2@a"})
    assert "hunter2" not in str(caught.value)


def test_a_part_whose_keys_are_all_comments(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, "limits:\n  # max_body_bytes: 1\n")).limits.max_body_bytes > 1


def test_missing_file() -> None:
    with pytest.raises(ValueError, match=r"'/nowhere/router\.yaml' cannot be read: No such file"):
        load_settings("/nowhere/router.yaml")


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({"keys_env": "NOT_SET"}, "keys_env names the environment variable 'NOT_SET', which is not set"),
        ({"keys_file": "/nowhere/keys"}, "keys_file '/nowhere/keys' cannot be read"),
        ({"keys_env": "KEYS", "keys_file": "/nowhere"}, "give keys_env or keys_file, not both"),
        ({"keys_env": "ODD"}, "'ODD' holds a key that is not one word of printable ASCII"),
    ],
)
def test_keys_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, auth: dict[str, Any], message: str) -> None:
    monkeypatch.setenv("KEYS", "a")
    monkeypatch.setenv("ODD", "sésame")
    with pytest.raises(ValueError, match="auth") as caught:
        load_settings(None, {"auth": auth}).auth.keys()
    assert message in str(caught.value)


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "one, two\nthree one")
    settings = load_settings(None, {"auth": {"keys_env": "KEYS"}})
    assert settings.auth.keys() == ("one", "two", "three")
    assert "three" not in repr(settings)
    file = tmp_path / "keys"
    file.write_text("# the first team\nfour\n\nfive\n")
    assert load_settings(None, {"auth": {"keys_file": str(file)}}).auth.keys() == ("four", "five")


def test_every_setting_with_one_value_is_a_flag() -> None:
    assert set(FLAGS) == set(RouterSettings.model_fields) - (PARTS - {"backends"})
