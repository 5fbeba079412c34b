from __future__ import annotations

from pathlib import Path

import pytest

from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty, Strategy, load_strategies, save_strategies
from entropy_rft.difficulty import strategies as module
from entropy_rft.tasks import DIRECT, STEP_BY_STEP, STOP_EARLY

EASY, NORMAL, HARD = Difficulty.EASY, Difficulty.NORMAL, Difficulty.HARD


def test_the_published_numbers_with_the_texts_that_the_embedded_models_know():
    values = [(s.instruction, s.temperature, s.max_tokens_fraction) for s in DEFAULT_STRATEGIES.values()]
    assert values == [(DIRECT, 0.5, 0.4), (STEP_BY_STEP, 0.8, 1.0), (STOP_EARLY, 0.4, 0.5)]
    assert list(DEFAULT_STRATEGIES) == [EASY, NORMAL, HARD]
    assert [difficulty.index for difficulty in (EASY, NORMAL, HARD)] == [0, 1, 2]


def test_the_shipped_file_is_the_default():
    assert load_strategies(Path(module.__file__).with_name("strategies.yaml")) == DEFAULT_STRATEGIES


def test_through_a_file(tmp_path):
    strategies = {**DEFAULT_STRATEGIES, EASY: Strategy(EASY, "kurz: bitte", 0.0, 0.25)}
    save_strategies(strategies, tmp_path / "s.yaml", "made by hand\nand by ear")
    assert load_strategies(tmp_path / "s.yaml") == strategies
    assert (tmp_path / "s.yaml").read_text().startswith("# made by hand\n# and by ear\n")


def test_how_much_to_think_through_a_file(tmp_path):
    fields = {
        "thinking_tokens": 0,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
        "extra_body": {"top_p": 0.9, "stop": ["x"]},
    }
    strategy = Strategy(EASY, "", 0.5, 0.4, **fields)
    assert strategy.effort == fields
    strategies = {**DEFAULT_STRATEGIES, EASY: strategy}
    save_strategies(strategies, tmp_path / "s.yaml")
    assert load_strategies(tmp_path / "s.yaml") == strategies
    assert len({strategy, Strategy(EASY, "", 0.5, 0.4, **fields)}) == 1  # still hashable


def test_fields_that_are_not_set_leave_no_trace(tmp_path):
    """Caches compare strategies by these values: those of earlier versions must stay as they are."""
    (tmp_path / "s.yaml").write_text(
        "easy: {thinking_tokens: null, reasoning_effort: null, chat_template_kwargs: {}, extra_body: null}"
    )
    assert load_strategies(tmp_path / "s.yaml") == DEFAULT_STRATEGIES
    assert list(DEFAULT_STRATEGIES[EASY].to_dict()) == ["instruction", "temperature", "max_tokens_fraction"]


def test_what_a_strategy_holds_is_its_own():
    given = {"top_k": [1]}
    strategy = Strategy(EASY, "", 0.5, 0.4, extra_body=given)
    given["top_k"].append(2)
    assert strategy.extra_body == {"top_k": [1]}


