#!/usr/bin/env python
"""What the difficulty probe saves on the embedded task, over several seeds, on held-out questions.

    python scripts/study_probe.py                                     # three seeds, about half an hour on two cores
    python scripts/study_probe.py --strategies strategies.yaml --work_dir runs/probe-study-tuned
    python scripts/study_probe.py --seeds 0 --train_questions 120 --test_questions 24 --samples 4
    python scripts/study_probe.py --config recipes/studies/smollm2-difficulty.yaml    # a real language model

For each seed: traces of training questions, a probe, its least confidence and that of the rule by the prompt's length
(each chosen on the held-out training questions), traces of the test questions for their labels, and answers to them
with all strategies. Fixed strategies, chance, a rule by the prompt's length, the probe and the oracle are compared on
the same answers; intervals are from a paired bootstrap over questions. Run the same command again to resume an
interrupted study. It writes NAME.json, NAME-u.png (entropy and accuracy by difficulty) and NAME-frontier.png (accuracy
against tokens).
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from entropy_rft.atomic import write_text
from entropy_rft.errors import UserMistake, UserValueError
from entropy_rft.threads import share_cores

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # `studies` is not installed
RESULTS = ROOT / "scripts" / "results"
VERSIONS = ("torch", "transformers", "numpy")


def arguments() -> argparse.Namespace:
    from studies.probe_settings import StudySettings, read_config

    default = StudySettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML of settings, by the names of these flags; flags win")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--model", default=default.model)
    add("--dtype", default=default.dtype, help="of the model's weights")
    add("--train_questions", type=int, default=default.train_questions)
    add("--test_questions", type=int, default=default.test_questions)
    add("--samples", type=int, default=default.samples, help="answers to each question of the traces")
    add("--answer_samples", type=int, default=default.answer_samples, help="to each test question with each strategy")
    add("--max_tokens", type=int, default=default.max_tokens, help="whole budget of an answer")
    add("--temperature", type=float, default=default.temperature, help="of the traces")
    add("--layer", type=int, default=default.layer)
    add("--kind", choices=("mlp", "linear"), default=default.kind)
    add("--hidden_units", type=int, default=default.hidden_units)
    add("--thresholds", type=float, nargs=3, metavar=("A_NORMAL", "H_NORMAL", "A_HARD"), help="default: calibrated")
    add("--min_share", type=float, default=default.min_share, help="smallest share of a class when calibrating")
    add("--min_confidence", type=float, help="default: chosen on held-out training questions")
    add("--tolerance", type=float, default=default.tolerance, help="accuracy that this choice may lose")
    add("--strategies", metavar="FILE", help="YAML of the strategies (default: the built-in ones)")
    add("--batch_size", type=int, default=512, help="completions at a time")
    add("--device", default="cpu")
    add("--work_dir", type=Path, help="of traces, probes and answers (default: runs/probe-study, or runs/NAME)")
    add("--output", type=Path, default=RESULTS, metavar="DIR")
    add("--name", default="probe-tiny", help="of the files written")
    add("--note", default="", help="stored in the result, such as what else the machine was doing")
    options = parser.parse_args()
    if options.config is not None:
        own = ("config", "output", "work_dir", "note")
        parser.set_defaults(**read_config(options.config, [name for name in vars(options) if name not in own]))
        options = parser.parse_args()
    if options.work_dir is None:
        options.work_dir = ROOT / "runs" / ("probe-study" if options.config is None else options.name)
    return options


def settings_of(options: argparse.Namespace) -> Any:
    from entropy_rft.difficulty import DEFAULT_STRATEGIES, Thresholds, load_strategies
    from studies.probe_settings import StudySettings

    taken = {name: getattr(options, name) for name in StudySettings.__dataclass_fields__ if hasattr(options, name)}
    strategies = options.strategies or dict(DEFAULT_STRATEGIES)
    if isinstance(strategies, str):
        strategies = load_strategies(strategies)
    return StudySettings(
        **{
            **taken,
            "thresholds": Thresholds(*options.thresholds) if options.thresholds else None,
            "strategies": strategies,
        }
    )


def show(pooled: dict[str, Any]) -> None:
    from rich.console import Console

    from entropy_rft.difficulty.compare.page import short_policy_lines
    from entropy_rft.difficulty.compare.plots import POLICIES
    from entropy_rft.reporting.cells import lined_table, number

    console = Console()
    header, *lines = short_policy_lines(pooled)
    seeds = ", ".join(map(str, pooled["seeds"]))
    note = f"{pooled['questions']} test questions, seeds {seeds} pooled by question; second line: 95 %, paired"
    console.print(lined_table("Strategies", header, lines, note))
    classifiers = [
        [name.replace("_", " "), *(ranged(report[metric], 3) for metric in ("macro_f1", "accuracy"))]
        for name, report in pooled["classifier"].items()
    ]
    header = ["classifier", "macro-F1: mean (range)", "accuracy"]
    console.print(lined_table("Labels of the test questions", header, classifiers, "over seeds"))
    levels = [
        [name, number(g["entropy"]), number(100 * g["accuracy"], 1), number(g["tokens"], 1)]
        for name, g in pooled["levels"]["groups"].items()
    ]
    console.print(lined_table("By difficulty", ["", "entropy (nats)", "accuracy (%)", "tokens"], levels, "the traces"))
    print(f"macro-F1 minus majority: {ranged(pooled['macro_f1_minus_majority'], 3)}")
    if pooled["macro_f1_minus_prompt_length"]:
        print(f"macro-F1 minus prompt length: {interval(pooled['macro_f1_minus_prompt_length'], 3)}")
    if pooled["u_shape"]:
        print(f"entropy over difficulty: {pooled['u_shape']['verdict']}")
    for name, found in pooled["against"].items():
        points, saved = ([100 * value for value in found[key]] for key in ("accuracy", "saving"))
        print(
            f"probe beside {POLICIES[name]}: {found['verdict']}; {interval(points, 1)} points of accuracy, "
            f"{interval(saved, 1)} % of the tokens saved"
        )
    print(f"share of the oracle's saving: {ranged(pooled['oracle_share'], 2)}")
    for name, met in pooled["targets"].items():
        print(f"{name}: {'met' if met else 'missed'}")


def interval(values: list[float], digits: int) -> str:
    from entropy_rft.reporting.cells import number

    return f"{number(values[0], digits)} ({number(values[1], digits)} to {number(values[2], digits)})"


def ranged(spread: dict[str, Any], digits: int) -> str:
    from entropy_rft.reporting.cells import number

    return f"{number(spread['mean'], digits)} ({number(spread['low'], digits)} to {number(spread['high'], digits)})"


def write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    from entropy_rft.difficulty.compare.plots import frontier, save_png, u_shape

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{options.name}.json"
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    by = "number of terms" if result["settings"]["task"] == "arithmetic" else "difficulty"
    save_png(u_shape(result["pooled"]["levels"], by), options.output / f"{options.name}-u.png")
    save_png(frontier(result["pooled"]), options.output / f"{options.name}-frontier.png")
    print(f"written: {path}, and two figures beside it")


def main() -> int:
    share_cores()
    try:
        return study(arguments())
    except UserMistake as error:
        print(f"study_probe: error: {error}", file=sys.stderr)
        return 2


def study(options: argparse.Namespace) -> int:
    import torch

    from entropy_rft import __version__
    from entropy_rft.sampling import TransformersSampler, load_model_and_tokenizer
    from studies.probe_study import ProbeStudy, pool

    if len(set(options.seeds)) < len(options.seeds):
        raise UserValueError(f"seeds must differ, got {options.seeds}")
    settings = settings_of(options)
    model, tokenizer = load_model_and_tokenizer(settings.model, dtype=settings.dtype, device=options.device)
    sampler = TransformersSampler(model, tokenizer, batch_size=options.batch_size)
    study = ProbeStudy(
        options.work_dir, settings, model, tokenizer, sampler, lambda text: print(text, file=sys.stderr, flush=True)
    )
    runs = {seed: study.run(seed) for seed in options.seeds}
    pooled = pool(runs, shared_traces=settings.shared_traces)
    show(pooled)
    result = {
        "study": options.name,
        "command": shlex.join(["python", "scripts/study_probe.py", *sys.argv[1:]]),
        "settings": settings.to_dict(),
        "versions": {
            "python": platform.python_version(),
            "entropy_rft": __version__,
            **{name: version(name) for name in VERSIONS},
        },
        "device": options.device,
        "threads": torch.get_num_threads(),
        "note": options.note,
        "seconds": study.seconds(options.seeds),
        "pooled": pooled,
        "seeds": {str(seed): result for seed, (result, _, _) in runs.items()},
    }
    write(options, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
