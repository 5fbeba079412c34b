"""Make the tiny reasoner: a language model of 0.84 million parameters, supervised on worked sums.

Everything follows from the seed. Only questions of the training split are shown to the model; its accuracy is then
measured on the test split and written beside it.
"""

from __future__ import annotations

import argparse
import platform
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

from entropy_rft.assets import TINY_REASONER
from entropy_rft.atomic import write_text
from entropy_rft.files import json_text
from entropy_rft.sampling.progress import progress_bar
from entropy_rft.tasks.arithmetic import LEVELS, draw
from entropy_rft.tasks.instructions import DIRECT, STEP_BY_STEP, STOP_EARLY
from entropy_rft.tasks.task import chat_prompt
from studies.assets.card import model_card
from studies.assets.demonstrations import completion, drill
from studies.assets.measure import measure
from studies.assets.tokenizer import build_tokenizer

Batch = tuple[Tensor, Tensor, Tensor]
"""input_ids, attention_mask and labels, each (B, T); a label of -100 is not learned."""

VOCAB_SIZE = 448
MAX_POSITIONS = 4096
_TOKENIZER_TRACES = 10_000
_POOL = 16  # batches drawn at once and sorted by length, so that little of a batch is padding

# (instruction, style, weight): without an instruction the model thinks step by step.
_MIXTURE = ((None, "step", 0.4), (STEP_BY_STEP, "step", 0.2), (STOP_EARLY, "early", 0.2), (DIRECT, "direct", 0.2))


@dataclass(frozen=True)
class ModelSettings:
    """How the model is trained: first on single steps, which teach it to add, then on whole traces.

    One step is one batch of `batch_size` fresh texts. `learning_rate` is Muon's, for the weight matrices; the
    embeddings and the norms have AdamW at `learning_rate_rest`.
    """

    seed: int = 0
    drill_steps: int = 300
    steps: int = 560
    batch_size: int = 48
    learning_rate: float = 0.02
    learning_rate_rest: float = 3e-3
    warmup_steps: int = 30


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
        # The markers are tokens of their own, so their letters must not be part of the merges.
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


def drills(tokenizer: Any, recipe: ModelSettings) -> Iterator[Batch]:
    """Endless batches of unrelated steps; only the results have labels, since the rest is random."""
    rng = random.Random(f"drills/{recipe.seed}")
    equals, *digits = tokenizer.convert_tokens_to_ids(["=", *"0123456789"])
    while True:
        texts = [drill(rng) for _ in range(recipe.batch_size)]
        rows: list[tuple[list[int], list[int]]] = [
            ([], ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
        ]
        input_ids, mask, labels = collate(rows, tokenizer.pad_token_id)
        # A result is what follows "=", up to the full stop that ends it.
        result = input_ids == equals
        for position in range(1, input_ids.shape[1]):
            before = input_ids[:, position - 1]
            in_number = result[:, position - 1] & ((before == equals) | torch.isin(before, torch.tensor(digits)))
            result[:, position] |= in_number
        labels[~result | (input_ids == equals)] = -100
        yield input_ids, mask, labels


def batches(tokenizer: Any, recipe: ModelSettings) -> Iterator[Batch]:
    """Endless batches of traces; only completions have labels."""
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
    model.eval()
    return fmean(losses[-50:])


def _optimizers(model: Any, recipe: ModelSettings) -> list[torch.optim.Optimizer]:
    """Muon learns the sums in a fifth of the steps that AdamW takes; it is for the hidden layers' matrices only."""
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


def make(output: Path, recipe: ModelSettings, questions: int = 600, command: str = "") -> dict[str, Any]:
    """Make the model in `output` and return its provenance, which is also written there as `provenance.json`.

    Args:
        output: a directory, created if needed; files of an earlier model are overwritten.
        recipe: seed, steps and so on.
        questions: how many of the test split the accuracy is measured on, with and without each instruction.
        command: the command line, stored in the provenance.
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
        "versions": versions(),
    }
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_text(output / "provenance.json", json_text(provenance, indent=2) + "\n")
    for file in output.iterdir():
        file.chmod(0o644)  # safetensors makes its file readable by its owner only
    write_text(output / "README.md", model_card(provenance))
    return provenance


def versions() -> dict[str, str]:
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


def main(arguments: list[str] | None = None) -> int:
    """The command `scripts/make_tiny_reasoner`."""
    default = ModelSettings()
    parser = argparse.ArgumentParser(prog="make_tiny_reasoner", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=TINY_REASONER, help="where to write (default: the package)")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--drill-steps", type=int, default=default.drill_steps, help="steps on single sums")
    parser.add_argument("--steps", type=int, default=default.steps, help="steps on whole traces")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--questions", type=int, default=600, help="test questions to measure on")
    given = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(given)
    recipe = ModelSettings(args.seed, args.drill_steps, args.steps, args.batch_size)
    provenance = make(args.output, recipe, args.questions, shlex.join(["scripts/make_tiny_reasoner", *given]))
    print(json_text(provenance["measured"], indent=2))
    return 0