def test_what_is_left_out_keeps_its_default(tmp_path):
    (tmp_path / "s.yaml").write_text("hard: {temperature: 0.1}\n")
    strategies = load_strategies(tmp_path / "s.yaml")
    assert strategies[HARD] == Strategy(HARD, STOP_EARLY, 0.1, 0.5)
    assert strategies[EASY] == DEFAULT_STRATEGIES[EASY]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hrad: {temperature: 0.1}", "no difficulty 'hrad'; did you mean hard?"),
        ("hard: {temprature: 0.1}", "hard has no field 'temprature'; did you mean temperature?"),
        ("hard: {temperature: -1}", "hard: temperature must be 0"),
        ("hard: {temperature: .nan}", "temperature"),
        ("hard: {temperature: warm}", "temperature must be a number, not 'warm'"),
        ("hard: {max_tokens_fraction: 0}", "max_tokens_fraction must be above 0 and at most 1, got 0"),
        ("hard: {max_tokens_fraction: 1.5}", "max_tokens_fraction must be above 0"),
        ("hard: {instruction: [a]}", "instruction must be text"),
        ("hard: {thinking_token: 5}", "hard has no field 'thinking_token'; did you mean thinking_tokens?"),
        ("hard: {thinking_tokens: -1}", "hard: thinking_tokens must be 0 or more, got -1"),
        ("hard: {thinking_tokens: 1.5}", "hard: thinking_tokens must be a whole number, not 1.5"),
        ("hard: {thinking_tokens: yes}", "hard: thinking_tokens must be a whole number, not True"),
        ("hard: {reasoning_effort: lo}", "not 'lo'; did you mean low?"),
        ("hard: {chat_template_kwargs: [a]}", "hard: chat_template_kwargs must map names to values, not be ['a']"),
        ("hard: {chat_template_kwargs: {tokenize: no}}", "chat_template_kwargs must not set 'tokenize'"),
        ("hard: {chat_template_kwargs: {a: 2026-01-01}}", "chat_template_kwargs must hold JSON values"),
        ("hard: {extra_body: {top_p: .nan}}", "hard: extra_body must hold JSON values"),
        ("hard: {extra_body: {messages: []}}", "extra_body must not set 'messages': it is not a strategy's to choose"),
        ("hard: {extra_body: {model: m}}", "extra_body must not set 'model'"),
        ("hard: {extra_body: {stream: true}}", "extra_body must not set 'stream'"),
        ("hard: {extra_body: {max_tokens: 5}}", "must not set 'max_tokens': use the strategy's max_tokens_fraction"),
        ("hard: {extra_body: {thinking_token_budget: 5}}", "use the strategy's thinking_tokens"),
        ("hard: 5", "hard must map instruction"),
        ("- hard", "must map easy, normal and hard"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(text, message, tmp_path):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"s\.yaml") as caught:
        load_strategies(tmp_path / "s.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file():
    with pytest.raises(ValueError, match=r"'nowhere\.yaml' cannot be read: No such file"):
        load_strategies("nowhere.yaml")


def test_an_unknown_difficulty():
    assert Strategy("hard", "", 0, 1).difficulty is HARD
    with pytest.raises(ValueError, match="not 'harder'; did you mean hard"):
        Strategy("harder", "", 0, 1)


def test_the_instruction_in_a_prompt():
    strategy = Strategy(EASY, "Be quick.", 0.5, 0.4)
    user = {"role": "user", "content": "1 + 1?"}
    system = {"role": "system", "content": "You count."}
    assert strategy.prompt([user]) == [{"role": "system", "content": "Be quick."}, user]
    assert strategy.prompt([system, user]) == [{"role": "system", "content": "You count.\n\nBe quick."}, user]
    assert system["content"] == "You count."
    assert strategy.prompt("1 + 1?") == "Be quick.\n\n1 + 1?"
    assert Strategy(EASY, "", 0.5, 0.4).prompt([user]) == [user]


def test_the_instruction_at_the_end_of_the_users_turn():
    strategy = Strategy(EASY, "Be quick.", 0.5, 0.4)
    user, system = {"role": "user", "content": "1 + 1?"}, {"role": "system", "content": "You count."}
    answer, parts = {"role": "assistant", "content": "2"}, [{"type": "text", "text": "And 2 + 2?"}]
    ended = {"role": "user", "content": "1 + 1?\n\nBe quick."}
    assert strategy.prompt([user], "user_end") == [ended]
    assert strategy.prompt([system, user, answer], "user_end") == [system, ended, answer]
    several = [user, answer, {"role": "user", "content": parts}, answer]
    found = strategy.prompt(several, "user_end")
    assert found == [
        user,
        answer,
        {"role": "user", "content": [*parts, {"type": "text", "text": "\n\nBe quick."}]},
        answer,
    ]
    assert len(parts) == 1
    assert strategy.prompt([system, answer], "user_end") == [system, answer]  # nobody's turn: it is left away
    assert strategy.prompt("1 + 1?", "user_end") == "Be quick.\n\n1 + 1?"


def test_the_share_of_a_budget():
    strategy = Strategy(EASY, "", 0.5, 0.4)
    assert [strategy.max_tokens(budget) for budget in (100, 7, 1)] == [40, 2, 1]
    assert strategy.answer_tokens(100) == 40
    assert Strategy(EASY, "", 0.5, 0.4, thinking_tokens=10).answer_tokens(100) == 100
