"""`entropy-rft probe evaluate`: compare ways to choose a strategy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from entropy_rft.cli import flags
from entropy_rft.cli.probe.common import add_running, one_line, prepared, say
from entropy_rft.errors import users
from entropy_rft.run_files import EVALUATION, REPORT


def add_parser(parts: Any) -> None:
    """Register the part."""
    parser = parts.add_parser(
        "evaluate",
        help="compare the probe's choice of strategy with fixed ones, chance and an oracle",
        description=(
            "Answer held-out questions with every strategy, and compare what choosing by the probe costs and gains. "
            "Questions that the probe was fitted to are left out. Run the same command again to resume an "
            "interrupted evaluation."
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
    add_running(add)
    parser.set_defaults(run=one_line(run))


def run(args: argparse.Namespace) -> int:
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
    from entropy_rft.difficulty.states import fingerprint
    from entropy_rft.reporting.cells import lined_table
    from entropy_rft.sampling import ThinkEndMarker

    check_plots()
    probe, questions, model, tokenizer, sampler = prepared(args)
    baselines = None
    if args.train_traces is not None:
        baselines = baselines_of(probe, load_traces(*args.train_traces), force=args.force)
    # Otherwise the model's weights were compared with the probe's already, and those with the traces'.
    unknown = args.force or probe.fingerprint is None
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
        fingerprint=fingerprint(model, like=questions.traces.fingerprint) if unknown else None,
        placement=probe.placement,
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
        "placement": probe.placement,
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
    output = Path(args.output_dir)
    with users(OSError):
        save_evaluation(result, questions.traces, output)
    Console().print(lined_table("Strategies", header, lines, caption))
    for line in remarks(result):
        say(line)
    say(f"result: {output / EVALUATION}\nreport: {output / REPORT}")
    return 0
