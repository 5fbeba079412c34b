"""What ZeRO-3 promises: no rank holds the whole model, also not for the statistics; a resumed run is the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import HERE, launch, needs_deepspeed
from safetensors.torch import load_file

from entropy_rft.assets import DEFAULT_TASK

pytestmark = pytest.mark.integration

LAYERS = 6


@pytest.fixture(scope="module")
def deeper_models(random_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of more layers, whose blocks are larger than the head, with the embeddings tied and not."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directories = {}
    for name in ("tied", "untied"):
        directory = tmp_path_factory.mktemp("deeper") / name
        config = AutoConfig.from_pretrained(
            random_model_dir,
            num_hidden_layers=LAYERS,
            layer_types=["full_attention"] * LAYERS,
            hidden_size=32,
            intermediate_size=128,
            tie_word_embeddings=name == "tied",
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        AutoTokenizer.from_pretrained(random_model_dir).save_pretrained(directory)
        directories[name] = directory
    return directories


# Which weights are trained and where the head is are two matters: the soak test has the other two pairs.
@pytest.mark.parametrize(
    "cases",
    [
        {("tied", "full"), ("untied", "lora")},
        pytest.param({("tied", "lora"), ("untied", "full")}, marks=pytest.mark.soak),
    ],
    ids=["two pairs", "the other pairs"],
)
def test_the_pass_over_the_old_policy_never_holds_the_whole_model(
    deeper_models: dict[str, Path], tmp_path: Path, cases: set[tuple[str, str]]
) -> None:
    """TRL's gathering for `generate` is another matter (`ds3_gather_for_generation`); it is over before the pass."""
    needs_deepspeed()
    # DeepSpeed keeps small parameters, and fetches ahead, up to thresholds that this whole model lies under.
    nothing_to_spare = {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
    }
    words = [tmp_path / "held", *(f"{kind}={deeper_models[name]}" for name, kind in cases)]
    launch("zero3", words, tmp_path, HERE / "materialised.py", nothing_to_spare)
    for rank in (0, 1):
        measured = torch.load(tmp_path / f"held-{rank}.pt")
        assert measured.keys() == cases
        for case, found in measured.items():
            check_what_was_held(found, f"rank {rank}, {case}")


def check_what_was_held(found: dict[str, Any], case: str) -> None:
    assert (found["stage"], found["processes"]) == (3, 2), case
    # One pass a step, each from a model that lies in shards, and back to them; the head whole in the kernel alone.
    places = [place for place, _ in found["held"]]
    assert places.count("start") == places.count("end") == len(found["kernel"]) == 2, case
    assert {held for place, held in found["held"] if place in ("start", "end")} == {0}, case
    for kernel in found["kernel"]:
        assert kernel["weight"] == found["head"], case
        numel = found["head"][0] * found["head"][1]
        assert numel <= kernel["held"] < numel + found["block"], case
    # Up to there: a block, and beside it the head and the embeddings, which DeepSpeed may have fetched with the model.
    place, most = max(found["held"], key=lambda entry: entry[1])
    allowed = found["block"] + 2 * numel
    assert 0 < most <= allowed, (case, place)
    assert allowed < found["total"] / 2.5, "the model is too small to tell"


def test_a_run_resumed_under_zero3_is_the_run_that_was_not_interrupted(random_model_dir: Path, tmp_path: Path) -> None:
    needs_deepspeed()
    recipe = tmp_path / "recipe.yaml"
    fields = {
        "model_name_or_path": str(random_model_dir),
        "dtype": "float32",
        "task": DEFAULT_TASK,
        "task_limit": 16,
        # The random model answers nothing right: by the task's reward alone no parameter would ever move.
        "rewards": ["pear", "training_inputs:some_reward"],
        "pear_floor": 0.1,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
    }
    recipe.write_text(yaml.safe_dump(fields))

    def train(directory: Path, *flags: str) -> dict[str, torch.Tensor]:
        launch("zero3", ["train", "--config", recipe, "--output_dir", directory, *flags], tmp_path)
        return load_file(directory / "model.safetensors")

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    uninterrupted = train(whole)
    assert json.loads((whole / "run.json").read_text())["processes"] == 2
    # Each rank's shard of the optimiser: DeepSpeed wrote it, not DDP.
    for rank in (0, 1):
        assert list((whole / "checkpoint-2").glob(f"global_step2/*zero_pp_rank_{rank}_*optim_states.pt")), rank
    halfway = load_file(whole / "checkpoint-2" / "model.safetensors")
    assert any(not torch.equal(halfway[name], tensor) for name, tensor in uninterrupted.items())

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoint-4")
    (parts / "model.safetensors").unlink()
    resumed = train(parts, "--resume_from_checkpoint", "auto")
    assert resumed.keys() == uninterrupted.keys()
    for name, tensor in uninterrupted.items():
        assert torch.equal(resumed[name], tensor), name
    ignored = ("step_time", "time")
    lines = [
        [
            {name: value for name, value in json.loads(line).items() if name not in ignored}
            for line in (directory / "metrics.jsonl").read_text().splitlines()
        ]
        for directory in (whole, parts)
    ]
    assert [entry["step"] for entry in lines[0]] == [1, 2, 3, 4]
    assert lines[0] == lines[1]
    assert json.loads((parts / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
