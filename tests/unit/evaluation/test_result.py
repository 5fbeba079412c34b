from __future__ import annotations

import json

import pytest
from rich.console import Console

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.evaluation import Evaluation, difficulty_table, evaluation_table
from entropy_rft.evaluation.result import level_order
from entropy_rft.evaluation.table import evaluation_lines


def rendered(table) -> str:
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_an_evaluation_survives_its_file(make_evaluation, tmp_path):
    evaluation = make_evaluation()
    evaluation.save(tmp_path / "deep" / "evaluation.json")
    assert Evaluation.load(tmp_path / "deep" / "evaluation.json") == evaluation
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["evaluation.json"]


def test_an_evaluation_survives_a_dict(make_evaluation):
    evaluation = make_evaluation(avg_at_k=None, avg_interval=None, pass_at_k={}, entropy_answer=None)
    data = evaluation.to_dict()
    assert data["schema"] == 1
    assert json.loads(json.dumps(data)) == data
    assert Evaluation.from_dict({**data, "added_later": 1}) == evaluation


def test_a_file_that_is_no_evaluation_is_named(tmp_path, make_evaluation):
    path = tmp_path / "evaluation.json"
    data = make_evaluation().to_dict()
    without = {key: value for key, value in data.items() if key != "tokens"}
    for text, message in [
        ("{", "evaluation.json"),
        ("[]", "schema is 'list'"),
        (json.dumps({**data, "schema": 2}), "schema is 2"),
        (json.dumps(without), "no tokens"),
        (json.dumps({**data, "pass_at_k": 3}), "evaluation.json"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            Evaluation.load(path)


def test_nan_is_not_written(tmp_path, make_evaluation):
    with pytest.raises(ValueError, match="JSON"):
        make_evaluation(tokens=float("nan")).save(tmp_path / "evaluation.json")
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_what_it_rests_on(make_evaluation):
    text = rendered(evaluation_table([("clip_b", make_evaluation()), ("[bold]x", make_evaluation(avg_at_k=None))]))
    assert "40 × 8" in text
    assert "55.0–70.0" in text
    assert "87.5" in text
    assert f"{DEFAULT_TASK}/test" in text
    assert "bootstrap over questions" in text
    assert "[bold]x" in text


def test_the_table_by_difficulty(make_evaluation):
    text = rendered(difficulty_table("clip_b", make_evaluation()))
    assert all(f" {level} " in text for level in (2, 4, 7))
    assert "pass@8 (%)" in text


def test_the_hardest_level_has_a_line_where_all_evaluations_have_that_level(make_evaluation):
    first, other = make_evaluation(), make_evaluation()
    other.by_difficulty["7"].pass_at_k = {1: 0.1, 2: 0.2, 4: 0.25}
    lines = {line[0]: line[1:] for line in evaluation_lines([first, first])}
    assert lines["pass@8, level 7 (%)"] == ["87.5", "87.5"]
    # k is the largest that both have.
    lines = {line[0]: line[1:] for line in evaluation_lines([first, other])}
    assert lines["pass@4, level 7 (%)"] == ["80.0", "25.0"]
    easy, alone = make_evaluation(), make_evaluation()
    del easy.by_difficulty["7"]
    alone.by_difficulty = {"7": alone.by_difficulty["7"]}
    for others in (easy, alone, make_evaluation(by_difficulty={})):
        assert not [line for line in evaluation_lines([first, others]) if "level" in line[0]]


def test_evaluations_of_the_same_questions_are_compared_question_by_question(make_evaluation):
    first = make_evaluation(questions_digest="a", question_means=[0.0, 0.5, None, 1.0])
    better = make_evaluation(questions_digest="a", question_means=[0.25, 0.75, 0.0, 1.0])
    others = make_evaluation(questions_digest="b", question_means=[0.25, 0.75, 0.0, 1.0])
    lines = {line[0]: line[1:] for line in evaluation_lines([first, better, others])}
    assert lines["  minus the first"] == ["–", "+16.7", "–"]
    assert "  minus the first" not in {line[0] for line in evaluation_lines([first, others])}


def test_what_pear_would_prefer_stands_beside_one_evaluation_only(make_evaluation):
    def shown(*evaluations):
        return [line for line in evaluation_lines(evaluations) if "PEAR" in line[0]]

    known = make_evaluation(pear_prefers_shorter=0.125)
    assert shown(known) == [["PEAR (α = 1) prefers the shorter (%)", "12.5"]]
    assert shown(known, known) == []
    assert shown(make_evaluation()) == []
    assert Evaluation.from_dict(known.to_dict()).pear_prefers_shorter == 0.125


def test_levels_are_ordered_by_size_also_where_they_are_text() -> None:
    assert sorted(["10", "hard", 9, "8", 2.5, "-1", "easy"], key=level_order) == [
        "-1",
        2.5,
        "8",
        9,
        "10",
        "easy",
        "hard",
    ]
