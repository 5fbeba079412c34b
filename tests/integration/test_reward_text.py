"""The reward reads what the phases are cut from, however the tokenizer writes the tags of the thinking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer, PEARReward
from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK
from entropy_rft.difficulty import collect_traces, load_traces
from entropy_rft.evaluation import evaluate_model
from entropy_rft.models.sources import model_source
from entropy_rft.sampling import ThinkEndMarker, TransformersSampler, load_model_and_tokenizer
from entropy_rft.tasks import load_task

pytestmark = pytest.mark.integration

VARIANTS = {
    "its own": (False, "<think>", "</think>"),
    "special tokens": (True, "<think>", "</think>"),
    "another text": (False, "[THINK]", "[/THINK]"),
}


def changed(directory: Path, special: bool, opening: str, end: str) -> Path:
    """The embedded model with other tags; the weights, so the ids, stay."""
    shutil.copytree(model_source(DEFAULT_MODEL), directory)
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        if token["content"] in ("<think>", "</think>"):
            token |= {"content": opening if token["content"] == "<think>" else end, "special": special}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return directory


def measured(directory: Path, name: str) -> dict[str, Any]:
    """Accuracy by evaluation, collection and training, and what a reward of one's own reads."""
    special, opening, end = VARIANTS[name]
    path = changed(directory / "model", special, opening, end)
    model, tokenizer = load_model_and_tokenizer(str(path))
    task = load_task(DEFAULT_TASK, split="test", limit=6)
    result = evaluate_model(
        model, tokenizer, task, samples=2, max_tokens=120, think_end_token=end, progress=False, batch_size=12
    )
    sampler = TransformersSampler(model, tokenizer)
    collect_traces(
        model, tokenizer, task, directory / "traces", sampler=sampler, samples=2, max_tokens=120, think_end_token=end,
        progress=False,
    )  # fmt: skip
    traces = load_traces(directory / "traces")
    assert traces.think_end_token == end
    read: list[str] = []

    def own_reward(completions: list, **kwargs: Any) -> list[float]:
        read.extend(completion[0]["content"] for completion in completions)
        return [0.0] * len(completions)

    (correctness,) = task.reward_funcs
    trainer = EntropyGRPOTrainer(
        model=str(path),
        reward_funcs=[PEARReward(correctness), correctness, own_reward],
        args=EntropyGRPOConfig(
            str(directory / "run"), per_device_train_batch_size=8, num_generations=4, max_completion_length=120,
            max_steps=1, think_end_token=end, report_to="none", use_cpu=True, save_strategy="no", logging_steps=1,
        ),
        train_dataset=task.dataset,
    )  # fmt: skip
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "rewards/pear_reward/mean" in entry]
    rewards = {key: value for key, value in log.items() if key.startswith("rewards/")}
    return {
        "evaluate": (result.avg_at_k, result.marker_missing),
        "probe": [row["correct"] for row in traces.rows],
        "train": rewards,
        "text": [text.replace(opening, "<think>").replace(end, "</think>") for text in read],
    }


def test_every_way_to_write_the_tags_gives_the_same_rewards(tmp_path: Path) -> None:
    found = {name: measured(tmp_path / name.replace(" ", "-"), name) for name in VARIANTS}
    own = found["its own"]
    assert 0 < own["evaluate"][0] < 1
    assert own["train"]["rewards/reasoning_accuracy_reward/mean"] > 0
    assert "</think>" in own["text"][0]
    for name, values in found.items():
        assert values == own, name


def test_a_template_that_opens_the_thinking(tmp_path: Path) -> None:
    path = changed(tmp_path / "model", *VARIANTS["its own"])
    template = path / "chat_template.jinja"
    opened = template.read_text(encoding="utf-8").replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    template.write_text(opened, encoding="utf-8")
    _, tokenizer = load_model_and_tokenizer(str(path))
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ThinkEndMarker(tokenizer, "</think>").opened(ids)
    assert not ThinkEndMarker(tokenizer, "</think>").opened(ids[:-3])
    from trl.rewards import think_format_reward

    task = load_task(DEFAULT_TASK, split="test", limit=2)
    seen: list[list[bool]] = []

    def own_reward(completions: list, thinking_opened: list[bool], **kwargs: Any) -> list[float]:
        seen.append(thinking_opened)
        return [0.0] * len(completions)

    trainer = EntropyGRPOTrainer(
        model=str(path),
        reward_funcs=[think_format_reward, own_reward],
        args=EntropyGRPOConfig(
            str(tmp_path / "run"), per_device_train_batch_size=8, num_generations=4, max_completion_length=120,
            max_steps=1, entropy_clip="none", report_to="none", use_cpu=True, save_strategy="no", logging_steps=1,
        ),
        train_dataset=task.dataset,
    )  # fmt: skip
    completions = [[{"role": "assistant", "content": "3+4=7\n</think>\nThe answer is 7."}]] * 8
    trainer._generated_prompts = [ids] * 8
    inputs = [dict(task.dataset[0])] * 8
    values = trainer._calculate_rewards(inputs, [messages] * 8, completions, [[5]] * 8)
    assert values[:, 0].tolist() == [1.0] * 8
    trainer.train()
    assert seen == [[True] * 8] * 2
