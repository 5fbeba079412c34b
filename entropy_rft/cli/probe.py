"""`entropy-rft probe`: traces, a probe of a question's difficulty, and what choosing a strategy by it saves."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entropy_rft.cli import flags
from entropy_rft.errors import UserValueError, users
from entropy_rft.run_files import EVALUATION, REPORT


def add_parser(subparsers: Any) -> None:
    """Register the verb and its parts."""
    parser = subparsers.add_parser(
        "probe",
        help="spend tokens where they help: collect, train, evaluate, tune-strategies",
        description=(
            "Difficulty-adaptive inference (DiffAdapt): collect traces of a model's answers, train a probe that tells "
            "a question's difficulty from its hidden state, and measure what choosing a strategy by it saves."
        ),
    )
    parts = parser.add_subparsers(title="parts", metavar="PART", required=True)
    _add_collect(parts)
    _add_train(parts)
    _add_evaluate(parts)
    _add_tune(parts)


def _add_collect(parts: Any) -> None:
    parser = parts.add_parser(
        "collect",
        help="answer a task's questions and write traces",
        description=(
            "Answer every question several times and write a data set of accuracies, entropies and hidden states. A "
            "killed collection goes on with the same command. Several processes share the work under torchrun, or "
            "with --num_shards and --shard."
        ),
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR_OR_HUB", help="model or LoRA adapter: a directory or a hub name")
    flags.add_task(add, split="train")
    add("--task_seed", type=int, default=0, help="of the choice of questions (default: %(default)s)")
    add("--level", metavar="NAME", help="difficulty level of all questions; the task's own when not given")
    add("--output_dir", required=True, type=flags.path, metavar="DIR", help="where the traces go")
    flags.add_sampling(add, samples=10, of="question")
    add(
        "--layer",
        type=int,
        default=-1,
        help="of the hidden state; -1 is the last, after the norm (default: %(default)s)",
    )
    flags.add_marker(add)
    flags.add_shards(add)
    _add_running(add)
    parser.set_defaults(run=_one_line(run_collect))


def _add_train(parts: Any) -> None:
    parser = parts.add_parser(
        "train",
        help="fit a probe to traces",
        description=(
            "Label the traces' questions and fit a probe to them. A part of the questions is set aside first; the "
            "table is of that part."
        ),
    )
    add = parser.add_argument
    add("--traces", required=True, nargs="+", type=flags.path, metavar="DIR", help="what `probe collect` wrote")
    add("--output_dir", required=True, type=flags.path, metavar="DIR", help="where the probe goes")
    add("--kind", default="mlp", choices=("mlp", "linear"), help="of classifier (default: %(default)s)")
    add("--hidden_units", type=int, default=256, metavar="N", help="of the mlp (default: %(default)s)")
    add(
        "--thresholds",
        type=float,
        nargs=3,
        metavar=("ACCURACY_NORMAL", "ENTROPY_NORMAL", "ACCURACY_HARD"),
        help="of the labels, such as 0.85 0.35 0.60; calibrated on the traces when not given",
    )
    add(
        "--min_share",
        type=float,
        default=0.05,
        help="smallest share of a class when calibrating (default: %(default)s)",
    )
    add(
        "--strategies",
        type=flags.path,
        metavar="FILE",
        help="YAML of the strategies that the probe carries; the default ones else",
    )
    add("--test_fraction", type=float, default=0.2, help="of the questions, set aside (default: %(default)s)")
    add("--epochs", type=int, default=100, metavar="N", help="at most (default: %(default)s)")
    add("--learning_rate", type=float, default=1e-3, help="of AdamW (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the splits and the weights (default: %(default)s)")
    parser.set_defaults(run=_one_line(run_train))


def _add_evaluate(parts: Any) -> None:
    parser = parts.add_parser(
        "evaluate",
        help="compare the probe's choice of strategy with fixed ones, chance and an oracle",
        description=(
            "Answer held-out questions with every strategy, and compare what choosing by the probe costs and gains. "
            "Questions that the probe was fitted to are left out. A killed evaluation goes on with the same command."
        ),
    )
    add = parser.add_argument
    flags.add_probe(add)
    add(
        "--traces",
        required=True,
        nargs="+",
        type=flags.path,
        metavar="DIR",
        help="of held-out questions; what `probe collect` wrote",
    )
    add(
        "--train_traces",
        nargs="+",
        type=flags.path,
        metavar="DIR",
        help="what the probe was trained on: adds the baselines' rows",
    )
    add(
        "--output_dir",
        required=True,
        type=flags.path,
        metavar="DIR",
        help="where the answers, evaluation.json and report.html go",
    )
    flags.add_sampling(add, samples=8, of="question and strategy", temperature=False)
    add("--chunk_size", type=int, default=32, metavar="N", help="questions written at a time (default: %(default)s)")
    _add_running(add)
    parser.set_defaults(run=_one_line(run_evaluate))


def _add_tune(parts: Any) -> None:
    parser = parts.add_parser(
        "tune-strategies",
        help="search temperatures and budgets on a validation split",
        description=(
            "Try a small grid of temperatures and shares of the budget for each difficulty, on questions of a "
            "validation split, and write the cheapest strategies that are about as accurate as Normal. Never on a "
            "test split."
        ),
    )
    add = parser.add_argument
    flags.add_probe(add)
    add("--traces", required=True, nargs="+", type=flags.path, metavar="DIR", help="of validation questions")
    add(
        "--output",
        default="strategies.yaml",
        type=flags.path,
        metavar="FILE",
        help="strategies to write (default: %(default)s)",
    )
    add(
        "--temperatures", type=float, nargs="+", default=(0.2, 0.4, 0.6, 0.8), metavar="T", help="(default: 0.2 to 0.8)"
    )
    add(
        "--fractions",
        type=float,
        nargs="+",
        default=(0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
        metavar="F",
        help="shares of the budget (default: 0.3 to 1)",
    )
    add("--tolerance", type=float, default=0.01, help="accuracy that may be lost (default: %(default)s)")
    flags.add_sampling(add, samples=4, of="question and temperature", temperature=False, top_p=False)
    _add_running(add)
    parser.set_defaults(run=_one_line(run_tune))


def _add_running(add: Any) -> None:
    add("--seed", type=int, default=0, help="of sampling (default: %(default)s)")
    flags.add_hardware(add)
    flags.add_server(add)


def _one_line(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`run`, for which a model of NaNs is a mistake of the user's, as a missing one is."""

    def checked(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except FloatingPointError as error:
            raise UserValueError(str(error)) from error

    return checked


def run_collect(args: argparse.Namespace) -> int:
    """Collect traces.

    Raises:
        ValueError: an argument is wrong, the model or the task cannot be loaded, or the directory holds other traces.
        OSError: the server cannot be reached.
    """
    options = flags.parse_options(args.task_option)
    shard, num_shards = flags.shard_of(args)
    kind = flags.sampler_name(args)

    from entropy_rft.difficulty import collect_traces
    from entropy_rft.difficulty.store import check_shard
    from entropy_rft.sampling import check_settings, load_model_and_tokenizer
    from entropy_rft.tasks import check_options, load_task

    check_options(options)
    check_settings(args.samples, args.temperature, args.top_p, args.max_tokens, args.batch_size)
    check_shard(shard, num_shards)
    source = flags.task_source(args, args.task_seed)
    task = load_task(**source, **options)
    model, tokenizer = load_model_and_tokenizer(args.model, dtype=args.dtype, device=flags.device_of(args))
    sampler = flags.sampler(args, args.model, model, tokenizer)
    collected = collect_traces(
        model,
        tokenizer,
        task,
        args.output_dir,
        sampler=sampler,
        sampler_name=kind,
        served_model=flags.served_model(sampler),
        model_name=args.model,
        source={**source, "options": options},
        level=args.level,
        samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_tokens,
        seed=args.seed,
        layer=args.layer,
        think_end_token=args.think_end_token,
        batch_size=max(1, args.batch_size // 4),  # scoring holds the hidden states of whole sequences
        chunk_size=args.chunk_size,
        shard=shard,
        num_shards=num_shards,
    )
    of = "" if collected.done == collected.total else f" of {collected.total}; the rest is the other shards'"
    _print(f"{collected.added} questions added; {args.output_dir} holds {collected.done}{of}")
    return 0


def run_train(args: argparse.Namespace) -> int:
    """Train a probe, print how good it is, and save it.

    Raises:
        ValueError: an argument is wrong, or the traces cannot be read or used.
    """
    from rich.console import Console

    from entropy_rft.difficulty import DEFAULT_STRATEGIES, Thresholds, load_strategies, load_traces, train_probe
    from entropy_rft.difficulty.compare.page import classifier_lines, confusion_lines
    from entropy_rft.difficulty.strategies import NAMES
    from entropy_rft.reporting.cells import lined_table

    thresholds = None if args.thresholds is None else Thresholds(*args.thresholds)
    strategies = DEFAULT_STRATEGIES if args.strategies is None else load_strategies(args.strategies)
    traces = load_traces(*args.traces)
    probe = train_probe(
        traces,
        kind=args.kind,
        hidden_units=args.hidden_units,
        thresholds=thresholds,
        strategies=strategies,
        test_fraction=args.test_fraction,
        min_share=args.min_share,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    with users(OSError):
        probe.save_pretrained(args.output_dir)
    metrics, found = probe.metrics, probe.thresholds
    assert found is not None
    for note in traces.notes():
        _print(note)
    origin = "calibrated" if thresholds is None else "given"
    _print(
        f"thresholds ({origin}): normal from accuracy {found.accuracy_normal:.3f} with entropy up to "
        f"{found.entropy_normal:.3f} nats, hard below accuracy {found.accuracy_hard:.3f}"
    )
    _print("labels: " + ", ".join(f"{name} {metrics['labels'][name]}" for name in NAMES))
    reports = {"probe": metrics["test"], **metrics["baselines"]}
    console, caption = Console(), f"{metrics['test']['questions']} questions"
    for title, (header, *lines) in (
        ("Held-out questions", classifier_lines(reports)),
        ("Confusion", confusion_lines(metrics["test"])),
    ):
        console.print(lined_table(title, header, lines, caption))
    _print(f"probe: {args.output_dir}")
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """Compare policies, print the table, and write the result and the page.

    Raises:
        ValueError: an argument is wrong, or the probe, the traces or the model cannot be used.
        OSError: the server cannot be reached, or a file cannot be written.
    """
    from rich.console import Console

    from entropy_rft.difficulty import load_traces
    from entropy_rft.difficulty.compare.comparison import answer_questions, evaluate_probe, routing_seconds
    from entropy_rft.difficulty.compare.page import check_plots, remarks, save_evaluation, short_policy_lines
    from entropy_rft.difficulty.fitting import baselines_of
    from entropy_rft.reporting.cells import lined_table
    from entropy_rft.sampling import ThinkEndMarker

    check_plots()
    probe, questions, model, tokenizer, sampler = _prepared(args)
    baselines = None
    if args.train_traces is not None:
        baselines = baselines_of(probe, load_traces(*args.train_traces), force=args.force)
    answers = answer_questions(
        questions,
        probe.strategies,
        sampler,
        Path(args.output_dir) / "answers",
        samples=args.samples,
        max_tokens=args.max_tokens,
        top_p=args.top_p,
        seed=args.seed,
        sampler_name=flags.sampler_name(args),
        served_model=flags.served_model(sampler),
        chunk_size=args.chunk_size,
        marker=ThinkEndMarker(tokenizer, questions.traces.think_end_token),
    )
    settings = {
        "probe": args.probe,
        "samples": args.samples,
        "max_tokens": args.max_tokens,
        "top_p": args.top_p,
        "seed": args.seed,
        "sampler": flags.sampler_name(args),  # not the URL, which may hold a password
        "served_model": flags.served_model(sampler),
        "strategies": {difficulty.value: strategy.to_dict() for difficulty, strategy in probe.strategies.items()},
    }
    result = evaluate_probe(
        probe,
        questions,
        answers,
        min_confidence=args.min_confidence,
        baselines=baselines,
        settings=settings,
        routing=routing_seconds(
            model, tokenizer, probe, [row["prompt"] for _, rows in questions.parts for row in rows]
        ),
    )
    caption = f"{result['questions']} questions, {args.samples} answers of each strategy; second line: 95 %, paired"
    header, *lines = short_policy_lines(result)
    Console().print(lined_table("Strategies", header, lines, caption))
    for line in remarks(result):
        _print(line)
    output = Path(args.output_dir)
    with users(OSError):
        save_evaluation(result, questions.traces, output)
    _print(f"result: {output / EVALUATION}\nreport: {output / REPORT}")
    return 0


def run_tune(args: argparse.Namespace) -> int:
    """Tune the strategies, print the trials, and write the YAML.

    Raises:
        ValueError: an argument is wrong, the traces are of a test split, or the probe or the model cannot be used.
        OSError: the server cannot be reached, or the file cannot be written.
    """
    from rich.console import Console

    from entropy_rft.difficulty import save_strategies
    from entropy_rft.difficulty.compare.tuning import check_grid, trial_lines, tune_strategies
    from entropy_rft.reporting.cells import lined_table

    check_grid(args.temperatures, args.fractions, args.tolerance)
    probe, questions, _, tokenizer, sampler = _prepared(args, tuning=True)
    found, tried = tune_strategies(
        probe,
        questions,
        sampler,
        tokenizer,
        samples=args.samples,
        max_tokens=args.max_tokens,
        temperatures=args.temperatures,
        fractions=args.fractions,
        tolerance=args.tolerance,
        min_confidence=args.min_confidence,
        seed=args.seed,
    )
    header = ["", "temperature", "share of tokens", "accuracy (%)", "tokens", "questions"]
    caption = "→ chosen; on the validation questions that the probe sends there"
    Console().print(lined_table("Trials", header, trial_lines(tried, found), caption))
    tasks = ", ".join(f"{task.name}/{task.split}" for task, _ in questions.parts)
    with users(OSError):
        save_strategies(
            found, args.output, f"Tuned for {questions.traces.model} on {tasks}, {len(questions)} questions."
        )
    _print(f"strategies: {args.output} (give them to `probe train --strategies`)")
    return 0


def _prepared(args: argparse.Namespace, tuning: bool = False) -> tuple[Any, Any, Any, Any, Any]:
    """Probe, questions, model, tokenizer and sampler; what is cheap to check comes before loading the model."""
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
        _print(note)
    if questions.fitted:
        _print(f"note: {questions.fitted} questions that the probe was fitted to are left out")
    name = args.model or probe.base_model
    if name is None:
        raise UserValueError(f"probe {args.probe!r} does not know its base model: give --model")
    model, tokenizer = load_model_and_tokenizer(name, dtype=args.dtype, device=flags.device_of(args))
    DifficultyProbe.from_pretrained(args.probe, base_model=model, force=args.force)  # by its weights, not its name
    return probe, questions, model, tokenizer, flags.sampler(args, name, model, tokenizer)


def _print(text: str) -> None:
    print(text, flush=True)
