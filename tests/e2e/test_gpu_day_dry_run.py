"""Every stage of scripts/gpu_day.py at a reduced size on the CPU: no typing mistake is found on the GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from warm import warm_run

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpu_stages.recording import child_environment  # noqa: E402

pytestmark = pytest.mark.e2e

BY_THE_RUNNER = ("statistics", "step")
BY_THEMSELVES = ("kernel", "methods", "router")  # engines: see the last tests


def dry_run(output: Path, *flags: str) -> dict[str, dict[str, Any]]:
    """What each stage's file says."""
    runner = str(SCRIPTS / "gpu_day.py")
    words = [sys.executable, runner, "--output", str(output), "--dry-run", "--minutes", "30", *flags]
    result = subprocess.run(words, capture_output=True, text=True, timeout=560)
    log = (output / "log.txt").read_text(errors="replace")
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{log[-6000:]}"
    found = [json.loads(path.read_text()) for path in sorted(output.glob("*.json"))]
    return {document["stage"]: document for document in found}


def stage_alone(name: str, directory: Path) -> dict[str, Any]:
    """What the file of a stage says that is started without the runner, which only adds what it says of the machine."""
    directory.mkdir()
    result = directory / "result.json"
    words = ["--result", result, "--work", directory, "--seconds", "400", "--dry-run"]
    environment = child_environment(CUDA_VISIBLE_DEVICES="")
    ended = warm_run(words, SCRIPTS.parent, environment, 560, SCRIPTS / "gpu_stages" / f"{name}.py")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(result.read_text())


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Two stages by the runner, in new interpreters as on the GPU; one sets up Triton before it imports it. The others
    are forked: each interpreter that imports TRL costs seconds. (The runner is what test_gpu_day.py is about.)"""
    directory = tmp_path_factory.mktemp("gpu_day")
    alone = {name: stage_alone(name, directory / name) for name in BY_THEMSELVES}
    return alone | dry_run(directory / "runner", "--only", *BY_THE_RUNNER)


@pytest.mark.parametrize("stage", BY_THE_RUNNER)
def test_the_runner_names_the_machine(stages: dict[str, dict[str, Any]], stage: str) -> None:
    document = stages[stage]
    assert (document["status"], document["reason"], document["dry_run"]) == ("done", None, True)
    assert document["seconds"] < document["limit"]
    environment = document["environment"]
    assert environment["gpu"] is None
    assert environment["versions"].keys() >= {"python", "torch", "triton", "trl", "transformers", "accelerate"}
    assert {"missing", "outside_the_range", "cores", "commit"} <= environment.keys()


def test_what_must_hold_holds_in_every_stage(stages: dict[str, dict[str, Any]]) -> None:
    for document in stages.values():
        assert document["results"]
        assert all(check["holds"] for check in document["checks"].values())


def test_kernel(stages: dict[str, dict[str, Any]]) -> None:
    results, checks = stages["kernel"]["results"], stages["kernel"]["checks"]
    for precision in ("float32", "bfloat16"):
        assert results[f"identity, {precision}"]["ours_is_trls"] == dict.fromkeys(
            ("logs", "completions", "parameters"), True
        )
        assert any(log[0] != 0 for log in results[f"identity, {precision}"]["logs"])
        assert f"without a rule the trainer is TRL's, {precision}" in checks
    for rule in ("clip_b, float32", "clip_v, bfloat16"):
        assert results[rule]["decisions_that_agree"] == 1.0
        assert 0 < results[rule]["dropped"] < results[rule]["tokens"]
    if find_spec("triton"):
        assert results["tests"] == {"passed": 1, "failed": [], "skipped": []}


def test_statistics(stages: dict[str, dict[str, Any]]) -> None:
    results, goals = stages["statistics"]["results"], stages["statistics"]["goals"]
    (row,) = results["rows"]
    assert row["seconds"].keys() >= {"naive", "trl", "ours", "ours32", "floor"}
    assert row["ratios"]["time ours/trl"] > 0
    assert "time ours/trl, N 64, D 32" in goals
    assert max(row["largest_differences"].values()) < 1e-3
    (profiled,) = results["profiles of what misses its goal"]
    assert all(each["launches"] > 0 < each["busy_us"] for each in profiled["of one call"].values())
    if find_spec("triton"):
        assert all(each["GB/s"] > 0 for each in results["kernel alone"]["found"])
        assert all(each["seconds"] > 0 for each in results["tiles"]["found"])


def test_step(stages: dict[str, dict[str, Any]]) -> None:
    results = stages["step"]["results"]
    for mode in ("off-policy", "on-policy"):
        assert len(results[mode]["seconds"]["ours"]) == len(results[mode]["seconds"]["trl"]) == 1
    assert results["on-policy"]["old_policy_pass_seconds"]["trl"] == [0.0]
    assert results["on-policy"]["old_policy_pass_seconds"]["ours"][0] > 0
    assert "time ours/trl, off-policy" in stages["step"]["goals"]


def test_methods(stages: dict[str, dict[str, Any]]) -> None:
    results, goals = stages["methods"]["results"], stages["methods"]["goals"]
    for method in ("grpo", "clip_b"):
        assert [entry["step"] for entry in results[method]] == [1, 2]
        assert all(entry["entropy"] > 0 for entry in results[method])
    assert goals.keys() == {"grpo: share of the entropy that is left", "clip_b: entropy kept beside grpo's"}


def test_router(stages: dict[str, dict[str, Any]]) -> None:
    results = stages["router"]["results"]
    assert len(results["local states"]) == 9
    assert all(row["questions/s"] > 0 and row["p50_ms"] <= row["p99_ms"] for row in results["local states"])
    assert results["headers of an answer"]["x-entropy-rft-difficulty"] in ("easy", "normal", "hard")
    assert results["router"][0]["requests"] > 0


# What the stage launches, two processes with DDP and ZeRO 3, is launched by tests/integration/test_ranks.py too.
@pytest.mark.soak
def test_engines(tmp_path: Path) -> None:
    results = dry_run(tmp_path, "--only", "engines", "--engines", "fsdp2", "ddp")["engines"]["results"]
    assert results["fsdp2"] == {"left out": "FSDP needs a GPU"}
    assert (results["ddp, masks"]["engine"], results["ddp, recipe"]["engine"]) == ("ddp", "ddp")
    assert [len(step) > 0 for step in results["ddp, masks"]["dropped"]] == [True, True]
    assert [entry["step"] for entry in results["ddp, recipe"]["metrics"]] == [1, 2]


@pytest.mark.soak
def test_zero3_keeps_the_tokens_that_ddp_keeps(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    document = dry_run(tmp_path, "--only", "engines", "--engines", "ddp", "zero3")["engines"]
    assert document["results"]["zero3, masks"]["engine"] == "zero3"
    assert document["checks"]["zero3 keeps the tokens that ddp keeps"]["holds"]
    assert document["checks"]["zero3 learns the weights that ddp learns"]["holds"]
