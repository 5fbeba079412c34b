"""The soak runs through, on a few seconds: backends are killed under load, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds"),
]

SOAK = Path(__file__).resolve().parents[3] / "scripts" / "soak_router.py"


@pytest.mark.soak
def test_a_short_soak(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, str(SOAK), "--minutes", "0.12", "--saturate-seconds", "1", "--rate", "100"]
    command += ["--idle-seconds", "2", "--kill-every", "0.5", "--output", str(output), "--log", str(tmp_path / "log")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(output.read_text())
    assert found["wrong"] == []
    assert sum(found["kills"].values()) >= 2
    outcomes = found["outcomes"]
    assert outcomes["sent"] == outcomes["answered"] + sum(outcomes["unavoidable"].values())
    assert outcomes["answered"] > 300
    assert len(found["memory"]["samples"]) >= 2
