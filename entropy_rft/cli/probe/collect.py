"""`entropy-rft probe collect`: answer questions and write traces."""

from __future__ import annotations

import argparse
from typing import Any

from entropy_rft.cli import flags
from entropy_rft.cli.probe.common import add_running, one_line, say


def add_parser(parts: Any) -> None:
    """Register the part."""
    parser = parts.add_parser(
        "collect",
        help="answer a task's questions and write traces",
        description=(
            "Answer every question several times and write a data set of accuracies, entropies and hidden states. Run "
            "the same command again to resume an interrupted collection. Several processes share the work under "
            "torchrun, or with --num_shards and --shard."
        ),
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="MODEL",
        help="directory, hub name, modulo_reasoner or smollm2; or a LoRA adapter",
    )
    flags.add_task(add, split="train")
    add("--task_seed", type=int, default=0, help="of the choice of questions (default: %(default)s)")
    add("--level", metavar="NAME", help="difficulty level of all questions; the task's own when not given")
    add("--output_dir", required=True, type=flags.path, metavar="DIR", help="where the traces go")
    flags.add_sampling(add, samples=10, of="question")
    flags.add_effort(add)
    add(
        "--layer",
        type=int,
        default=-1,
        help="of the hidden state; -1 is the last, after the norm (default: %(default)s)",
    )
    flags.add_marker(add)
    flags.add_shards(add)
    add_running(add)
    parser.set_defaults(run=one_line(run))


def run(args: argparse.Namespace) -> int:
    """Collect traces.

    Raises:
        ValueError: an argument is wrong, the model or the task cannot be loaded, or the directory holds other traces.
        OSError: the server cannot be reached.
    """
    options = flags.parse_options(args.task_option)
    shard, num_shards = flags.shard_of(args)
    kind = flags.sampler_name(args)
    effort = flags.effort_of(args)

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
    sampler = flags.sampler(
        args, args.model, model, tokenizer, args.think_end_token, limits_thinking="thinking_tokens" in effort
    )
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
        effort=effort,
        seed=args.seed,
        layer=args.layer,
        think_end_token=args.think_end_token,
        batch_size=max(1, args.batch_size // 4),  # scoring holds the hidden states of whole sequences
        chunk_size=args.chunk_size,
        shard=shard,
        num_shards=num_shards,
    )
    of = "" if collected.done == collected.total else f" of {collected.total}; the rest is the other shards'"
    say(f"{collected.added} questions added; {args.output_dir} holds {collected.done}{of}")
    return 0
