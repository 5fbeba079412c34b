"""Every recipe, as it is but for what a laptop cannot do: it parses, its numbers multiply out, and it runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from warm import warm_run

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.entropy import RULES
from entropy_rft.training.recipe import Recipe, RecipeParser

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
# Configurations of launchers and of other verbs have readers of their own.
OTHERS = ("accelerate", "deepspeed", "router", "studies")
FILES = sorted(file for file in RECIPES.rglob("*.yaml") if file.relative_to(RECIPES).parts[0] not in OTHERS)
every_recipe = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))

# What a laptop cannot do, and nothing else.
LAPTOP: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "use_vllm": False,
    "max_steps": 2,
    "max_completion_length": 24,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "report_to": "none",
}
ARCHITECTURES = {"Qwen2.5": "Qwen2", "Qwen3": "Qwen3", "smollm2": "Llama", DEFAULT_MODEL: "Qwen3"}
METHODS = {**dict.fromkeys(RULES, "entropy_clip/dropped"), "pear": "pear/penalty"}


def processes(file: Path) -> int:
    """How many processes the header says the recipe is for; one when it says nothing."""
    found = re.search(r"^# processes: (\d+)$", file.read_text(), re.MULTILINE)
    return int(found[1]) if found else 1


def parse(file: Path, *flags: str) -> Recipe:
    return RecipeParser().parse(["--config", str(file), *flags])


def on_a_laptop(file: Path, directory: Path) -> Recipe:
    """Only what stops this machine from reading the recipe is changed: no batch, no length."""
    fields = yaml.safe_load(file.read_text()) | {"bf16": False, "use_cpu": True, "report_to": "none"}
    # One process stands for all of them: the batch is the same.
    fields["per_device_train_batch_size"] *= processes(file)
    copy = directory / file.name
    copy.write_text(yaml.safe_dump(fields | {"output_dir": str(directory / "run")}))
    return parse(copy)


@every_recipe
def test_its_fields_exist_and_its_numbers_multiply_out(file: Path, tmp_path: Path) -> None:
    recipe = on_a_laptop(file, tmp_path)
    text = file.read_text()
    fields = yaml.safe_load(text)
    args = recipe.training
    assert fields.keys() <= recipe.given.keys() | {"env"}
    assert Path(fields["output_dir"]) == Path("runs") / file.relative_to(RECIPES).with_suffix("")
    assert f"recipes/{file.relative_to(RECIPES)}" in text
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert args.generation_batch_size == batch
    assert batch % args.num_generations == 0
    # "512 completions = 64 prompts x 8" (or questions) stands beside the numbers it sums up.
    stated = re.search(r"([\d,]+) completions = (\d+) (?:prompts|questions) x (\d+)", text)
    if stated is not None or processes(file) > 1:
        assert stated is not None
        completions, prompts, group = (int(number.replace(",", "")) for number in stated.groups())
        assert (completions, prompts, group) == (batch, batch // args.num_generations, args.num_generations)
    if args.use_vllm:
        assert args.vllm_max_model_length > args.max_completion_length
        assert 0 < args.vllm_gpu_memory_utilization < 1
        # TRL looks at it only once it generates.
        modes = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
        assert args.vllm_importance_sampling_mode in modes
    else:
        assert args.max_completion_length <= 512


def test_the_papers_settings() -> None:
    """arXiv 2602.03392 and 2510.08026, see the recipes' headers."""
    flags = ["--bf16", "false", "--use_cpu", "true", "--report_to", "none"]
    for name, group, mu, fraction in (("clip_b", 16, 2.5, None), ("clip_v", 8, 8.5, 1e-4)):
        file = RECIPES / "dapo_math" / f"qwen2.5_7b_{name}.yaml"
        recipe = parse(file, *flags)
        args, rule = recipe.training, recipe.training.build_entropy_clip()
        assert rule is not None
        assert (rule.name, rule.mu_low, rule.mu_high, rule.advantages, rule.max_fraction) == (
            *(name, mu, None, "negative"),
            fraction,
        )
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes(file)
        assert (step, args.num_generations) == (64 * group, group)
        assert (args.max_completion_length, args.vllm_max_model_length) == (7168, 1024 + 7168)
        assert (args.temperature, args.beta, args.epsilon, args.epsilon_high) == (1.0, 0.0, 0.2, None)
        assert (args.loss_type, args.learning_rate, args.weight_decay) == ("dapo", 1e-6, 0.0)
        assert args.lr_scheduler_type == "constant"
        assert recipe.model.model_name_or_path == "Qwen/Qwen2.5-7B-Instruct"
    file = RECIPES / "gsm8k" / "qwen3_4b_pear.yaml"
    recipe = parse(file, *flags)
    args = recipe.training
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes(file)
    assert step == 128 * args.num_generations
    assert (args.learning_rate, args.entropy_clip, recipe.task.rewards) == (1e-6, "none", ["pear"])
    assert recipe.task.pear == {"alpha": 1.0, "score": 1.0, "format_score": 0.0, "floor": None}


