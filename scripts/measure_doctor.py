#!/usr/bin/env python
"""How often the doctor is right, on the stored runs of studies; less than a minute, nothing is trained.

    python scripts/measure_doctor.py                    # the runs of `frontier`, with the levels that are fixed
    python scripts/measure_doctor.py --first DIRECTORY  # fix the levels again, on the runs of the first study

By the rule in docs/doctor.md: which runs are healthy, which collapsed; levels are fixed on one part of the runs of the
study `tiny` and reported on the other, and on those of `tiny-slow` and `frontier`. scripts/results/doctor.json gets all
of it, and the tables of docs/doctor.md are printed. The first study's runs are in the history of the repository;
docs/results.md says how to get them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # `studies` is not installed
RESULTS = ROOT / "scripts" / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=Path, metavar="DIRECTORY", help="holds tiny/runs and tiny-slow/runs")
    return parser.parse_args()


def main() -> int:
    from studies.doctor import add_apart, markdown, measure
    from studies.methods.results import write_json

    first = arguments().first
    stored = RESULTS / "doctor.json"
    if first is None:
        measured = json.loads(stored.read_text(encoding="utf-8"))
    else:
        for study in ("tiny", "tiny-slow"):
            if not (first / study / "runs").is_dir():
                print(f"measure_doctor: error: --first {first}: no {study}/runs in it", file=sys.stderr)
                return 2
        measured = measure(first / "tiny" / "runs")
        add_apart(measured, first / "tiny-slow" / "runs", "tiny-slow")
    add_apart(measured, RESULTS / "frontier" / "runs", "frontier")
    write_json(stored, measured)
    print(markdown(measured))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
