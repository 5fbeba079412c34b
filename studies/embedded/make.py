"""Make the embedded model, second version: a small Qwen3, supervised on the traces of `traces.py`.

Everything follows from the seed. Only questions of the training split are shown to the model; what it can do is then
measured on the test split and written beside it.

    python -m studies.embedded.make --output entropy_rft/assets/modulo_reasoner
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from entropy_rft.sampling.progress import progress_bar
from entropy_rft.tasks.instructions import DIRECT, STEP_BY_STEP, STOP_EARLY
from entropy_rft.tasks.modulo import questions
from entropy_rft.tasks.task import chat_prompt
from studies.embedded.demonstrations import completion, drill, expected

Batch = tuple[Tensor, Tensor, Tensor]
"""input_ids, attention_mask and labels, each (B, T); a label of -100 is not learned."""

VOCAB_SIZE = 384
MAX_POSITIONS = 4096
_TOKENIZER_TRACES = 3_000
_POOL = 16  # batches drawn at once and sorted by length, so that little of a batch is padding

# (instruction, style, weight): without an instruction the model thinks step by step.
_MIXTURE = ((None, "step", 0.6), (STEP_BY_STEP, "step", 0.15), (STOP_EARLY, "early", 0.15), (DIRECT, "direct", 0.1))


@dataclass(frozen=True)
class ModelSettings:
    """How the model is trained: first on single steps, then on whole traces.

    One step is one batch of `batch_size` fresh texts. `learning_rate` is Muon's, for the weight matrices; the
    embeddings and the norms have AdamW at `learning_rate_rest`.
    """

    seed: int = 0
    drill_steps: int = 160
    steps: int = 460
    batch_size: int = 48
    learning_rate: float = 0.02
    learning_rate_rest: float = 3e-3
    warmup_steps: int = 30
    layers: int = 3
    width: int = 128


def conversations(seed: int | str) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Endless (prompt, completion) pairs of the training split, the levels taking turns."""
    rng = random.Random(f"embedded/traces/{seed}")
    weights = [weight for _, _, weight in _MIXTURE]
    for item in questions("train", seed=rng.randrange(2**31)):
        instruction, style, _ = rng.choices(_MIXTURE, weights)[0]
        yield chat_prompt(item.question, instruction, None), completion(item, style, rng)


