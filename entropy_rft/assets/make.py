"""Make the tiny reasoner: a language model of 0.84 million parameters, supervised on worked sums.

Everything follows from the seed. Only questions of the training split are shown to the model; its accuracy is then
measured on the test split and written beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_rft.assets import TINY_REASONER
from entropy_rft.assets.measure import measure
from entropy_rft.assets.tokenizer import build_tokenizer
from entropy_rft.assets.traces import completion
from entropy_rft.sampling.progress import progress_bar
from entropy_rft.tasks.arithmetic import LEVELS, draw
from entropy_rft.tasks.instructions import DIRECT, STEP_BY_STEP, STOP_EARLY
from entropy_rft.tasks.task import chat_prompt

VOCAB_SIZE = 448
MAX_POSITIONS = 4096
_TOKENIZER_TRACES = 10_000
_POOL = 16  # batches drawn at once and sorted by length, so that little of a batch is padding

# (instruction, style, weight): without an instruction the model thinks step by step.
_MIXTURE = ((None, "step", 0.4), (STEP_BY_STEP, "step", 0.2), (STOP_EARLY, "early", 0.2), (DIRECT, "direct", 0.2))


@dataclass(frozen=True)
class Recipe:
    """How the model is trained. One step is one batch of `batch_size` fresh traces."""

    seed: int = 0
    steps: int = 1200
    batch_size: int = 96
    learning_rate: float = 3e-3
    warmup_steps: int = 50


def conversations(seed: int | str) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Endless (prompt, completion) pairs of the training split."""
    rng = random.Random(f"traces/{seed}")
    weights = [weight for _, _, weight in _MIXTURE]
    while True:
        item = draw(rng, rng.choice(LEVELS), "train")
        instruction, style, _ = rng.choices(_MIXTURE, weights)[0]
        yield chat_prompt(item.question, instruction, None), completion(item, style, rng)


def make_tokenizer(seed: int) -> Any:
    """The tokenizer, its merges learned from the model's own prompts and traces."""
    stream = conversations(f"tokenizer/{seed}")
    texts = []
    for _ in range(_TOKENIZER_TRACES):
        prompt, answer = next(stream)
        texts += [message["content"] for message in prompt]
        # The markers are tokens of their own and must not leave their letters among the merges.
        texts += answer.replace("</think>", "<think>").split("<think>")
    return build_tokenizer(texts, VOCAB_SIZE, MAX_POSITIONS)


def make_model(tokenizer: Any, seed: int) -> Any:
    """A randomly initialised Qwen3 of 4 layers and width 128."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, **ids)
    return model


def batches(tokenizer: Any, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless (input_ids, attention_mask, labels), each (B, T), padded on the right; only completions have labels."""
    stream = conversations(recipe.seed)
    rng = random.Random(f"batches/{recipe.seed}")
    while True:
        pairs = [next(stream) for _ in range(_POOL * recipe.batch_size)]
        prompts = [tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p, _ in pairs]
        prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer([a + tokenizer.eos_token for _, a in pairs], add_special_tokens=False)["input_ids"]
        rows = sorted(zip(prompt_ids, answer_ids, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        pool = [rows[start : start + recipe.batch_size] for start in range(0, len(rows), recipe.batch_size)]
        rng.shuffle(pool)
        for batch in pool:
            yield collate(batch, tokenizer.pad_token_id)


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(prompt, completion) token ids as (input_ids, attention_mask, labels)."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        input_ids[row, :length] = torch.tensor(prompt + answer)
        mask[row, :length] = 1
        labels[row, len(prompt) : length] = torch.tensor(answer)
    return input_ids, mask, labels


def train(model: Any, tokenizer: Any, recipe: Recipe) -> float:
    """Supervise `model` in place; returns the mean loss of the last 50 steps, in nats per token."""
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, min(recipe.warmup_steps, recipe.steps), recipe.steps, min_lr_rate=0.02
    )
    losses: list[float] = []
    model.train()
    stream = batches(tokenizer, recipe)
    with progress_bar("training", recipe.steps) as advance:
        for _ in range(recipe.steps):
            input_ids, mask, labels = next(stream)
            loss = model(input_ids=input_ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            advance(1, f"loss {losses[-1]:.3f}")
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def make(output: Path, recipe: Recipe, questions: int = 600, command: str = "") -> dict[str, Any]:
    """Make the model in `output` and return its provenance, which is also written there as `provenance.json`.

    Args:
        output: a directory, created if needed; files of an earlier model are overwritten.
        recipe: seed, steps and the like.
        questions: how many of the test split the accuracy is measured on, with and without each instruction.
        command: what was typed, for the record.
    """
    start = time.perf_counter()
    tokenizer = make_tokenizer(recipe.seed)
    model = make_model(tokenizer, recipe.seed)
    loss = train(model, tokenizer, recipe)
    trained = time.perf_counter()
    measured = measure(model, tokenizer, questions=questions, seed=recipe.seed)
    provenance = {
        "command": command,
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": round(loss, 4),
        "measured": measured,
        "seconds": {"training": round(trained - start, 1), "measuring": round(time.perf_counter() - trained, 1)},
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    (output / "README.md").write_text(_card(provenance), encoding="utf-8")
    return provenance


def _versions() -> dict[str, str]:
    import tokenizers
    import transformers

    from entropy_rft import __version__

    return {
        "python": platform.python_version(),
        "entropy_rft": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _card(provenance: dict[str, Any]) -> str:
    return "TODO\n"


def main(arguments: list[str] | None = None) -> int:
    """The command `scripts/make_tiny_reasoner`."""
    default = Recipe()
    parser = argparse.ArgumentParser(prog="make_tiny_reasoner", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=TINY_REASONER, help="where to write (default: the package)")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--questions", type=int, default=600, help="test questions to measure on")
    given = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(given)
    recipe = Recipe(args.seed, args.steps, args.batch_size, args.learning_rate)
    provenance = make(args.output, recipe, args.questions, shlex.join(["scripts/make_tiny_reasoner", *given]))
    print(json.dumps(provenance["measured"], indent=2))
    return 0
