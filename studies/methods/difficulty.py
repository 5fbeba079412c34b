"""DiffAdapt before and after reinforcement: is there a U shape, and what does the probe save with each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from entropy_rft.difficulty.labels import NoProbeError
from entropy_rft.reporting.cells import number, percent
from studies.methods.plan import Plan
from studies.methods.results import Results
from studies.methods.search import Search
from studies.probe_study import ProbeStudy, StudySettings, pool
from studies.u_shape import u_shape


def study_models(
    models: Mapping[str, str],
    settings: StudySettings,
    seeds: Sequence[int],
    directory: Path,
    *,
    batch_size: int = 512,
    device: str = "cpu",
    log: Any = print,
) -> dict[str, Any]:
    """The probe's study with each of `models`, on the same test questions; what is on the disk is not made again.

    Args:
        models: what each is called, and its directory or name.
        settings: of the study; `model` is replaced.
        seeds: of traces, probes and answers.
        directory: of everything that is made, one directory a model.
        batch_size: completions at a time.
        device: "cpu" or "cuda".
        log: called with each line of progress.

    Returns:
        Plain JSON values: for each model ``u_shape`` (of :func:`u_shape`), ``levels``, ``policies`` and the rest of
        the pooled results of the seeds; or ``impossible``, the reason why no probe can be made from its answers.

    Raises:
        ValueError: anything else, such as a model or a file that cannot be read, or a directory of other settings.
    """
    from entropy_rft.sampling import TransformersSampler, load_model_and_tokenizer

    found: dict[str, Any] = {}
    for name, source in models.items():
        log(f"{name}: {source}")
        model, tokenizer = load_model_and_tokenizer(source, device=device)
        sampler = TransformersSampler(model, tokenizer, batch_size=batch_size)
        study = ProbeStudy(directory / name, replace(settings, model=str(source)), model, tokenizer, sampler, log)
        try:
            runs = {seed: study.run(seed) for seed in seeds}
        except NoProbeError as error:  # this is a result too; any other error is not
            log(f"{name}: {error}")
            found[name] = {"impossible": str(error)}
            continue
        found[name] = {
            **pool(runs),
            "u_shape": u_shape([traces for _, _, traces in runs.values()]),
            "thresholds": {str(seed): result["thresholds"] for seed, (result, _, _) in runs.items()},
        }
    return {"seeds": list(seeds), "settings": replace(settings, model="").to_dict(), "models": found}


def trained_models(plan: Plan, results: Results, work_dir: Path, seed: int) -> dict[str, str]:
    """The start, and the models that the study of methods saved for one seed; models that do not exist are left out."""
    found = {"start": str(plan.model.get("name") or work_dir / "model")}
    for method, choice in Search(plan, results).choices.items():
        for spec in plan.mains(method, choice):
            directory = work_dir / "runs" / f"{spec.name}-{spec.digest[:8]}"
            if spec.seed == seed and (directory / "config.json").is_file():
                found[method] = str(directory)
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The U of each model, and what its probe saves beside fixed strategies and the oracle."""
    seeds = ", ".join(map(str, result["seeds"]))
    models = {name: found for name, found in result["models"].items() if "impossible" not in found}
    reasons = [f"- {name}: {found['impossible']}" for name, found in result["models"].items() if name not in models]
    if not models:
        return "\n".join(reasons) + "\n"
    levels = next(iter(models.values()))["u_shape"]["levels"]
    lines = [
        f"Mean token entropy (nats) by difficulty, seeds {seeds}; brackets: 95 % interval over questions.",
        "",
        f"| model | {' | '.join(levels)} | easiest - lowest between | hardest - lowest between | |",
        "| --- |" + " --- |" * (len(levels) + 3),
    ]
    for name, found in models.items():
        shape = found["u_shape"]
        cells = [number(value) for value in shape["entropy"]]
        ends = [_with_interval(shape[end], 1, 3) for end in ("fall", "rise")]
        lines.append(f"| {name} | {' | '.join([*cells, *ends])} | {shape['verdict']} |")
    lines += [
        "",
        f"Against the fixed Normal strategy, on the same test questions{_oracle(models)}:",
        "",
        "| model | Normal: accuracy, % | tokens | probe: accuracy, points | tokens saved, % | oracle saves, % | "
        "macro-F1 above majority |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in models.items():
        policies = found["policies"]
        normal, probe, oracle = (policies[p] for p in ("normal", "probe", "oracle"))
        cells = [
            percent(normal["accuracy"]),
            number(normal["tokens"], 1),
            _with_interval(probe["minus_normal"]["accuracy"], 100, 1),
            _with_interval(probe["minus_normal"]["saving"], 100, 1),
            percent(oracle["minus_normal"]["saving"][0]),
            number(found["macro_f1_minus_majority"]["mean"], 3),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if reasons:
        lines += ["", "No probe could be made:", "", *reasons]
    return "\n".join(lines) + "\n"


def _oracle(models: Mapping[str, Any]) -> str:
    """The oracle's rule when these were measured; results of earlier versions, which had another rule, do not contain
    it."""
    definition = next(iter(models.values())).get("oracle")
    return f" (the oracle takes {definition})" if definition else ""


def _with_interval(values: Sequence[float] | None, scale: float, digits: int) -> str:
    if values is None:
        return number(None)
    value, low, high = (number(scale * v, digits) for v in values)
    return f"{value} ({low} to {high})"


def write_figure(result: Mapping[str, Any], path: Path) -> None:
    """Entropy and accuracy by difficulty, before and after."""
    from entropy_rft.reporting import figures
    from studies.methods.figures import panels, save

    figure, axes = panels(2)
    for index, (name, found) in enumerate(result["models"].items()):
        if "impossible" in found:
            continue
        groups = found["levels"]["groups"]
        for place, column, scale in zip(axes, ("entropy", "accuracy"), (1, 100), strict=True):
            values = [scale * group[column] for group in groups.values()]
            place.plot(range(len(groups)), values, "o-", label=name, color=figures.colour(index), markersize=4)
            place.set_xticks(range(len(groups)), list(groups))
            place.set_xlabel("difficulty")
    axes[0].set_ylabel("entropy (nats per token)")
    axes[1].set_ylabel("accuracy (%)")
    save(figure, path, axes[:1])
