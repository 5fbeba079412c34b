"""The benchmark beside LiteLLM runs through and resumes. The two tools that it installs are stood in for: aiperf by one
that sends a few requests and writes its report, LiteLLM's proxy by the stub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

HERE = Path(__file__).resolve().parent
BENCH = HERE.parents[2] / "scripts" / "bench_router_peers.py"
CONTENDERS = ("stub", "router, cached", "router, new, pooling server", "litellm")

_AIPERF = """
import argparse, json, urllib.request
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["profile"])
for name in ("model", "url", "input-file", "artifact-dir", "benchmark-duration", "concurrency", "extra-inputs"):
    parser.add_argument(f"--{name}")
options, _ = parser.parse_known_args()
texts = [json.loads(line)["text"] for line in Path(options.input_file).read_text().splitlines()]
assert float(options.benchmark_duration) > 0 and int(options.concurrency) == 1
for text in texts[:3]:
    body = {"model": options.model, "messages": [{"role": "user", "content": text}], "stream": True}
    request = urllib.request.Request(
        f"{options.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.read().endswith(b"[DONE]\\n\\n")
found = {name: {"avg": 3} for name in ("request_count", "completed_request_count", "request_throughput")}
found |= {name: {"p50": 1.0, "p90": 2.0, "p99": 3.0} for name in ("request_latency", "time_to_first_token")}
directory = Path(options.artifact_dir)
directory.mkdir()
(directory / "profile_export_aiperf.json").write_text(json.dumps(found))
"""

_LITELLM = """
import os, sys
if "--version" in sys.argv:
    print("LiteLLM: Current Version = 1.2.3")
else:
    port = sys.argv[sys.argv.index("--port") + 1]
    os.execv(sys.executable, [sys.executable, {stub!r}, "--port", port])
"""


def _executable(path: Path, program: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    return path


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_runs_through_and_resumes(tmp_path: Path) -> None:
    aiperf = _executable(tmp_path / "aiperf", _AIPERF)
    litellm = _executable(tmp_path / "litellm", _LITELLM.format(stub=str(HERE / "stub.py")))
    output = tmp_path / "result.json"
    command = [sys.executable, str(BENCH), "--aiperf", str(aiperf), "--litellm", str(litellm), "--output", str(output)]
    command += ["--no-pin", "--concurrency", "1", "--rounds", "1", "--seconds", "0.2", "--note", "a test"]

    said = _run(command)
    found = json.loads(output.read_text())
    measured = [(each["generator"], each["contender"]) for each in found["measurements"]]
    assert measured == [(generator, contender) for generator in ("aiperf", "ours") for contender in CONTENDERS]
    assert all(each["errors"] == 0 and each["requests"] > 0 for each in found["measurements"])
    assert found["environments"][0]["note"] == "a test"
    assert found["environments"][0]["versions"]["litellm"] == "1.2.3"
    by_aiperf = next(each for each in found["results"] if each["contender"] == "router, cached")
    assert by_aiperf["first_token_p50_ms"] == 1.0
    assert by_aiperf["requests_per_second_to_litellm"] == {"median": 1.0, "least": 1.0, "most": 1.0}
    assert "| stub | streamed | 1 | aiperf | router, cached |" in said

    found["measurements"] = found["measurements"][:-1]  # as if interrupted before the last one
    output.write_text(json.dumps(found))
    assert "1/1 stub 0 streamed 1 ours litellm" in _run(command)
    again = json.loads(output.read_text())
    assert again["measurements"][:-1] == found["measurements"]
    assert len(again["measurements"]) == len(measured)
    assert "everything was measured before" in _run(command)
