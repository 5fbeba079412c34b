"""Make the probe of an embedded model: it predicts how hard a question is for it, from its hidden state there.

Traces of the training split make the labels and the weights; how many tokens each strategy's answers have is measured
on the validation split. The test split is not touched.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from entropy_rft.assets import MODULO_PROBE, MODULO_REASONER, TINY_PROBE, TINY_REASONER
from entropy_rft.atomic import write_text
from entropy_rft.files import json_text


@dataclass(frozen=True)
class ProbeSettings:
    """How the probe is made; the defaults are the tiny reasoner's.

    `questions` of the training split are answered `samples` times with at most `max_tokens` tokens; then
    `validation_questions` of the validation split `validation_samples` times with each strategy.
    """

    model: str = TINY_REASONER.name
    task: str = "arithmetic"
    questions: int = 1200
    samples: int = 8
    max_tokens: int = 160
    hidden_units: int = 64
    validation_questions: int = 120
    validation_samples: int = 4
    seed: int = 0


SETTINGS = {
    TINY_REASONER.name: ProbeSettings(),
    MODULO_REASONER.name: ProbeSettings(model=MODULO_REASONER.name, task="modulo", max_tokens=224),
}
OUTPUTS = {TINY_REASONER.name: TINY_PROBE, MODULO_REASONER.name: MODULO_PROBE}


def make(output: Path, recipe: ProbeSettings, command: str = "") -> dict[str, Any]:
    """Make the probe in `output` and return its provenance, which is also written there as `provenance.json`.

    `metrics["mean_tokens"]` of the saved probe holds the mean length of an answer by each strategy, in tokens, with
    `max_tokens` as the whole budget.

    Args:
        output: a directory, created if needed; files of an earlier probe are overwritten.
        recipe: sizes and the seed.
        command: the command line, stored in the provenance.

    Raises:
        ValueError: the model cannot be loaded, or its answers are too similar for three classes.
    """
    from entropy_rft.difficulty import load_traces, train_probe
    from entropy_rft.sampling import load_model_and_tokenizer
    from studies.assets.make import versions

    start = time.perf_counter()
    model, tokenizer = load_model_and_tokenizer(recipe.model, device="cpu")
    with tempfile.TemporaryDirectory(prefix="make-probe-") as directory:
        work = Path(directory)
        _collect(model, tokenizer, recipe, "train", recipe.questions, recipe.samples, work / "train")
        collected = time.perf_counter()
        probe = train_probe(load_traces(work / "train"), hidden_units=recipe.hidden_units, seed=recipe.seed)
        # One sample: only the questions and their hidden states are needed of these traces.
        _collect(model, tokenizer, recipe, "validation", recipe.validation_questions, 1, work / "validation")
        probe.metrics |= _strategies_measured(probe, model, tokenizer, recipe, work)
    probe.save_pretrained(output)
    provenance = {
        "command": command,
        "recipe": asdict(recipe),
        "seconds": {
            "collecting": round(collected - start, 1),
            "training and measuring": round(time.perf_counter() - collected, 1),
        },
        "versions": versions(),
    }
    write_text(output / "provenance.json", json_text(provenance, indent=2) + "\n")
    return {"metrics": probe.metrics, **provenance}


def _collect(
    model: Any, tokenizer: Any, recipe: ProbeSettings, split: str, questions: int, samples: int, output: Path
) -> None:
    from entropy_rft.difficulty import collect_traces
    from entropy_rft.sampling import TransformersSampler
    from entropy_rft.tasks import load_task

    source = {"name": recipe.task, "split": split, "limit": questions, "seed": recipe.seed}
    collect_traces(
        model,
        tokenizer,
        load_task(**source),  # type: ignore[arg-type]
        output,
        sampler=TransformersSampler(model, tokenizer, batch_size=256),
        model_name=recipe.model,
        source=source,
        samples=samples,
        max_tokens=recipe.max_tokens,
        seed=recipe.seed,
        batch_size=64,
    )


def _strategies_measured(probe: Any, model: Any, tokenizer: Any, recipe: ProbeSettings, work: Path) -> dict[str, Any]:
    """Mean tokens and accuracy of each strategy on the validation questions, by its name."""
    import numpy as np

    from entropy_rft.difficulty.compare.comparison import answer_questions, held_out_questions
    from entropy_rft.difficulty.strategies import NAMES
    from entropy_rft.sampling import ThinkEndMarker, TransformersSampler

    questions = held_out_questions([work / "validation"], probe)
    answers = answer_questions(
        questions,
        probe.strategies,
        TransformersSampler(model, tokenizer, batch_size=256),
        work / "answers",
        samples=recipe.validation_samples,
        max_tokens=recipe.max_tokens,
        seed=recipe.seed,
        marker=ThinkEndMarker(tokenizer, questions.traces.think_end_token),
    )
    tokens, right = answers.tokens.mean((1, 2)), np.nanmean(answers.correct, axis=(1, 2))
    return {
        "mean_tokens": {name: round(float(value), 2) for name, value in zip(NAMES, tokens, strict=True)},
        "mean_tokens_of": {
            "task": f"{recipe.task}/validation",
            "questions": len(questions),
            "samples": recipe.validation_samples,
            "max_tokens": recipe.max_tokens,
            "accuracy": {name: round(float(value), 4) for name, value in zip(NAMES, right, strict=True)},
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """The command `scripts/make_tiny_probe`."""
    parser = argparse.ArgumentParser(prog="make_tiny_probe", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=SETTINGS, default=TINY_REASONER.name, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="where to write (default: the package)")
    for name, value in asdict(ProbeSettings()).items():
        if name not in ("model", "task"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help="(default: the model's)")
    given = sys.argv[1:] if arguments is None else arguments
    values = {name: value for name, value in vars(parser.parse_args(given)).items() if value is not None}
    recipe = SETTINGS[values.pop("model")]
    output = values.pop("output", OUTPUTS[recipe.model])
    provenance = make(output, replace(recipe, **values), shlex.join(["scripts/make_tiny_probe", *given]))
    shown = ("labels", "test", "baselines", "mean_tokens", "mean_tokens_of")
    print(json_text({name: provenance["metrics"][name] for name in shown}, indent=2))
    print(f"probe: {output}")
    return 0
