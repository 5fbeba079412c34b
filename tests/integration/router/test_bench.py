"""The benchmark runs through, on small numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

BENCH = Path(__file__).resolve().parents[3] / "scripts" / "bench_router.py"


def test_a_quick_look(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, str(BENCH), "--quick", "--no-pin", "--output", str(output), "--note", "a test"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "LiteLLM is left out" in result.stdout
    found = json.loads(output.read_text())
    assert found["environment"]["note"] == "a test"
    measured = {(r["contender"], r["mode"], r["concurrency"]) for r in found["results"]}
    names = ("stub", "router, cached", "router, new, pooling server")
    assert measured == {(name, mode, c) for name in names for mode in ("plain", "streamed") for c in (1, 16)}
    assert all(r["requests"] > 0 and not r["errors"] and r["p50_ms"] <= r["p99_ms"] for r in found["results"])
    assert len(found["added"]) == 2 * 2 * 2
    assert found["memory"]["requests"] >= 3000
    assert found["memory"]["in_flight_at_the_end"] == 0
    assert [each["met"] for each in found["targets"]][1:3] == [None, None]  # they need LiteLLM
