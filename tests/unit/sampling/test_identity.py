from __future__ import annotations

from entropy_rft.sampling.identity import digest, question_id

ROW = {"prompt": [{"role": "user", "content": "What is 1 + 2?"}], "solution": "3"}


def test_a_question_is_its_prompt_and_its_solution() -> None:
    assert question_id(ROW) == question_id({**ROW, "difficulty": 2})
    others = [{**ROW, "solution": "4"}, {**ROW, "prompt": "What is 1 + 2?"}, {"prompt": ROW["prompt"]}]
    assert len({question_id(row) for row in [ROW, *others]}) == 4


def test_names_last() -> None:
    """Traces and probes on people's disks hold them: another value here would orphan those."""
    assert question_id(ROW) == "27012de457141020"
    assert digest([ROW, {"prompt": "b"}]) == "7749314093c59daf"
    assert digest([ROW, {"prompt": "b"}]) != digest([{"prompt": "b"}, ROW])
