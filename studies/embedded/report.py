"""The table of docs/embedded-model.md: each requirement, what was measured, and whether it is met.

python -m studies.embedded.report studies/embedded/results/start.json studies/embedded/results/grpo-*.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from entropy_rft.reporting.estimators import paired_difference
from entropy_rft.tasks.modulo import STEPS

CHECK_TOKENS = 8  # " Check ", the two parts, their sign, "=", the result, " yes" and a full stop

Row = tuple[str, str, bool]
"""A requirement, what was measured, whether it is met."""


def rows_of_run(run: dict[str, Any]) -> list[Row]:
    """R1 to R9 of one run of GRPO."""
    start, end = run["start"], run["end"]
    thinking = end["thinking_tokens"] / start["thinking_tokens"]
    entropy = end["entropy"]["mean"] / start["entropy"]["mean"]
    early = {"start": start["hardest"]} | {
        name: found["hardest"] for name, found in run["checkpoints"].items() if int(name) <= 50
    }
    best = max(early, key=lambda name: early[name]["pass@k"]["16"])
    lost, low, high = paired_difference(early[best]["solved"], end["hardest"]["solved"])
    solved = fmean(early[best]["solved"])
    cut = run["curves"]["completions/clipped_ratio"]
    tested = max(start["truncated"], end["truncated"])
    longer = start["tokens_right_minus_wrong"]
    deciding = start["right_after_way_at_deciding_step"]
    idle = [_idle_share(found) for found in (start, end)]
    rises = end["avg"] > start["avg"]
    return [
        (
            "R1 thinking",
            f"{start['thinking_tokens']:.1f} to {end['thinking_tokens']:.1f}, {thinking:.2f}",
            thinking >= 0.85,
        ),
        (
            "R2 entropy",
            f"{start['entropy']['mean']:.3f} to {end['entropy']['mean']:.3f}, {entropy:.2f}",
            entropy < 0.5,
        ),
        (
            "R3 pass@16, hardest",
            f"{solved:.2f} ({best}) to {solved + lost:.2f}, difference {lost:+.2f} [{low:+.2f}, {high:+.2f}]; "
            f"avg@16 {start['avg']:.3f} to {end['avg']:.3f}",
            rises and (high < 0 or abs(lost) <= 0.02),
        ),
        (
            "R4 truncated",
            f"{fmean(cut):.2%} of the run's completions, at most {max(cut):.1%} of a batch; test {tested:.2%}",
            max(*cut, tested) < 0.01,
        ),
        (
            "R5 checks correct",
            f"{start['repaired_of_checked_wrong']:.2f}; {longer['mean']:+.1f} tokens "
            f"[{longer['interval'][0]:+.1f}, {longer['interval'][1]:+.1f}]",
            start["repaired_of_checked_wrong"] >= 0.4 and longer["interval"][0] > 0,
        ),
        ("R6 idle checks", f"{idle[0]:.2f} and {idle[1]:.2f} of the thinking", min(idle) >= 0.10),
        ("R7 entropy at forks", f"{start['entropy']['forks']:.2f}", start["entropy"]["forks"] >= 0.80),
        (
            "R8 rarer way",
            ", ".join(f"{way} {found['chance']:.2f}" for way, found in deciding.items()),
            deciding["Turn"]["chance"] > deciding["Recall"]["chance"],
        ),
        (
            "R9 ignorance",
            f"{start['entropy']['probability_of_sampled_digit']:.4f}; {start['wrong_as_taught']:.3f}",
            start["entropy"]["probability_of_sampled_digit"] >= 0.98 and start["wrong_as_taught"] >= 0.95,
        ),
    ]


def _idle_share(found: dict[str, Any]) -> float:
    checks = found["checks_per_step"] * found["idle_checks"] * STEPS
    return float(checks * CHECK_TOKENS / found["thinking_tokens"])


def rows_of_start(start: dict[str, Any]) -> list[Row]:
    """R10 to R13 of the model itself (the demo's time apart)."""
    asked = start["instructions"]
    plain, early, direct = asked["none"], asked["stop_early"], asked["direct"]
    lengths = {length for values in start["prompt_tokens"].values() for length in values}
    levels = plain["avg_by_level"]
    easy = [fmean(found["avg_by_level"][level] for level in ("1", "2", "3")) for found in (plain, direct)]
    bands = plain["entropy_bands"]
    low, middle, high = bands.values()
    return [
        (
            "R10 size",
            f"{start['parameters'] / 1e6:.2f} M, {start['megabytes']:.1f} MB, longest {plain['longest']} tokens",
            start["parameters"] <= 1.5e6 and start["megabytes"] <= 4 and plain["longest"] <= 200,
        ),
        (
            "R11 levels",
            f"prompt tokens {sorted(lengths)}; " + ", ".join(f"{value:.2f}" for value in levels.values()),
            len(lengths) == 1 and levels["1"] >= 0.9 and levels["10"] <= 0.2,
        ),
        (
            "R12 instructions",
            f"tokens {plain['tokens']:.0f}, early {early['tokens']:.0f}, direct {direct['tokens']:.0f}; "
            f"levels 1 to 3 none {easy[0]:.2f}, direct {easy[1]:.2f}",
            direct["tokens"] <= 0.6 * plain["tokens"]
            and easy[1] >= easy[0]
            and direct["tokens"] < early["tokens"] < plain["tokens"],
        ),
        ("R13 U shape (wanted)", f"{low:.3f}, {middle:.3f}, {high:.3f}", middle < min(low, high)),
    ]


def main() -> int:
    """The command line of this module."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m studies.embedded.report", description=summary)
    parser.add_argument("start", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args()
    print("| requirement | measured | met |\n| --- | --- | --- |")
    for path in args.runs:
        run = json.loads(path.read_text(encoding="utf-8"))
        print(f"| **GRPO, seed {run['seed']}** | | |")
        _print(rows_of_run(run))
    print("| **the model** | | |")
    _print(rows_of_start(json.loads(args.start.read_text(encoding="utf-8"))))
    return 0


def _print(rows: list[Row]) -> None:
    for name, measured, met in rows:
        print(f"| {name} | {measured} | {'yes' if met else '**no**'} |")


if __name__ == "__main__":
    raise SystemExit(main())
