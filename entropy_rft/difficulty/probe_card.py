"""The model card of a probe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from entropy_rft.difficulty.strategies import DIFFICULTIES, NAMES

if TYPE_CHECKING:
    from entropy_rft.difficulty.probe import DifficultyProbe


_PLACES = {"system": "in the system message", "user_end": "at the end of the last user message"}


def model_card(probe: DifficultyProbe) -> str:
    """The model card: what the probe reads and predicts, how it was made and how good it is."""
    lines = ["---", "library_name: entropy_rft", "tags: [difficulty-probe, entropy]"]
    if probe.base_model and probe.base_model.count("/") == 1 and not probe.base_model.startswith((".", "/", "~")):
        lines.append(f"base_model: {probe.base_model}")
    thresholds = probe.thresholds
    lines += [
        "---",
        "",
        "# Difficulty probe",
        "",
        "Predicts from the hidden state of a question's last token whether the question is easy, normal or hard for",
        "one language model, before that model answers (DiffAdapt, arXiv 2510.19669). Load it with",
        "`entropy_rft.difficulty.DifficultyProbe.from_pretrained`.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base model | `{probe.base_model}` |",
        f"| layer | {probe.layer}{' (the last, after the final norm)' if probe.layer == -1 else ''} |",
        f"| width | {probe.width} |",
        f"| kind | {probe.kind}{f', {probe.hidden_units} hidden units' if probe.kind == 'mlp' else ''} |",
        f"| instructions | {_PLACES[probe.placement]} |",
        f"| calibration temperature | {probe.temperature:.3f} |",
        f"| seed | {probe.seed} |",
    ]
    if thresholds is not None:
        lines.append(
            f"| labels | normal: accuracy ≥ {thresholds.accuracy_normal:g} and entropy ≤ {thresholds.entropy_normal:g} "
            f"nats; hard: accuracy < {thresholds.accuracy_hard:g}; easy otherwise |"
        )
    test = probe.metrics.get("test")
    if test:
        reports = {"this probe": test, **probe.metrics.get("baselines", {})}
        lines += ["", f"On {test['questions']} held-out questions:", ""]
        lines += ["| | accuracy | macro-F1 | calibration error |", "| --- | ---: | ---: | ---: |"]
        for name, report in reports.items():
            numbers = " | ".join(f"{report[metric]:.3f}" for metric in ("accuracy", "macro_f1", "calibration_error"))
            lines.append(f"| {name.replace('_', ' ')} | {numbers} |")
        lines += ["", "| label \\ said | " + " | ".join(NAMES) + " |", "| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {name} | " + " | ".join(map(str, row)) + " |"
            for name, row in zip(NAMES, test["confusion"], strict=True)
        ]
    lines += ["", "| difficulty | instruction | temperature | share of the tokens |", "| --- | --- | ---: | ---: |"]
    for difficulty in DIFFICULTIES:
        strategy = probe.strategies[difficulty]
        instruction = " ".join(strategy.instruction.replace("|", "\\|").split())
        lines.append(
            f"| {difficulty.value} | {instruction} | {strategy.temperature:g} | {strategy.max_tokens_fraction:g} |"
        )
    further = {d.value: probe.strategies[d].effort for d in DIFFICULTIES if probe.strategies[d].effort}
    if further:
        lines.append("")
        lines += [f"Also for {name}: `{json.dumps(fields)}`" for name, fields in further.items()]
    lines += ["", "It is not valid for another model, another layer or questions of another kind.", ""]
    return "\n".join(lines)
