"""Flags that several verbs have, with the same name, help and parsing in each."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from entropy_rft.errors import UserValueError, users
from entropy_rft.tags import THINK_END
from entropy_rft.tasks import TASK_NAMES

Add = Callable[..., Any]
"""``parser.add_argument``."""


def path(text: str) -> str:
    """The type of every flag that names a file or a directory: a ``~`` at its start is the home directory.

    The shell expands it only at the start of a word, not in ``--output=~/page.html``.
    """
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError as error:  # no such user
        raise argparse.ArgumentTypeError(f"{text!r} has no home directory") from error


def check_output(output: Path) -> None:
    """Say before the work, not after it, that its result could not be written.

    Raises:
        ValueError: `output` is a directory, or it cannot be written.
    """
    if output.is_dir():
        raise UserValueError(f"--output {str(output)!r} is a directory: give a file name")
    written = (
        output if output.exists() and not output.is_file() else next(p for p in output.absolute().parents if p.exists())
    )
    if not os.access(written, os.W_OK):
        raise UserValueError(f"--output {str(output)!r} cannot be written: give another file with --output")


def add_task(add: Add, split: str) -> None:
    """Which questions; `split` is the default."""
    add("--task", required=True, help="one of " + ", ".join(TASK_NAMES))
    add("--path", type=path, metavar="FILE", help="local file with the task's questions")
    add("--split", default=split, help="the task's split (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="at most this many questions; all when not given")
    add(
        "--task_option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="further option of the task (repeatable)",
    )


def task_source(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The arguments of `load_task` but the options; a path is made absolute, as others may load the task again."""
    path = None if args.path is None else str(Path(args.path).resolve())
    return {"name": args.task, "path": path, "split": args.split, "limit": args.limit, "seed": seed}


def add_sampling(add: Add, samples: int, of: str, *, temperature: bool = True, top_p: bool = True) -> None:
    """How to answer: `samples` is the default number of answers, `of` says what they are counted per."""
    add("--samples", type=int, default=samples, metavar="N", help=f"answers per {of} (default: %(default)s)")
    if temperature:
        add("--temperature", type=float, default=1.0, help="of sampling; 0 is greedy (default: %(default)s)")
    if top_p:
        add("--top_p", type=float, default=1.0, help="of sampling (default: %(default)s)")
    limit = "limit on one answer" if temperature else "whole budget of an answer"
    add("--max_tokens", type=int, default=1024, metavar="N", help=f"{limit}, in tokens (default: %(default)s)")
    add("--batch_size", type=int, default=64, metavar="N", help="answers sampled at a time (default: %(default)s)")


def add_effort(add: Add) -> None:
    """How much to think: what a strategy may have too."""
    add("--thinking_tokens", type=int, metavar="N", help="the thinking ends after so many tokens; no limit by default")
    add("--reasoning_effort", metavar="WORD", help="such as low, for models whose chat template knows it")
    add("--chat_template_kwargs", metavar="JSON", help='variables of the template, such as {"enable_thinking": false}')
    add("--extra_body", metavar="JSON", help='further fields of sampling, such as {"top_p": 0.9}')


