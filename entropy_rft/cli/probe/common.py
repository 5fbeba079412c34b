"""What the parts of `entropy-rft probe` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from entropy_rft.cli import flags
from entropy_rft.errors import UserValueError


def add_running(add: Any) -> None:
    """How the answers are sampled: seed, hardware, server."""
    add("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    flags.add_hardware(add)
    flags.add_server(add)


def one_line(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`run`; a model whose outputs are NaN is reported as a mistake of the user, like a missing model."""

    def checked(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except FloatingPointError as error:
            raise UserValueError(str(error)) from error

    return checked


def prepared(args: argparse.Namespace, tuning: bool = False) -> tuple[Any, Any, Any, Any, Any]:
    """Probe, questions, model, tokenizer and sampler; cheap checks come before loading the model."""
    from entropy_rft.difficulty import DifficultyProbe, choose
    from entropy_rft.difficulty.compare.comparison import held_out_questions
    from entropy_rft.difficulty.compare.tuning import check_splits
    from entropy_rft.sampling import check_settings, load_model_and_tokenizer

    top_p = getattr(args, "top_p", 1.0)
    check_settings(args.samples, top_p=top_p, max_tokens=args.max_tokens, batch_size=args.batch_size)
    flags.sampler_name(args)
    choose([1.0, 0.0, 0.0], args.min_confidence)
    probe = DifficultyProbe.from_pretrained(args.probe)
    questions = held_out_questions(args.traces, probe, force=args.force)
    if tuning:
        check_splits(questions)
    for note in questions.traces.notes():
        say(note)
    if questions.fitted:
        say(f"note: {questions.fitted} questions that the probe was fitted to are left out")
    name = args.model or probe.base_model
    if name is None:
        raise UserValueError(f"probe {args.probe!r} does not record its base model: give --model")
    model, tokenizer = load_model_and_tokenizer(name, dtype=args.dtype, device=flags.device_of(args))
    DifficultyProbe.from_pretrained(args.probe, base_model=model, force=args.force)  # by its weights, not its name
    limits_thinking = bool(getattr(args, "thinking_tokens", None)) or any(
        strategy.thinking_tokens is not None for strategy in probe.strategies.values()
    )
    marker = questions.traces.think_end_token
    sampler = flags.sampler(args, name, model, tokenizer, marker, limits_thinking)
    return probe, questions, model, tokenizer, sampler


def say(text: str) -> None:
    """Print a line at once, also where the output is a file."""
    print(text, flush=True)
