from __future__ import annotations

import json

import pytest
from trl.rewards import accuracy_reward

from entropy_rft.tasks import load_task

GSM8K = {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}


@pytest.fixture
def write(tmp_path):
    def _write(*rows, raw: bytes | None = None):
        file = tmp_path / "data.jsonl"
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        file.write_bytes(text.encode() if raw is None else raw)
        return file

    return _write


def _golds(task):
    return task.dataset["solution"][:]


def _asked(task):
    return [prompt[-1]["content"] for prompt in task.dataset["prompt"]]


# What every file may be


def test_bom_crlf_blank_end_and_duplicates_are_fine(write):
    line = json.dumps(GSM8K).encode()
    task = load_task("gsm8k", path=write(raw=b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n\n  \n\n"))
    assert _golds(task) == ["4", "4"]


def test_line_separators_inside_text_do_not_break_lines(write):
    row = {"question": "a\u2028b\u0085c", "answer": "1"}
    task = load_task("jsonl", path=write(raw=json.dumps(row, ensure_ascii=False).encode()), answer_format=None)
    assert _asked(task) == ["a\u2028b\u0085c"]


def test_limit_samples_by_seed_in_file_order(write):
    path = write(*({"question": f"q{i}", "answer": str(i)} for i in range(100)))
    one, same, other = (_golds(load_task("jsonl", path=path, limit=10, seed=seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert [int(gold) for gold in one] == sorted(map(int, one))
    assert len(_golds(load_task("jsonl", path=path, limit=1000))) == 100


def test_a_local_file_is_the_split(write):
    assert load_task("gsm8k", path=write(GSM8K), split="held-out").split == "held-out"


# What no file may be


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ('{"question": ', "invalid JSON"),
        ('{"question": "q", "answer": NaN}', "invalid JSON: NaN"),
        ("[1, 2]", "a row must be a JSON object, not [1, 2]"),
        ("", "blank line between rows"),
        ({"answer": "#### 1"}, "field 'question' is missing; the row has 'answer'"),
        ({}, "field 'question' is missing; the row has no fields"),
        ({"question": "q"}, "field 'answer' is missing"),
        ({"question": 3, "answer": "#### 1"}, "field 'question' must be text, not 3"),
        ({"question": "q", "answer": 1}, "field 'answer' must be text, not 1"),
        ({"question": None, "answer": "#### 1"}, "field 'question' must be text, not null"),
        ({"question": " ", "answer": "#### 1"}, "field 'question' is empty"),
        ({"question": "q", "answer": ""}, "field 'answer' is empty"),
        ({"question": "q", "answer": "It is 4."}, "field 'answer' has no '####'"),
        ({"question": "q", "answer": "####  \n"}, "field 'answer' has no result after '####'"),
        ({"question": "q", "answer": "#### four"}, "ends in 'four' after '####', which is not a number"),
        ('{"question": "\\ud800", "answer": "#### 1"}', "field 'question' holds half of a surrogate pair"),
    ],
)
def test_a_malformed_row_is_named(write, second, problem):
    path = write(GSM8K, second, GSM8K)
    with pytest.raises(ValueError, match="line 2") as caught:
        load_task("gsm8k", path=path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: ")
    assert problem in message
    assert "\n" not in message


def test_a_malformed_row_is_found_beyond_the_limit(write):
    with pytest.raises(ValueError, match="line 2"):
        load_task("gsm8k", path=write(GSM8K, "{"), limit=1)


def test_not_utf8(write):
    with pytest.raises(ValueError, match=r"line 2: not UTF-8 \(byte 15\)"):
        load_task("jsonl", path=write(raw=b'{"question": "q", "answer": "1"}\n{"question": "\xff", "answer": "1"}'))


def test_missing_folder_and_empty_file(tmp_path, write):
    with pytest.raises(ValueError, match=r"cannot read '.*nowhere\.jsonl': no such file"):
        load_task("gsm8k", path=tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="cannot read"):
        load_task("gsm8k", path=tmp_path)
    with pytest.raises(ValueError, match="holds no rows"):
        load_task("gsm8k", path=write(raw=b"\n\n"))


def test_the_hub_out_of_reach_is_one_line(monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match="cannot load split 'test' of 'openai/gsm8k' from the hub: Couldn't") as caught:
        load_task("gsm8k", split="test")
    assert "give path" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_rows_are_read_and_named(monkeypatch):
    import datasets

    asked = []

    def hub(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([GSM8K, {"question": "q", "answer": "none"}])

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(ValueError, match=r"^openai/gsm8k, test row 1: field 'answer' has no '####'"):
        load_task("gsm8k", split="test")
    assert asked == [("openai/gsm8k", "main", "test")]


# GSM8K


def test_gsm8k(write):
    rows = [GSM8K, {"question": "q", "answer": "so $<<1>>1,234\n#### $1,234"}, {"question": "q", "answer": "#### -7\n"}]
    task = load_task("gsm8k", path=write(*rows), split="test")
    assert _golds(task) == ["4", "1234", "-7"]
    assert "\\boxed{}" in _asked(task)[0]
    assert _asked(task)[0].startswith("How many?\n\n")
    assert task.dataset.column_names == ["prompt", "solution"]
    bare = load_task("gsm8k", path=write(*rows), answer_format=None, instruction="Be brief.").dataset[0]["prompt"]
    assert bare == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]


# DAPO-Math-17k

WRAPPED = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nFind $x$.\n\nIt is positive.\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [{"role": "user", "content": WRAPPED}], "reward_model": {"ground_truth": "34", "style": "rule"}},
        {"prompt": [{"content": "Find $x$.\n\nIt is positive.", "role": "user"}], "reward_model": {"ground_truth": 34}},
        {"prompt": "Find $x$.\n\nIt is positive.", "solution": "34", "reward_model": {"ground_truth": "34"}},
        {"question": "Find $x$.\n\nIt is positive.", "answer": "34"},
        {"problem": "Find $x$.\n\nIt is positive.", "answer": 34.0},
    ],
)
def test_dapo_layouts(write, row):
    task = load_task("dapo_math", path=write(row), answer_format=None)
    assert _asked(task) == ["Find $x$.\n\nIt is positive."]
    assert _golds(task) == ["34"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"answer": "1"}, "field 'question', 'problem' or 'prompt' is missing"),
        ({"problem": "p"}, "field 'reward_model', 'answer' or 'solution' is missing"),
        ({"problem": "p", "reward_model": "34"}, "field 'reward_model' must be an object"),
        ({"problem": "p", "reward_model": {"style": "rule"}}, "field 'ground_truth' is missing"),
        ({"problem": "p", "answer": True}, "field 'answer' must be text or a number, not true"),
        ({"prompt": [], "answer": "1"}, "field 'prompt' must be one message"),
        ({"prompt": [{"role": "user", "content": 1}], "answer": "1"}, "field 'prompt' must be one message"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}, "field 'prompt' must be one message"),
        ({"prompt": WRAPPED.replace("Find $x$.\n\nIt is positive.", ""), "answer": "1"}, "has no problem inside"),
    ],
)
def test_dapo_malformed(write, row, problem):
    with pytest.raises(ValueError, match="line 1") as caught:
        load_task("dapo_math", path=write(row))
    assert problem in str(caught.value)


