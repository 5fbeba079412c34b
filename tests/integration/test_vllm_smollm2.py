"""A real language model and the real vLLM on the CPU: weights in sync after updates, and the router before a server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import warm_vllm
from processes import ServerProcess, router_process
from test_vllm import ENVIRONMENT, assert_in_sync, server, train

pytestmark = [pytest.mark.vllm, pytest.mark.integration, pytest.mark.smollm2]

# Four answers of at most 16 tokens a step. The model ends its thinking with no tag: any text of its own will do.
SMALL: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 16,
    "thinking": False,
    "varied": True,
    "think_end_token": ":",
    "entropy_clip": "clip_v",
}


def test_colocated(short_smollm2_dir: Path, tmp_path: Path) -> None:
    run = train(short_smollm2_dir, tmp_path / "result.json", vllm_mode="colocate", vllm_max_model_length=256, **SMALL)
    assert run["tied"]
    assert_in_sync(run)


@pytest.mark.soak
def test_colocated_with_all_layers(smollm2_dir: Path, tmp_path: Path) -> None:
    options = {**SMALL, "learning_rate": 1e-4}
    run = train(smollm2_dir, tmp_path / "result.json", vllm_mode="colocate", vllm_max_model_length=256, **options)
    assert_in_sync(run)


def check_server(model_dir: Path, tmp_path: Path, **options: Any) -> None:
    with server(model_dir, tmp_path, warm=True) as port:
        place = {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
        assert_in_sync(train(model_dir, tmp_path / "result.json", **place, **{**SMALL, **options}))


def test_server(short_smollm2_dir: Path, tmp_path: Path) -> None:
    check_server(short_smollm2_dir, tmp_path)


@pytest.mark.soak
def test_server_with_all_layers(smollm2_dir: Path, tmp_path: Path) -> None:
    check_server(smollm2_dir, tmp_path, learning_rate=1e-4)


def test_the_router_before_it(smollm2_dir: Path, tmp_path: Path) -> None:
    words = ["--model", str(smollm2_dir), "--served-model-name", "smollm2", "--dtype", "float32", "--enforce-eager"]
    words += ["--max-model-len", "512", "--host", "127.0.0.1", "--port", "{port}"]
    script = Path(warm_vllm.__file__)
    with ServerProcess(words, tmp_path / "vllm.log", environment=ENVIRONMENT, script=script) as backend:
        backend.wait_until_ready()
        settings = {"backends": [{"url": backend.url}], "model": "smollm2", "max_tokens": 8}
        with router_process(tmp_path, settings) as router:
            router.wait_until_ready(120)
            body = {
                "model": "smollm2",
                "messages": [{"role": "user", "content": "What is 3 + 4?"}],
                "difficulty": "hard",
            }
            request = urllib.request.Request(
                f"{router.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                answer = json.load(response)
    assert 0 < answer["usage"]["completion_tokens"] <= 4
    assert answer["choices"][0]["message"]["content"]
