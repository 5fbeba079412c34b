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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from entropy_rft.assets import TINY_REASONER
from entropy_rft.atomic import write_text
from entropy_rft.files import json_text
from entropy_rft.tasks.arithmetic import LEVELS, draw
from entropy_rft.tasks.instructions import DIRECT, STEP_BY_STEP, STOP_EARLY
from entropy_rft.tasks.task import chat_prompt
from studies.assets.card import model_card
from studies.assets.demonstrations import completion, drill
from studies.assets.measure import measure
from studies.assets.tokenizer import build_tokenizer
from studies.supervision import Batch, SupervisionSettings, batches, collate, supervise

VOCAB_SIZE = 448
MAX_POSITIONS = 4096
_TOKENIZER_TRACES = 10_000

# (instruction, style, weight): without an instruction the model thinks step by step.
_MIXTURE = ((None, "step", 0.4), (STEP_BY_STEP, "step", 0.2), (STOP_EARLY, "early", 0.2), (DIRECT, "direct", 0.2))


ModelSettings = SupervisionSettings
"""Its defaults are this model's: drills teach it to add."""


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


def train(model: Any, tokenizer: Any, recipe: ModelSettings) -> float:
    """Supervise `model` in place; returns the mean loss of the last 50 steps, in nats per token."""
    order = random.Random(f"batches/{recipe.seed}")
    traces = batches(conversations(recipe.seed), tokenizer, recipe.batch_size, order)
    return supervise(model, drills(tokenizer, recipe), traces, recipe)


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
