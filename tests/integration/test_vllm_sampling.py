"""Traces whose answers come from a vLLM engine on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from warm import warm_run

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.integration]


def test_collect_with_an_engine(tmp_path: Path) -> None:
    from entropy_rft.difficulty import load_traces

    words = ["probe", "collect", "--model", DEFAULT_MODEL, "--task", DEFAULT_TASK, "--limit", "12", "--samples", "4"]
    words += ["--max_tokens", "120", "--thinking_tokens", "48", "--vllm", "--dtype", "float32"]
    words += ["--output_dir", "traces"]
    script = Path(__file__).with_name("eager_vllm.py")
    result = warm_run(words, tmp_path, {"VLLM_CPU_KVCACHE_SPACE": "1"}, 400, script)
    assert result.returncode == 0, result.stderr[-6000:]
    traces = load_traces(tmp_path / "traces")
    assert traces.settings[0]["sampler"] == "vllm"
    assert traces.settings[0]["thinking_tokens"] == 48
    assert len(traces) == 12
    # The model would think for 64 tokens. Cut off at 48, with its tags and an answer, most have nearly one length.
    lengths = [tokens for row in traces.rows for tokens in row["answer_tokens"]]
    assert sum(54 <= tokens <= 64 for tokens in lengths) > len(lengths) / 2, sorted(lengths)
    assert traces.column("accuracy").mean() > 0.05  # the answers are the model's own; without a limit about 0.4
    assert traces.column("entropy").max() < 0.8  # and of its distribution
    assert not all(row["truncated"][0] for row in traces.rows)
