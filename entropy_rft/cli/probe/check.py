"""`entropy-rft probe check`: whether a vLLM server evaluates a probe, and as a plain forward does."""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import Any

from entropy_rft.cli import flags
from entropy_rft.cli.probe.common import one_line, say
from entropy_rft.errors import UserOSError, UserValueError

_QUESTIONS = ("What is 7 + 5?", "What is 93 - 48 + 16?", "What is 4 + 4 + 4 + 4 - 9 + 31?", "How many are 12 and 30?")
_LONG = "What is 1 + 2{}?".format(" + 3 - 2" * 25)


def add_parser(parts: Any) -> None:
    """Register the part."""
    parser = parts.add_parser(
        "check",
        help="compare a vLLM server that evaluates the probe with a plain forward",
        description=(
            "Ask a vLLM server that was started with ENTROPY_RFT_PROBE for the difficulty of some questions, all at "
            "once and then again out of its prefix cache, and compare its probabilities with the probe on a forward of "
            "transformers. The exit code is 1 where they differ by more than --tolerance. A key of the server is read "
            "from ENTROPY_RFT_API_KEY."
        ),
    )
    add = parser.add_argument
    add("--url", required=True, help="address of the server")
    add("--probe", required=True, type=flags.path, metavar="DIR", help="what `probe train` wrote, or embedded")
    add("--model", metavar="DIR_OR_HUB", help="the probe's base model, if it has moved (default: as in the probe)")
    add("--served_model", metavar="NAME", help="the server's name of the model (default: the first one it lists)")
    add("--force", action="store_true", help="use the probe with another model than its own")
    add("--quick", action="store_true", help="only check that the server has this probe; no model is loaded here")
    add(
        "--tolerance",
        type=float,
        default=1e-4,
        help="of a probability; two programs differ by up to 0.02 in bfloat16 (default: %(default)s)",
    )
    flags.add_hardware(add)
    parser.set_defaults(run=one_line(run))


def run(args: argparse.Namespace) -> int:
    """Check, and print the result.

    Raises:
        ValueError: an argument is wrong, the probe or the model cannot be loaded, or the server has not this probe.
        OSError: the server cannot be reached.
    """
    if not args.tolerance > 0:
        raise UserValueError(f"tolerance must be above 0, got {args.tolerance}")
    if not args.url.startswith(("http://", "https://")):
        raise UserValueError(f"url must be an address such as http://10.0.0.1:8000, not {args.url!r}")
    try:
        from entropy_rft.router.vllm_served import VLLMServed
    except ImportError as error:
        raise UserValueError(f'probe check needs {error.name}: pip install "entropy_rft[router]"') from error
    from entropy_rft.assets import DEFAULT_PROBE
    from entropy_rft.difficulty import DifficultyProbe

    directory = DEFAULT_PROBE if args.probe == "embedded" else args.probe
    probe = DifficultyProbe.from_pretrained(directory, base_model=args.model, force=args.force)
    served = VLLMServed(
        {args.url: os.environ.get("ENTROPY_RFT_API_KEY")}, model=args.served_model, digest=probe.digest(), timeout=60
    )
    if args.quick:
        asyncio.run(_asked(served, []))
        say(f"{args.url} evaluates this probe")
        return 0
    prompts, expected = _plain(args, probe, directory)
    found = asyncio.run(_asked(served, prompts))
    difference = max(
        abs(a - b)
        for rows in found
        for row, other in zip(rows, expected, strict=True)
        for a, b in zip(row, other, strict=True)
    )
    verdict = "as a plain forward does" if difference <= args.tolerance else "differently from a plain forward"
    say(
        f"{args.url} evaluates this probe {verdict}: the largest difference of a probability is {difference:.1e} "
        f"in {len(prompts)} questions (tolerance {args.tolerance:g})"
    )
    return 0 if difference <= args.tolerance else 1


def _plain(args: argparse.Namespace, probe: Any, directory: Any) -> tuple[list[list[int]], list[list[float]]]:
    """Prompts, and the probe's probabilities on a forward of transformers."""
    from entropy_rft.difficulty import DifficultyProbe, question_states
    from entropy_rft.sampling import encode_prompt, load_model_and_tokenizer

    name = args.model or probe.base_model
    if name is None:
        raise UserValueError(f"probe {args.probe!r} does not record its base model: give --model, or --quick")
    model, tokenizer = load_model_and_tokenizer(name, dtype=args.dtype, device=flags.device_of(args))
    DifficultyProbe.from_pretrained(directory, base_model=model, force=args.force)  # by its weights, not its name
    questions: list[Any] = [*_QUESTIONS, _LONG]
    if tokenizer.chat_template is not None:
        questions = [[{"role": "user", "content": question}] for question in questions]
    prompts = [encode_prompt(tokenizer, question) for question in questions]
    return prompts, probe.predict_proba(question_states(model, prompts, probe.layer)).tolist()


async def _asked(served: Any, prompts: list[list[int]]) -> list[list[tuple[float, float, float]]]:
    """The server's probabilities, twice: computed, and out of its prefix cache."""
    from entropy_rft.router.batching import FeatureError

    served.open()
    try:
        await served.check()
        return [list(await asyncio.gather(*(served.probabilities(prompt) for prompt in prompts))) for _ in range(2)]
    except FeatureError as error:
        raise UserOSError(str(error)) from error
    finally:
        await served.close()