def effort_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of `add_effort` that are given, by a strategy's names.

    Raises:
        ValueError: one is out of range or is not JSON.
    """
    from entropy_rft.effort import EFFORT_FIELDS, checked_effort

    given = {name: getattr(args, name) for name in EFFORT_FIELDS}
    for name in ("chat_template_kwargs", "extra_body"):
        if given[name] is not None:
            try:
                given[name] = json.loads(given[name])
            except ValueError as error:
                raise UserValueError(f"--{name} {given[name]!r} is not JSON: {error}") from None
    with users(TypeError, ValueError):
        return checked_effort(**given)


def add_probe(add: Add) -> None:
    """Which probe, and for which model."""
    add("--probe", required=True, type=path, metavar="DIR", help="what `probe train` wrote")
    add("--model", metavar="DIR_OR_HUB", help="the probe's base model, if it has moved (default: as in the probe)")
    add("--force", action="store_true", help="use the probe with another model than its own")
    add(
        "--min_confidence",
        type=float,
        default=0.5,
        help="below it the probe's choice is Normal (default: %(default)s)",
    )


def add_marker(add: Add) -> None:
    """What ends the thinking."""
    add("--think_end_token", default=THINK_END, metavar="TEXT", help="what ends the thinking (default: %(default)s)")


def add_hardware(add: Add) -> None:
    """Where the model runs."""
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="of the weights; auto: as saved (default: %(default)s)",
    )
    add("--device", help="such as cpu or cuda (default: the accelerator, if there is one)")


def device_of(args: argparse.Namespace) -> str | None:
    """The flag; without it each process that torchrun started uses its own accelerator."""
    if args.device is None and "LOCAL_RANK" in os.environ:
        import torch

        if torch.cuda.is_available():
            return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    device: str | None = args.device
    return device


def add_shards(add: Add) -> None:
    """How several processes share the work, chunk by chunk."""
    add("--chunk_size", type=int, default=32, metavar="N", help="questions written at a time (default: %(default)s)")
    add("--num_shards", type=int, metavar="N", help="processes that share the work (default: torchrun's, or 1)")
    add("--shard", type=int, metavar="I", help="which of them this is, from 0 (default: torchrun's rank, or 0)")


def shard_of(args: argparse.Namespace) -> tuple[int, int]:
    """This process's number and that of all: the flags, or torchrun's variables.

    Raises:
        ValueError: one of the flags is given without the other.
    """
    if args.shard is None and args.num_shards is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.shard is None or args.num_shards is None:
        raise UserValueError("--shard and --num_shards belong together: give both, or none under torchrun")
    return args.shard, args.num_shards


def add_server(add: Add) -> None:
    """What samples the answers instead of transformers."""
    add("--url", help="sample from this OpenAI-compatible server of the same model instead, such as vLLM's")
    add("--served_model", metavar="NAME", help="the server's name of the model (default: the first one it lists)")
    add("--vllm", action="store_true", help="sample with a vLLM engine instead, on the same device")
    add(
        "--vllm_memory",
        type=float,
        default=0.7,
        metavar="SHARE",
        help="of the GPU's memory, which vLLM may use; the scoring model is there too (default: %(default)s)",
    )


def sampler_name(args: argparse.Namespace) -> str:
    """The sampler's name, as traces record it.

    Raises:
        ValueError: two were asked for, vLLM is not installed, or its memory is out of range. Nothing slow comes before.
    """
    if not 0 < args.vllm_memory <= 1:
        raise UserValueError(f"vllm_memory must be above 0 and at most 1, got {args.vllm_memory}")
    if args.url and args.vllm:
        raise UserValueError("--url and --vllm exclude each other: give one")
    if args.vllm and find_spec("vllm") is None:
        raise UserValueError('--vllm needs vLLM: pip install "entropy_rft[vllm]"')
    return "openai" if args.url else "vllm" if args.vllm else "transformers"


def sampler(
    args: argparse.Namespace,
    name: str,
    model: Any,
    tokenizer: Any,
    think_end_token: str = THINK_END,
    limits_thinking: bool = False,
) -> Any:
    """The sampler of `sampler_name`; `name` is the model's, which a vLLM engine loads itself.

    `limits_thinking` says whether `thinking_tokens` will be asked for: a vLLM engine must know it from the start.

    Raises:
        ValueError: the url is not valid, or vLLM cannot use the model.
        OSError: the server cannot be reached.
    """
    kind = sampler_name(args)
    if kind == "vllm":
        from entropy_rft.sampling.vllm_sampler import VLLMSampler

        return VLLMSampler(
            name,
            tokenizer,
            dtype=args.dtype,
            memory=args.vllm_memory,
            device=device_of(args),
            think_end_token=think_end_token if limits_thinking else None,
        )
    if kind == "transformers":
        from entropy_rft.sampling import TransformersSampler

        return TransformersSampler(model, tokenizer, batch_size=args.batch_size, think_end_token=think_end_token)
    from entropy_rft.sampling.openai_sampler import OpenAISampler
    from entropy_rft.sampling.scoring import vocabulary_size

    return OpenAISampler(
        args.url,
        tokenizer,
        model=args.served_model,
        concurrency=args.batch_size,
        api_key=os.environ.get("ENTROPY_RFT_API_KEY"),
        think_end_token=think_end_token,
        vocabulary=vocabulary_size(model),
    )


def served_model(sampler: Any) -> str | None:
    """The server's name of the model that answers, for the settings; ``None`` where this process answers.

    Raises:
        OSError: the server cannot be reached, or names no model.
    """
    return sampler.served_model() if hasattr(sampler, "served_model") else None


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """``["question=q", "thinking=false"]`` as a dict; numbers, true, false and none are typed.

    Raises:
        ValueError: a pair has no ``=``, or a key occurs twice.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserValueError(f"--task_option {pair!r} must have the form key=value")
        if key in options:
            raise UserValueError(f"--task_option {key!r} is given twice")
        options[key] = _typed(value)
    return options


def _typed(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text
