"""Make the embedded model, second version: a small Qwen3, supervised on the traces of `demonstrations.py`.

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
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from entropy_rft.tasks.instructions import DIRECT, STEP_BY_STEP, STOP_EARLY
from entropy_rft.tasks.modulo import questions
from entropy_rft.tasks.task import chat_prompt
from studies.embedded.demonstrations import completion, drill, expected
from studies.supervision import Batch, SupervisionSettings, batches, collate, supervise

VOCAB_SIZE = 384
MAX_POSITIONS = 4096
_TOKENIZER_TRACES = 3_000

# (instruction, style, weight): without an instruction the model thinks step by step.
_MIXTURE = ((None, "step", 0.6), (STEP_BY_STEP, "step", 0.15), (STOP_EARLY, "early", 0.15), (DIRECT, "direct", 0.1))


@dataclass(frozen=True)
class ModelSettings(SupervisionSettings):
    """How the model is trained, and its size."""

    drill_steps: int = 160
    steps: int = 460
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


def train(model: Any, tokenizer: Any, recipe: ModelSettings) -> float:
    """Supervise `model` in place; returns the mean loss of the last 50 steps, in nats per token."""
    order = random.Random(f"embedded/batches/{recipe.seed}")
    traces = batches(conversations(recipe.seed), tokenizer, recipe.batch_size, order)
    return supervise(model, drills(tokenizer, recipe), traces, recipe)


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
