"""Gold answers are read as a person reads them, or the row is refused when the file is loaded."""

from __future__ import annotations

import json

import pytest
from trl.rewards import accuracy_reward

from entropy_rft.tasks import gold_check, load_task
from entropy_rft.tasks.gold_check import SURE, gold_problem


@pytest.fixture
def load(tmp_path):
    def _load(*golds, task="jsonl"):
        file = tmp_path / "data.jsonl"
        rows = (f'{{"question": "q", "answer": {g if isinstance(g, str) else json.dumps(g)}}}' for g in golds)
        file.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        return load_task(task, path=file).dataset["solution"][:]

    return _load


def scores(text: str, gold: str) -> bool:
    return accuracy_reward([[{"role": "assistant", "content": f"\\boxed{{{text}}}"}]], [gold]) == [1.0]


@pytest.mark.parametrize(
    ("written", "right", "wrong"),
    [
        ("0.00001", "0.00001", "e-5"),
        ("1e-5", "0.00001", "0.00002"),
        ('"1e-05"', "0.00001", "e-5"),
        ('"1 1/2"', r"\frac{3}{2}", "1"),
        ('"10 000"', "10000", "0"),
        ('"€42"', "42", "0"),
        (r'"\\[42\\]"', "42", "43"),
        ("1e20", "1" + "0" * 20, "1"),
    ],
)
def test_as_a_person_reads_them(load, written, right, wrong):
    (gold,) = load(written)
    assert scores(right, gold)
    assert not scores(wrong, gold)


@pytest.mark.parametrize(
    ("gold", "problem"),
    [
        ('"10 000 km, 2 d"', "the reward"),
        ('"0.0000001"', r"would accept \\boxed{0.0000002} as right"),
        ('"2 x 1e5"', "does not read exponents written with e"),
        ("1e999", "is too large a number: write it as text"),
        ('"costs $5 or so, $6"', "the reward"),
        (r'"\\frac{1}{"', "the reward"),
    ],
)
def test_what_is_not_read_whole_is_refused_with_line_and_field(load, gold, problem):
    with pytest.raises(ValueError, match=r"data\.jsonl, line 2: field 'answer' ") as caught:
        load('"7"', gold)
    assert problem.replace("\\\\", "\\") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "gold",
    [
        *(
            "$(1,2)$",
            r"$(-\infty, 3]$",
            r"$2\sqrt{3}$",
            r"$5 \text{ cm}^2$",
            "$x_1=3$",
            r"$\text{yes}$",
            "$B$",
            "$x=5$",
        ),
        *(r"$\binom{5}{2}$", r"$90^\circ$", r"$\{1,2,3\}$", "$17 apples$", r"$\pi$", "$x^2+3x+2$", r"$0.\overline{3}$"),
        *(r"$1010_{2}$", r"$\begin{pmatrix} 1 \\ 2 \end{pmatrix}$", "$y = 2x + 3$", r"$\infty$", r"$\pm 3$", "007"),
    ],
)
def test_what_competitions_answer_is_accepted(gold):
    assert gold_problem(gold) is None


@pytest.mark.parametrize(
    "gold",
    ["7", "-12", "0.5", ".25", "12.00001", r"$50\%$", r"$\frac{1}{2}$", r"$-\dfrac{13}{4}$", "$1/2$", "$-3/4$"],
)
def test_what_is_not_checked_would_pass(gold):
    assert SURE.fullmatch(gold)
    assert gold_problem(gold) is None


def test_each_different_gold_is_checked_once_and_a_long_check_is_announced(load, monkeypatch, capsys):
    checked = []
    monkeypatch.setattr(gold_check, "gold_problem", checked.append)
    monkeypatch.setattr(gold_check, "_PATIENCE", -1.0)
    load('"(1,2)"', "7", '"(1,2)"', r'"2\\sqrt{3}"')
    assert checked == ["$(1,2)$", r"$2\sqrt{3}$"]
    assert capsys.readouterr().err == "checking how the reward reads 2 different gold answers\n"


def test_the_whole_file_is_checked_whatever_the_limit(tmp_path):
    file = tmp_path / "data.jsonl"
    rows = [{"problem": "p", "solution": "7"}] * 3 + [{"problem": "p", "solution": "10 000 km, 2 d"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 4: field 'solution' gives the gold answer"):
        load_task("dapo_math", path=file, limit=1)
