#!/usr/bin/env python
"""How often the doctor is right, on the stored runs of two studies; seconds, nothing is trained.

    python scripts/measure_doctor.py

By the rule in docs/doctor.md: which runs are healthy, which collapsed; levels are fixed on one part of the runs of the
study `tiny` and reported on the other, and on those of `tiny-slow`. It writes scripts/results/doctor.json and prints
the tables of docs/doctor.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # `studies` is not installed
RESULTS = ROOT / "scripts" / "results"


def main() -> None:
    from studies.doctor import markdown, measure

    measured = measure(RESULTS / "tiny" / "runs", RESULTS / "tiny-slow" / "runs")
    (RESULTS / "doctor.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(markdown(measured))


if __name__ == "__main__":
    main()
