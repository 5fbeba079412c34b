#!/usr/bin/env python
"""The papers' claims, measured again; every study can be interrupted, and run again to resume.

    python scripts/reproduce.py --study theory            # the first-order entropy change and the real one: minutes
    python scripts/reproduce.py --study tiny --jobs 2     # eight methods on the embedded task: hours, two cores
    python scripts/reproduce.py --study tiny --list       # what is done, what is left, how long it will take
    python scripts/reproduce.py --study tiny --report     # the tables and figures of what is done
    python scripts/reproduce.py --study tiny-slow         # a control: four of them, slower and longer
    python scripts/reproduce.py --study medium --jobs 1   # the same with a model about 50 times larger, made first
    python scripts/reproduce.py --study frontier --jobs 2 # accuracy against entropy: the target rule and its rivals
    python scripts/reproduce.py --study frontier-longer   # a control: GRPO and the target rule, twice as many updates
    python scripts/reproduce.py --study smollm2 --jobs 1  # three methods on a real language model, a small study
    python scripts/reproduce.py --study difficulty        # the U shape and the probe's savings after training
    python scripts/reproduce.py --study pear --models NAME=DIR      # does PEAR's penalty grow with the length?
    python scripts/reproduce.py --study claims            # the claims of all studies in one table; nothing is run

Results go to scripts/results/STUDY: one JSON file a run, the searches, claims.json, claims.md and the figures. A run
whose file exists is not repeated; only this file counts, not the checkpoints in runs/. --time_limit stops between runs,
and the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from entropy_rft.atomic import write_text
from entropy_rft.errors import UserMistake, UserValueError
from entropy_rft.files import json_text
from entropy_rft.threads import share_cores

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # `studies` is not installed
STUDIES = ("theory", "frontier", "frontier-longer", "smollm2", "tiny", "tiny-slow", "medium", "difficulty", "pear",
           "claims")  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--study", choices=STUDIES, required=True)
    add("--plan", type=Path, help="YAML of the study (default: recipes/studies/STUDY.yaml)")
    add("--output", type=Path, help="of results (default: scripts/results/STUDY)")
    add("--work_dir", type=Path, help="of checkpoints and logs (default: runs/studies/STUDY)")
    add("--jobs", type=int, default=2, help="runs at once, one thread each on a CPU")
    add("--seeds", type=int, nargs="+", help="seeds of the main runs (default: the plan's)")
    add("--only", nargs="+", metavar="METHOD", help="these methods only")
    add("--time_limit", type=float, metavar="MINUTES", help="start no run that would end later")
    add("--list", action="store_true", help="say what is done and what is left, and run nothing")
    add("--report", action="store_true", help="write tables and figures of what is done, and run nothing")
    add("--device", default="cpu", help="cpu or cuda")
    add("--batches", type=int, help="theory: optimisation batches")
    add(
        "--models",
        nargs="+",
        metavar="NAME=DIR",
        help="difficulty, pear: models (default: those of tiny's seed 0; the start)",
    )
    add("--train_questions", type=int, help="difficulty: of the probe")
    add("--test_questions", type=int, help="difficulty: to compare on")
    return parser.parse_args()


def theory(options: argparse.Namespace) -> int:
    from entropy_rft.sampling import load_model_and_tokenizer
    from studies.methods.theory import TheorySettings, study
    from studies.methods.theory_report import markdown, write_figure

    output = options.output or ROOT / "scripts" / "results" / "theory"
    if options.report:
        result = json.loads((output / "theory.json").read_text(encoding="utf-8"))
    else:
        settings = TheorySettings(**({"batches": options.batches} if options.batches is not None else {}))
        result = study(settings, *load_model_and_tokenizer(settings.model, device="cpu"))
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "theory.json", json_text(result) + "\n")
    write_text(output / "theory.md", markdown(result))
    write_figure(result, output / "theory.png")
    print(markdown(result))
    print(f"written: {output / 'theory.json'}, theory.md and theory.png")
    return 0


def difficulty(options: argparse.Namespace) -> int:
    from studies.methods.difficulty import markdown, study_models, trained_models, write_figure
    from studies.methods.models import identified
    from studies.methods.plan import load_plan
    from studies.methods.results import Results, write_json
    from studies.probe_study import StudySettings

    output = options.output or ROOT / "scripts" / "results" / "difficulty"
    if options.report:
        result = json.loads((output / "difficulty.json").read_text(encoding="utf-8"))
    else:
        if options.models:
            models = _named(options.models)
        else:
            plan = identified(load_plan(options.plan or ROOT / "recipes" / "studies" / "tiny.yaml"))
            trained = ROOT / "runs" / "studies" / "tiny"
            models = trained_models(plan, Results(ROOT / "scripts" / "results" / "tiny"), trained, plan.seeds[0])
            if len(models) < 2:
                raise UserValueError(
                    f"no trained model in {trained}: run --study tiny first, or give --models NAME=DIR"
                )
        if options.only:
            models = {name: source for name, source in models.items() if name in options.only}
        sizes = {n: v for n in ("train_questions", "test_questions") if (v := getattr(options, n)) is not None}
        directory = options.work_dir or ROOT / "runs" / "studies" / "difficulty"
        seeds = options.seeds or [0, 1, 2]
        result = study_models(models, StudySettings(**sizes), seeds, directory, device=options.device, log=_say)
        write_json(output / "difficulty.json", result)
    write_text(output / "difficulty.md", markdown(result))
    write_figure(result, output / "difficulty.png")
    print(markdown(result))
    print(f"written: {output / 'difficulty.json'}, difficulty.md and difficulty.png")
    return 0


def pear(options: argparse.Namespace) -> int:
    from studies.methods.pear_signal import study_models, write_signal
    from studies.methods.plan import load_plan
    from studies.methods.results import write_json

    output = options.output or ROOT / "scripts" / "results" / "pear"
    plan = load_plan(options.plan or ROOT / "recipes" / "studies" / "frontier.yaml")
    stored = output / f"{plan.name}.json"
    if options.report:
        if not stored.is_file():
            raise UserValueError(f"there is no {str(stored)!r} to report: run the same command without --report first")
        result = json.loads(stored.read_text(encoding="utf-8"))
    else:
        if not options.models and "name" not in plan.model:
            raise UserValueError(f"study {plan.name!r} makes its model: give --models NAME=DIR")
        models = _named(options.models or [f"start={plan.model['name']}"])
        result = study_models(models, plan, options.device, _say)
        write_json(stored, result)
    print(write_signal(result, stored.with_suffix(".md")))
    print(f"written: {stored} and {plan.name}.md")
    return 0


def claims(options: argparse.Namespace) -> int:
    from studies.methods.side_by_side import stored_claims, table

    found = stored_claims(options.output or ROOT / "scripts" / "results")
    if not found:
        raise UserValueError("no study has a claims.json yet: run one, or make the reports of its runs with --report")
    print(table(found), end="")
    return 0


def _named(pairs: list[str]) -> dict[str, str]:
    models = dict(pair.partition("=")[::2] for pair in pairs)
    if len(models) < len(pairs) or not all(models.values()) or not all(models):
        raise UserValueError(f"models must be NAME=DIR, each name once, got {' '.join(pairs)}")
    return models


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compare(options: argparse.Namespace) -> int:
    from studies.methods.frontier import write_frontier
    from studies.methods.longer import write_longer
    from studies.methods.models import identified
    from studies.methods.plan import load_plan
    from studies.methods.report import write_report
    from studies.methods.results import Results
    from studies.methods.schedule import Scheduler, prepare_model, status_lines

    plan_file = options.plan or ROOT / "recipes" / "studies" / f"{options.study}.yaml"
    plan = identified(load_plan(plan_file)).only(options.only, options.seeds)
    output = options.output or ROOT / "scripts" / "results" / options.study
    work_dir = options.work_dir or ROOT / "runs" / "studies" / options.study
    results = Results(output)
    if options.list:
        print("\n".join(status_lines(plan, results, options.jobs)))
        return 0
    failed: dict[str, str] = {}
    if not options.report:
        limit = None if options.time_limit is None else 60 * options.time_limit
        scheduler = Scheduler(
            plan, results, work_dir, prepare_model(plan, work_dir), jobs=options.jobs, device=options.device,
            time_limit=limit,
        )  # fmt: skip
        try:
            scheduler.run()
        finally:
            failed = scheduler.failed
    for claim in write_report(plan, results, output):
        print(f"{claim.number}. {claim.text}: {claim.verdict}")
    written = "claims.md, claims.json and the figures"
    if options.study == "frontier":
        print(write_frontier(plan, results, output))
        written = f"{written}, frontier.md, frontier.json and its figures"
    if options.study == "frontier-longer":
        first = identified(load_plan(ROOT / "recipes" / "studies" / "frontier.yaml"))
        print(write_longer(plan, results, first, Results(ROOT / "scripts" / "results" / "frontier"), output))
        written = f"{written}, longer.md"
    print(status_lines(plan, results, options.jobs)[-1])
    print(f"written: {written} in {output}")
    for name, line in failed.items():
        print(f"reproduce: {name} failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(143)  # on exit the runs in progress are ended


def main() -> int:
    share_cores()
    options = arguments()
    signal.signal(signal.SIGTERM, _terminated)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched; a typo in a model's name fails at once
    try:
        return {"theory": theory, "difficulty": difficulty, "pear": pear, "claims": claims}.get(options.study, compare)(
            options
        )
    except UserMistake as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reproduce: interrupted; run the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
