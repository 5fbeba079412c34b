"""Traces whose answers come from a vLLM engine on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.integration]

# `entropy-rft` with an engine that compiles nothing: that is vLLM's own matter, and takes a minute on a CPU.
EAGER = """
import functools
import vllm
vllm.LLM = functools.partial(vllm.LLM, enforce_eager=True)
from entropy_rft.cli.main import main
raise SystemExit(main())
"""


def test_collect_with_an_engine(tmp_path: Path) -> None:
    from entropy_rft.difficulty import load_traces

    result = subprocess.run(
        [sys.executable, "-c", EAGER, "probe", "collect", "--model", DEFAULT_MODEL, "--task", DEFAULT_TASK,
         "--limit", "12", "--samples", "4", "--max_tokens", "120", "--output_dir", "traces", "--vllm",
         "--dtype", "float32", "--thinking_tokens", "90"],
        cwd=tmp_path,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-6000:]
    traces = load_traces(tmp_path / "traces")
    assert traces.settings[0]["sampler"] == "vllm"
    assert traces.settings[0]["thinking_tokens"] == 90  # which few answers need; vLLM refuses it without its tags
    assert len(traces) == 12
    assert traces.column("accuracy").mean() > 0.25  # the answers are the model's own, of levels 1 to 10: about 0.45
    assert traces.column("entropy").max() < 0.8  # and of its distribution
    assert not all(row["truncated"][0] for row in traces.rows)
