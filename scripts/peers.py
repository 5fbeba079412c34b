"""AIPerf, the load generator of NVIDIA's AI-Dynamo project, run against one server.

It lives in an environment of its own, because it pins versions that others do not want. It needs neither torch nor a
model hub: its tokenizer is a local directory, and its questions are a file.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AIPERF = "0.13.0"
# aiperf's names; ours are in `summary`.
_PERCENTILES = ("p50", "p90", "p99")


def run_aiperf(
    executable: Path,
    url: str,
    questions: Sequence[str],
    directory: Path,
    *,
    tokenizer: Path | str,
    concurrency: int,
    seconds: float,
    stream: bool,
    warm_up: int,
    extra: dict[str, Any] | None = None,
    model: str = "stub",
) -> dict[str, Any]:
    """One measurement, as `summary` gives it.

    Args:
        executable: aiperf's.
        url: of the server; ``/v1/chat/completions`` is asked.
        questions: one after the other, from the beginning again at their end.
        directory: for its files; new.
        tokenizer: local directory of a tokenizer, by which it counts tokens.
        concurrency: requests at the same time.
        seconds: of the measurement.
        stream: whether answers are streamed.
        warm_up: requests before it, which do not count.
        extra: fields of every request.
        model: that the requests name.

    Raises:
        RuntimeError: aiperf failed, with the end of what it said.
    """
    directory.mkdir(parents=True)
    file = directory / "questions.jsonl"
    file.write_text("".join(json.dumps({"text": question}) + "\n" for question in questions))
    command = [str(executable), "profile", "--model", model, "--url", url, "--endpoint-type", "chat"]
    command += ["--input-file", str(file), "--custom-dataset-type", "single-turn"]
    command += ["--dataset-sampling-strategy", "sequential", "--tokenizer", str(tokenizer)]
    command += ["--concurrency", str(concurrency), "--benchmark-duration", str(seconds)]
    command += ["--warmup-request-count", str(warm_up), "--request-timeout-seconds", "60"]
    # One process that sends and one that evaluates: more only take turns on the core that they share here.
    command += ["--workers-max", "1", "--record-processors", "1"]
    command += ["--ui", "none", "--no-server-metrics", "--no-gpu-telemetry", "--export-level", "summary"]
    command += ["--artifact-dir", str(directory / "found")]
    if stream:
        command.append("--streaming")
    if extra:
        command += ["--extra-inputs", json.dumps(extra)]
    # Offline it would look for the local tokenizer among the hub's downloads.
    variables = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=seconds + 300)
    found = directory / "found" / "profile_export_aiperf.json"
    if result.returncode or not found.exists():
        raise RuntimeError(f"aiperf ended with {result.returncode}: {(result.stdout + result.stderr)[-2000:]}")
    return summary(json.loads(found.read_text()))


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of aiperf's report: counts, and times in milliseconds; ``None`` where it has none."""

    def value(name: str, statistic: str = "avg") -> float | None:
        number = found.get(name, {}).get(statistic)
        return None if number is None else round(number, 4)

    answered, asked = value("request_count") or 0.0, value("completed_request_count") or 0.0
    result: dict[str, Any] = {
        "requests": int(answered),
        "errors": int(asked - answered),
        "first_error": (found.get("error_summary") or [None])[0],
        "seconds": value("benchmark_duration"),
        "requests_per_second": value("request_throughput"),
        "output_tokens": value("output_sequence_length"),
    }
    for ours, theirs in (("", "request_latency"), ("first_token_", "time_to_first_token")):
        result |= {f"{ours}{p}_ms": value(theirs, p) for p in _PERCENTILES}
    return result | {f"between_tokens_{p}_ms": value("inter_token_latency", p) for p in _PERCENTILES}
