"""The loaders on whole real files, checked against the answers found in other ways."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from entropy_rft.tasks import load_task

DATA = Path(os.environ.get("ENTROPY_RFT_DATA") or Path(__file__).parents[3].parent / "shared" / "data")
pytestmark = pytest.mark.skipif(
    not (DATA / "gsm8k_train.jsonl").is_file(), reason=f"no real questions in {DATA}: set ENTROPY_RFT_DATA"
)


def _rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "count"), [("gsm8k_train.jsonl", 7473), ("gsm8k_test.jsonl", 1319)])
def test_gsm8k_gold_answers(name, count):
    from math_verify import parse, verify

    rows = _rows(name)
    task = load_task("gsm8k", path=DATA / name)
    solutions = task.dataset["solution"][:]
    assert len(rows) == len(solutions) == count
    computed = 0
    for row, solution, prompt in zip(rows, solutions, task.dataset["prompt"], strict=True):
        assert prompt[0]["content"].startswith(row["question"])
        # The result as a whole line of its own, read from the end, without the loader's parsing.
        last = row["answer"].splitlines()[-1]
        assert last.startswith("#### ")
        assert float(solution) == float(last[5:].replace(",", "").replace("$", ""))
        assert re.fullmatch(r"-?\d+(\.\d+)?", solution)
        # The calculator's last result is the answer, but for the rows whose last step is in words.
        results = re.findall(r"<<[^<>]*=([^<>=]*)>>", row["answer"])
        computed += bool(results) and results[-1].strip().lstrip("$").lstrip("0") == solution.lstrip("0")
    assert computed / count > 0.85
    for solution in sorted(set(solutions)):
        parsed = parse(solution)
        assert parsed
        assert float(parsed[0]) == float(solution)
        assert verify(parsed, parse(f"\\boxed{{{solution}}}"))


@pytest.mark.parametrize(("name", "count"), [("aime24.jsonl", 30), ("aime25.jsonl", 30), ("amc23.jsonl", 40)])
def test_competitions_load_as_jsonl(name, count):
    from math_verify import parse, verify

    rows, task = _rows(name), load_task("jsonl", path=DATA / name, split="test")
    assert len(task) == count
    for row, solution in zip(rows, task.dataset["solution"], strict=True):
        assert float(solution) == float(row["answer"])
        assert verify(parse(solution), parse(f"$\\boxed{{{row['answer']}}}$"))
