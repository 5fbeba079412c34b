"""Questions of GSM8K, or of its form where the real ones are not at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

DATA = Path(os.environ.get("ENTROPY_RFT_DATA", Path(__file__).parents[3] / "shared" / "data"))

# Worked solutions, the result after "#### ", as there.
OF_ITS_FORM = (
    (
        "A baker sells 12 rolls in the morning and twice as many in the afternoon. How many rolls does she sell?",
        "In the afternoon she sells 12*2=<<12*2=24>>24 rolls.\nShe sells 12+24=<<12+24=36>>36 rolls.\n#### 36",
    ),
    (
        "Tom has 50 dollars and buys 4 books for 9 dollars each. How many dollars does he have left?",
        "The books cost 4*9=<<4*9=36>>36 dollars.\nHe has 50-36=<<50-36=14>>14 dollars left.\n#### 14",
    ),
    (
        "A bus has 40 seats. A quarter of them are free. How many people sit in the bus?",
        "Free are 40/4=<<40/4=10>>10 seats.\nSo 40-10=<<40-10=30>>30 people sit.\n#### 30",
    ),
    (
        "Each of 6 boxes holds 250 nails. How many nails are there in all?",
        "There are 6*250=<<6*250=1500>>1500 nails.\n#### 1,500",
    ),
)


def gsm8k(split: str, directory: Path) -> Path:
    """The file of a split; one of `OF_ITS_FORM` is written into `directory` where the real one is not."""
    file = DATA / f"gsm8k_{split}.jsonl"
    if not file.is_file():
        file = directory / file.name
        rows = ({"question": question, "answer": answer} for question, answer in OF_ITS_FORM)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