def make_tokenizer(seed: int) -> Any:
    """The tokenizer, its merges learned from the model's own prompts and traces."""
    from studies.assets.tokenizer import PIECES, build_tokenizer

    stream = conversations(f"tokenizer/{seed}")
    texts = []
    for _ in range(_TOKENIZER_TRACES):
        prompt, answer = next(stream)
        texts += [message["content"] for message in prompt]
        # The markers are tokens of their own and must not leave their letters among the merges.
        texts += answer.replace("</think>", "<think>").split("<think>")
    # A word before a number takes the blank with it: a step is a token shorter.
    return build_tokenizer(texts, VOCAB_SIZE, MAX_POSITIONS, rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+ (?=\p{{N}})|{PIECES}")


def make_model(tokenizer: Any, recipe: ModelSettings) -> Any:
    """A randomly initialised Qwen3."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 32,
        num_key_value_heads=recipe.width // 64,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, **ids)
    return model


def drills(tokenizer: Any, recipe: ModelSettings) -> Iterator[Batch]:
    """Endless batches of unrelated steps and of questions with the first word of their thinking.

    Labels have only what follows from the rest: the word, and what stands after the "=" of a line.
    """
    rng = random.Random(f"embedded/drills/{recipe.seed}")
    asked = questions("train", seed=rng.randrange(2**31))
    (equals,) = tokenizer.convert_tokens_to_ids(["="])
    (end,) = tokenizer(".\n", add_special_tokens=False)["input_ids"]
    half = (recipe.batch_size + 1) // 2
    while True:
        texts = [drill(rng) for _ in range(half)]
        rows: list[tuple[list[int], list[int]]] = [
            ([], ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
        ]
        items = list(islice(asked, recipe.batch_size - half))
        prompts = tokenizer.apply_chat_template(
            [chat_prompt(item.question, None, None) for item in items], add_generation_prompt=True, tokenize=False
        )
        for prompt, item in zip(prompts, items, strict=True):
            given = tokenizer(f"{prompt}<think>\n", add_special_tokens=False)["input_ids"]
            rows.append((given, tokenizer(f"{expected(item)}.\n", add_special_tokens=False)["input_ids"]))
        input_ids, mask, labels = collate(rows, tokenizer.pad_token_id)
        told = torch.zeros(half, dtype=torch.bool)  # whether the line has told its fact and way
        for position in range(input_ids.shape[1]):
            column = input_ids[:half, position]
            labels[:half, position][~told | (column == end)] = -100
            told = (told | (column == equals)) & (column != end)
        yield input_ids, mask, labels


def batches(tokenizer: Any, recipe: ModelSettings) -> Iterator[Batch]:
    """Endless batches of traces; only completions have labels."""
    stream = conversations(recipe.seed)
    rng = random.Random(f"embedded/batches/{recipe.seed}")
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


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    """(prompt, completion) token ids as a batch, padded on the right; labels are -100 off the completion."""
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


def train(model: Any, tokenizer: Any, recipe: ModelSettings) -> float:
    """Supervise `model` in place; returns the mean loss of the last 50 steps, in nats per token."""
    total = recipe.drill_steps + recipe.steps
    optimizers = _optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total, recipe.warmup_steps))
        for optimizer in optimizers
    ]
    lessons = chain(
        islice(drills(tokenizer, recipe), recipe.drill_steps), islice(batches(tokenizer, recipe), recipe.steps)
    )
    losses: list[float] = []
    model.train()
    with progress_bar("training", total) as advance:
        for input_ids, mask, labels in lessons:
            loss = model(input_ids=input_ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            losses.append(loss.item())
            advance(1, f"loss {losses[-1]:.3f}")
            if len(losses) % 50 == 0:
                print(f"step {len(losses)} of {total}: loss {fmean(losses[-50:]):.4f}", file=sys.stderr, flush=True)
    model.eval()
    return fmean(losses[-50:])


def _optimizers(model: Any, recipe: ModelSettings) -> list[torch.optim.Optimizer]:
    """Muon needs a fraction of AdamW's steps here; it is for the hidden layers' matrices only."""
    named = list(model.named_parameters())
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and "embed" not in name]
    rest = [parameter for name, parameter in named if parameter.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=recipe.learning_rate_rest, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _rate(step: int, total: int, warmup: int) -> float:
    """The learning rate's factor: a warm-up, a plateau of 40 % of the run, then a straight line down to almost 0."""
    return min(1.0, (step + 1) / warmup, max(0.02, (total - step) / (0.6 * total)))


def make(output: Path, recipe: ModelSettings, command: str = "") -> dict[str, Any]:
    """Make the model in `output` and return its provenance, which is also written there as `provenance.json`."""
    from studies.assets.make import versions

    start = time.perf_counter()
    tokenizer = make_tokenizer(recipe.seed)
    model = make_model(tokenizer, recipe)
    loss = train(model, tokenizer, recipe)
    provenance = {
        "command": command,
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": round(loss, 4),
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    for file in output.iterdir():
        file.chmod(0o644)  # safetensors writes its file for the owner alone
    return provenance


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.embedded.make", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True)
    for name, value in asdict(ModelSettings()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help="(default: %(default)s)"
        )
    given = sys.argv[1:] if arguments is None else arguments
    values = vars(parser.parse_args(given))
    output = values.pop("output")
    provenance = make(output, ModelSettings(**values), f"python -m studies.embedded.make {shlex.join(given)}")
    print(json.dumps(provenance, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