def architecture(name: str) -> str:
    """Of a model by its name here, or else on the hub: ``Qwen/Qwen3-4B``."""
    return ARCHITECTURES.get(name) or ARCHITECTURES[name.partition("/")[2].partition("-")[0]]


def tiny_model(recipe: Recipe, random_model_dir: Path, directory: Path) -> str:
    """A random model of the recipe's architecture; the embedded one is tiny as it is."""
    import torch
    import transformers

    name = str(recipe.model.model_name_or_path)
    if name == DEFAULT_MODEL:
        return name
    family = architecture(name)
    known = transformers.AutoConfig.from_pretrained(random_model_dir).to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept += ("num_key_value_heads", "max_position_embeddings", "eos_token_id", "pad_token_id", "initializer_range")
    if family == "Qwen3":
        kept += ("head_dim",)
    # Tied where the original is.
    config = getattr(transformers, f"{family}Config")(
        **{field: known[field] for field in kept}, tie_word_embeddings="-7B" not in name
    )
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(directory)
    for file in (*random_model_dir.glob("token*"), *random_model_dir.glob("chat_template*")):
        shutil.copy(file, directory)
    return str(directory)


def rows(task: str, directory: Path) -> dict[str, Any]:
    """A file in the task's own layout, where the task would else ask the hub."""
    layouts: dict[str, Any] = {
        "gsm8k": lambda i: {"question": f"What is {i} + {i}?", "answer": f"Twice {i} is {2 * i}.\n#### {2 * i}"},
        "dapo_math": lambda i: {
            "prompt": [
                {
                    "role": "user",
                    "content": "Solve the following math problem step by step. The last line of your response should "
                    f"be of the form Answer: $Answer.\n\nWhat is {i} + {i}?\n\nRemember to put your answer on its own "
                    'line after "Answer:".',
                }
            ],
            "reward_model": {"ground_truth": str(2 * i)},
        },
    }
    if task not in layouts:
        return {}
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(layouts[task](i)) + "\n" for i in range(64)))
    return {"task_path": str(file)}


@every_recipe
def test_it_runs_two_steps_with_a_tiny_model_of_its_architecture(
    file: Path, random_model_dir: Path, tmp_path: Path
) -> None:
    recipe = on_a_laptop(file, tmp_path)
    fields = yaml.safe_load(file.read_text())
    model = tiny_model(recipe, random_model_dir, tmp_path / "model")
    local = LAPTOP | {"model_name_or_path": model, "output_dir": str(tmp_path / "run")}
    local |= rows(fields["task"], tmp_path)
    copy = tmp_path / file.name
    copy.write_text(yaml.safe_dump(fields | local))
    result = warm_run(["train", "--config", copy], tmp_path)
    assert result.returncode == 0, result.stderr[-4000:]

    run = tmp_path / "run"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [1, 2]
    expected = {METHODS[method] for method in METHODS if method in (fields["entropy_clip"], *fields["rewards"])}
    assert expected or file.stem == "grpo"
    for number, entry in enumerate(logged):
        generated = number % fields.get("num_iterations", 1) == 0  # what belongs to a generation is logged once
        assert entry.keys() >= expected | ({"completions/thinking_length", "reward"} if generated else set())
        assert expected.isdisjoint({"entropy_clip/sigma"}) or entry["entropy_clip/sigma"] > 0
    if fields.get("use_peft"):
        saved = json.loads((run / "adapter_config.json").read_text())
        assert (saved["r"], sorted(saved["target_modules"])) == (
            fields["lora_r"],
            sorted(fields["lora_target_modules"]),
        )
        assert (run / "adapter_model.safetensors").is_file()
    else:
        kind = json.loads((run / "config.json").read_text())["architectures"]
        name = str(recipe.model.model_name_or_path)
        assert kind == [f"{architecture(name)}ForCausalLM"]
    if fields.get("log_completions"):
        assert sorted(path.name for path in (run / "completions").iterdir()) == [
            "completions_00001.parquet",
            "completions_00002.parquet",
        ]
