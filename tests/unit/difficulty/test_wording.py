"""The same question asked in other words is the same question."""

from __future__ import annotations

import json

import pytest

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.difficulty.wording import wordless_id
from entropy_rft.sampling.identity import question_id
from entropy_rft.tasks import load_task, task_rows

WORDINGS = (
    {},
    {"instruction": "Think step by step."},
    {"answer_format": "Answer with a number."},
    {"answer_format": None},
    {"instruction": "Be brief.", "answer_format": "End with \\boxed{}."},
)


@pytest.mark.parametrize("name", [DEFAULT_TASK, "jsonl"])
def test_no_wording_makes_another_question(name, tmp_path):
    source = {"limit": 3}
    if name == "jsonl":
        path = tmp_path / "questions.jsonl"
        # The second one has paragraphs of its own, and ends as an answer format might.
        questions = ["What is 6 times 7?", "Let x = 2.\n\nWhat is x?\n\nAnswer with a digit.", "And 3 times 3?"]
        path.write_text("".join(json.dumps({"question": q, "answer": i}) + "\n" for i, q in enumerate(questions)))
        source |= {"path": path}
    named, plain = [], []
    for options in WORDINGS:
        rows = task_rows(load_task(name, **source, **options))
        named.append([wordless_id(row, options) for row in rows])
        plain.append([question_id(row) for row in rows])
    assert named == [named[0]] * len(WORDINGS)
    assert len(set(named[0])) == 3
    assert named[0] == plain[WORDINGS.index({"answer_format": None})]  # a prompt without wording keeps its name


def test_what_is_no_wording_stays():
    """A system message that the task did not add belongs to the question; plain text has an ending too."""
    own = [{"role": "system", "content": "You are a judge."}, {"role": "user", "content": "Who is right?"}]
    row = {"prompt": own, "solution": None}
    assert wordless_id(row, {}) == question_id(row)
    assert wordless_id(row, {"instruction": "Another."}) == question_id(row)
    text = {"prompt": "1+1\n\nIn digits.", "solution": "2"}
    assert wordless_id(text, {"answer_format": "In digits."}) == question_id({**text, "prompt": "1+1"})
    assert row["prompt"] is own
    assert len(own) == 2
