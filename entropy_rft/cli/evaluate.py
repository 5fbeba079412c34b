"""`entropy-rft evaluate`: the accuracy, the thinking length and the entropies of a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from entropy_rft.cli.collector import importing
from entropy_rft.cli.flags import (
    add_effort,
    add_hardware,
    add_marker,
    add_sampling,
    add_task,
    check_output,
    effort_of,
    parse_options,
    path,
)
from entropy_rft.errors import UserValueError, users
from entropy_rft.run_files import evaluation_name


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a model on a task",
        description="Measure a model on a task: avg@k with an interval, pass@k, tokens, and entropies by phase.",
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="MODEL",
        help="directory, hub name, modulo_reasoner or smollm2; or a LoRA adapter",
    )
    add_task(add, split="test")
    add_sampling(add, samples=8, of="question, the k of avg@k")
    add("--seed", type=int, default=0, help="of the sampling and of the choice of questions (default: %(default)s)")
    add_hardware(add)
    add_marker(add)
    add_effort(add)
    add(
        "--output",
        type=path,
        metavar="FILE.json",
        help="result; by default evaluation-TASK-SPLIT.json beside the model",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the result.

    Raises:
        ValueError: an argument is wrong, the model or the task cannot be loaded, or the result cannot be written.
    """
    options, effort = parse_options(args.task_option), effort_of(args)

    from rich.console import Console

    with importing():
        from entropy_rft.evaluation import difficulty_table, evaluate_model, evaluation_table
        from entropy_rft.sampling import check_settings, load_model_and_tokenizer
        from entropy_rft.tasks import check_options, load_task

    check_options(options)
    # The settings and the task first: a mistake in them is found before minutes of loading weights.
    check_settings(args.samples, args.temperature, args.top_p, args.max_tokens, args.batch_size)
    task = load_task(args.task, path=args.path, split=args.split, limit=args.limit, seed=args.seed, **options)
    output = Path(args.output) if args.output else default_output(args.model, task.name, args.split)
    check_output(output)
    model, tokenizer = load_model_and_tokenizer(args.model, dtype=args.dtype, device=args.device)
    with users(FloatingPointError):  # a model of NaNs
        evaluation = evaluate_model(
            model,
            tokenizer,
            task,
            samples=args.samples,
            temperature=args.temperature,
            top_p=args.top_p,
            max_tokens=args.max_tokens,
            batch_size=args.batch_size,
            seed=args.seed,
            think_end_token=args.think_end_token,
            model_name=args.model,
            effort=effort,
        )
    try:
        evaluation.save(output)
    except OSError as error:
        raise UserValueError(f"--output {str(output)!r} cannot be written: {error.strerror}") from error
    name = Path(args.model).name or args.model
    console = Console()
    console.print(evaluation_table([(name, evaluation)]))
    if len(evaluation.by_difficulty) > 1:
        console.print(difficulty_table(name, evaluation))
    if evaluation.unscorable:
        console.print(f"{evaluation.unscorable} completions could not be scored; avg@k and pass@k leave them out")
    console.print(f"result: {output}", markup=False, highlight=False)
    return 0


def default_output(model: str, task: str, split: str) -> Path:
    """Beside a local model, otherwise here; `task` is the loaded task's own name, such as ``reasoning_gym/gcd``."""
    directory = Path(model).expanduser()
    return (directory if directory.is_dir() else Path()) / evaluation_name(task.replace("/", "-"), split)