# Any JSON Lines


def test_jsonl_columns(write):
    rows = [
        {"ask": "q1", "gold": "1,234", "year": 2024, "solution": "worked", "note": None},
        {"ask": "q2", "gold": 5, "topic": "algebra"},
    ]
    task = load_task("jsonl", path=write(*rows), question_column="ask", answer_column="gold")
    assert task.dataset.column_names == ["prompt", "solution", "year", "note", "topic"]
    assert _golds(task) == ["1234", "5"]
    assert task.dataset["year"][:] == [2024, None]
    assert task.dataset["topic"][:] == [None, "algebra"]


def test_jsonl_wants_a_path_and_its_columns(write):
    with pytest.raises(ValueError, match="'jsonl' reads a file: give its path"):
        load_task("jsonl")
    with pytest.raises(ValueError, match="line 1: field 'gold' is missing; the row has 'question', 'answer'"):
        load_task("jsonl", path=write({"question": "q", "answer": "1"}), answer_column="gold")


def test_jsonl_column_that_would_hide_a_reward_argument(write):
    with pytest.raises(ValueError, match=r"data\.jsonl, line 1: field 'completions' would hide .* rename it"):
        load_task("jsonl", path=write({"question": "q", "answer": "1", "completions": "x"}))


def test_jsonl_mixed_column(write):
    rows = [{"question": "q", "answer": "1", "year": 2024}, {"question": "q", "answer": "1", "year": "old"}]
    with pytest.raises(ValueError, match="line 2: field 'year' is text, but a number in an earlier row"):
        load_task("jsonl", path=write(*rows))


def test_jsonl_column_that_no_table_holds(write):
    row = {"question": "q", "answer": "1", "size": 2**80}
    with pytest.raises(ValueError, match="cannot be stored as a table"):
        load_task("jsonl", path=write(row))


def test_latex_answers_are_scored_right(write):
    answers = [r"2\sqrt{3}", r"\frac{1}{2}", r"$\frac12$", r"50\%", "(1,2)", "1{,}000", r"\boxed{7}"]
    said = [r"2\sqrt{3}", r"\frac{1}{2}", "0.5", r"50\%", "(1,2)", "1000", "7"]
    golds = _golds(load_task("jsonl", path=write(*({"question": "q", "answer": answer} for answer in answers))))
    right = [[{"role": "assistant", "content": f"\\boxed{{{text}}}"}] for text in said]
    wrong = [[{"role": "assistant", "content": f"\\boxed{{{text}}}"}] for text in ("2", "1", "2", "51", "4", "1", "8")]
    assert accuracy_reward(right, golds) == [1.0] * 7
    assert accuracy_reward(wrong, golds) == [0.0] * 7
