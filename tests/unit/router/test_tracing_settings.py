"""What tracing costs where it is off, and what it says where it cannot be on."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from entropy_rft.router.app import create_app
from entropy_rft.router.settings import load_settings
from entropy_rft.router.tracing import check_tracing


def test_nothing_is_imported_without_it() -> None:
    code = """
import sys
import entropy_rft.router.app as router
import entropy_rft.router.middleware
from entropy_rft.router.settings import load_settings
router.create_app(load_settings(None, {"backends": ["http://a"]}))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_missing_package_is_one_line_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    settings = load_settings(None, {"tracing": True, "backends": ["http://a"]})
    with pytest.raises(ValueError, match=re.escape('pip install "entropy_rft[otel]"')) as caught:
        create_app(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ],
)
def test_what_the_environment_cannot_ask_for(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    pytest.importorskip("opentelemetry.sdk")
    check_tracing()
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}: .*{value}") as caught:
        check_tracing()
    assert "\n" not in str(caught.value)
