"""The other verbs on a real language model: evaluate, the demo, the probe from traces to a comparison, and serve."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gsm8k import gsm8k
from processes import router_process

pytestmark = [pytest.mark.integration, pytest.mark.smollm2]

SUMS = ("--task", "reasoning_gym", "--task_option", "generator=chain_sum", "--task_option", "levels=[0,2]")
SUMS += ("--task_option", "thinking=false", "--task_option", "answer_format=Reply with the number alone.")
SHORT = ("--max_tokens", "8", "--device", "cpu", "--think_end_token", ":")


def entropy_rft(*words: object, cwd: Path) -> str:
    """A verb in this process, since each new one imports torch; what it wrote to stdout."""
    from entropy_rft.cli.main import main

    before, out, err = Path.cwd(), io.StringIO(), io.StringIO()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert main([*map(str, words)]) == 0, err.getvalue()
    finally:
        os.chdir(before)
    return out.getvalue()


def test_evaluate_on_gsm8k(smollm2_dir: Path, tmp_path: Path) -> None:
    words = ["--task", "gsm8k", "--path", gsm8k("test", tmp_path), "--limit", 2, "--samples", 2, "--max_tokens", 16]
    form = ["--task_option", "answer_format=Answer in one line, such as: 3 + 4 = 7 #### 7", "--think_end_token", "####"]
    said = entropy_rft("evaluate", "--model", "smollm2", *words, *form, "--device", "cpu", cwd=tmp_path)
    assert "smollm2" in said
    found = json.loads((tmp_path / "evaluation-gsm8k-test.json").read_text())
    assert (found["model"], found["questions"], found["samples"]) == ("smollm2", 2, 2)
    assert 0 < found["tokens"] <= 16
    assert 0.5 < found["entropy"] < 8  # nats


@pytest.fixture
def tiny_smollm2_dir(smollm2_dir: Path, tmp_path: Path) -> Path:
    """A random model of its kind, with its vocabulary and chat template, that is a hundredth of its size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = tmp_path / "tiny"
    shutil.copytree(smollm2_dir, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    size = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    # Peaked enough that entropies differ between positions.
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "initializer_range": 0.5}
    config = AutoConfig.from_pretrained(directory, **size, **heads)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


def test_the_demo(tiny_smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains three times, which would take the whole model minutes."""
    from entropy_rft.models import smollm2

    monkeypatch.setenv("ENTROPY_RFT_CACHE", str(tmp_path / "cache"))
    smollm2.directory().parent.mkdir()
    smollm2.directory().symlink_to(tiny_smollm2_dir)
    words = ("--model", "smollm2", "--steps", 1, "--questions", 2, "--samples", 2)
    said = entropy_rft("demo", *words, cwd=tmp_path)
    assert "SmolLM2, a real language model" in said.splitlines()[1]  # the first says that libraries are loaded
    for text in ("reasoning_gym/chain_sum/test", "2 × 2", "GRPO", "target", "PEAR", "total time: "):
        assert text in said
    runs = tmp_path / "runs" / "demo"
    assert (runs / "report.html").is_file()
    for name in ("grpo", "target", "target_pear"):
        found = json.loads((runs / name / "evaluation.json").read_text())
        assert (found["questions"], found["samples"]) == (2, 2)
        (logged,) = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        assert 0 < logged["entropy"] < 10.8  # nats; the logarithm of the vocabulary
        assert ("entropy_clip/dropped" in logged) == (name != "grpo")
        assert ("pear/penalty" in logged) == (name == "target_pear")


@pytest.fixture(scope="module")
def place(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of sums of two levels, train and test, and a probe of the former."""
    directory = tmp_path_factory.mktemp("probe")
    for split, limit in (("train", 14), ("test", 4)):
        words = ("--split", split, "--limit", limit, "--samples", 2, "--temperature", 0.7, "--output_dir", split)
        entropy_rft("probe", "collect", "--model", "smollm2", *SUMS, *words, *SHORT, cwd=directory)
    # So few answers have no three clouds to calibrate by.
    thresholds = ("--thresholds", 0.9, 1.0, 0.3, "--test_fraction", 0.3, "--epochs", 5)
    entropy_rft("probe", "train", "--traces", "train", "--output_dir", "trained", *thresholds, cwd=directory)
    return directory


def test_from_traces_to_a_comparison(place: Path) -> None:
    from entropy_rft.difficulty import DifficultyProbe, load_traces

    rows = load_traces(place / "train").rows
    assert {row["level"] for row in rows} == {"0", "2"}
    assert any(row["accuracy"] > 0 for row in rows)
    assert all(0 < row["entropy"] < 8 for row in rows)
    probe = DifficultyProbe.from_pretrained(place / "trained", base_model="smollm2")
    assert (probe.width, probe.base_model) == (576, "smollm2")
    words = ("--samples", 2, "--max_tokens", 12, "--device", "cpu", "--output_dir", "evaluated")
    entropy_rft("probe", "evaluate", "--probe", "trained", "--traces", "test", *words, cwd=place)
    written = json.loads((place / "evaluated" / "evaluation.json").read_text())
    assert written["questions"] == 4
    assert written["levels"]["groups"].keys() == {"0", "2"}
    assert written["policies"]["hard"]["tokens"] <= 6


@pytest.fixture
def router(place: Path, tmp_path: Path) -> Iterator[str]:
    """``entropy-rft serve`` with that probe, before a server of the model itself."""
    from entropy_rft.router.embedded.server import EmbeddedServer

    with EmbeddedServer("smollm2", device="cpu") as backend:
        settings = {
            "probe": str(place / "trained"),
            "backends": [{"url": backend.url}],
            "features": {"kind": "local", "deadline_ms": 20_000},
            "min_confidence": 0.4,
            "max_tokens": 8,
        }
        with router_process(tmp_path, settings, ready="/ready") as process:
            process.wait_until_ready(120)
            yield process.url


def test_serve(router: str) -> None:
    def post(**fields: Any) -> tuple[dict[str, Any], Any]:
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "What is 3 + 4?"}], **fields}
        request = urllib.request.Request(
            f"{router}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response), response.headers

    answer, headers = post()
    assert headers["x-entropy-rft-difficulty"] in ("easy", "normal", "hard")
    assert 0 < float(headers["x-entropy-rft-confidence"]) <= 1
    assert 0 < answer["usage"]["completion_tokens"] <= 8
    # Without a system message the template adds one of its own, which a strategy's takes the place of.
    prompts = set()
    for difficulty, limit in (("easy", 8), ("hard", 4)):
        asked, headers = post(difficulty=difficulty)
        assert headers["x-entropy-rft-difficulty"] == difficulty
        assert 0 < asked["usage"]["completion_tokens"] <= limit
        prompts.add(asked["usage"]["prompt_tokens"])
    assert len(prompts) == 2
