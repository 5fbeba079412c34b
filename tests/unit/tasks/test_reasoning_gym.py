"""reasoning-gym as a task: its generators, its verifiers, levels, splits and errors."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from reasoning_gym.factory import CURRICULA, DATASETS

from entropy_rft import PEARReward
from entropy_rft.difficulty.wording import wordless_id
from entropy_rft.rewards import timed
from entropy_rft.rewards.fitting import fitted
from entropy_rft.tasks import generators, load_task, task_rows
from entropy_rft.tasks.reasoning_gym import SPLITS, questions, split_of
from entropy_rft.tasks.verifier import SCORER, TAGGED, read_answer

# Their questions take a second or more each.
SLOW = {"futoshiki", "intermediate_integration", "knight_swap", "puzzle24", "quantum_lock", "zebra_puzzles"}
# Those without a gold answer, and an answer that is right by their own metadata.
KNOWN = {
    "boxnet": None,
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
    "rush_hour": None,
}


def load(generator: str = "chain_sum", **options: Any) -> Any:
    return load_task("reasoning_gym", generator=generator, **{"limit": 3, **options})


def rewarded(task: Any, answers: list[str], reward: int = 0) -> list[float]:
    completions = [[{"role": "assistant", "content": f"hm</think> {answer}"}] for answer in answers]
    return task.reward_funcs[reward](completions=completions, reasoning_gym=task.dataset["reasoning_gym"][:])


def problem_of(generator: str) -> str | None:
    """What is wrong with three questions of a generator; None where nothing is."""
    task = load(generator)
    golds, entries = task.dataset["solution"][:], [generators.from_text(t) for t in task.dataset["reasoning_gym"][:]]
    if len({entry["question"] for entry in entries}) != 3:
        return "the same question twice"
    if generator in KNOWN:
        if golds != [None] * 3:
            return f"solutions {golds}"
        example = KNOWN[generator]
        if example is None:
            return None if rewarded(task, ["<answer>no</answer>"] * 3) == [0.0] * 3 else "nonsense is right"
        golds = [str(entry["metadata"][example]).replace("'", '"') for entry in entries]
        if generator == "rubiks_cube":
            golds = [entry["metadata"][example] for entry in entries]
        if generator == "graph_color":
            golds = [generators.json.dumps(entry["metadata"][example]) for entry in entries]
    for form in ("<answer>{}</answer>", "{}"):
        scores = rewarded(task, [form.format(gold) for gold in golds])
        if scores != [1.0] * 3:
            return f"its own answers, as {form!r}, are rewarded {scores}"
    return None


def problems(names: set[str]) -> dict[str, str]:
    found = {}
    for name in sorted(names):
        try:
            problem = problem_of(name)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            found[name] = problem
    return found


def test_every_generator_loads_and_is_right_about_its_own_answers() -> None:
    names = set(DATASETS) - SLOW - {"composite"}
    assert len(names) >= 98
    assert problems(names) == {}


@pytest.mark.soak
def test_the_slow_generators_too() -> None:
    assert problems(SLOW) == {}


def test_a_mixture_of_generators_with_a_level_for_each() -> None:
    mixed = [{"name": "gcd"}, {"name": "chain_sum", "weight": 2, "config": {"max_terms": 3}}]
    task = load("composite", datasets=mixed, level_by="source_dataset", limit=12)
    assert set(task.dataset["level"][:]) == {"gcd", "chain_sum"}
    assert rewarded(task, task.dataset["solution"][:]) == [1.0] * 12


def test_what_a_row_holds() -> None:
    task = load(min_terms=2, max_terms=2, instruction="Be brief.")
    (row, *_) = task_rows(task)
    entry = generators.from_text(row["reasoning_gym"])
    assert (entry["generator"], entry["settings"], entry["level"]) == (
        "chain_sum",
        {"min_terms": 2, "max_terms": 2},
        None,
    )
    assert row["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert row["prompt"][1]["content"] == f"{entry['question'].strip()}\n\n{TAGGED}"
    assert row["solution"] == entry["answer"]
    assert task.name == "reasoning_gym/chain_sum"
    assert "level" not in row  # a range of terms and of digits is no level
    assert load(answer_format=None).dataset[0]["prompt"][0]["content"] == load().dataset[0]["prompt"][0][
        "content"
    ].removesuffix(f"\n\n{TAGGED}")


def test_the_wording_names_no_other_question() -> None:
    (plain, *_), (worded, *_) = task_rows(load()), task_rows(load(answer_format="Reply in JSON.", instruction="Hm."))
    assert wordless_id(plain, {}) == wordless_id(worded, {"answer_format": "Reply in JSON.", "instruction": "Hm."})


def test_a_seed_makes_the_same_questions_and_a_limit_their_start() -> None:
    texts = [prompt[0]["content"] for prompt in load(limit=40).dataset["prompt"]]
    assert [prompt[0]["content"] for prompt in load(limit=15).dataset["prompt"]] == texts[:15]
    assert len(set(texts)) == 40
    other = [prompt[0]["content"] for prompt in load(limit=40, seed=1).dataset["prompt"]]
    assert len(set(texts) & set(other)) < 5


@pytest.mark.parametrize("generator", ["chain_sum", "coin_flip"])  # the second has few different questions
def test_the_splits_share_no_question_whatever_the_seed(generator: str) -> None:
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        drawn = [q["question"] for seed in (0, 1) for q in islice(questions(generator, {}, None, split, seed), 60)]
        found[split] = set(drawn)
        assert {split_of(question) for question in found[split]} == {split}
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


def test_levels_take_turns_and_are_a_column() -> None:
    task = load(levels=[0, 3], limit=6)
    assert task.dataset["level"][:] == [0, 3, 0, 3, 0, 3]
    entries = [generators.from_text(text)["metadata"] for text in task.dataset["reasoning_gym"][:]]
    assert [entry["num_terms"] for entry in entries] == [2, 5, 2, 5, 2, 5]  # not the easier ones too
    assert rewarded(task, task.dataset["solution"][:]) == [1.0] * 6
    assert load("gsm_symbolic").dataset["level"][:] == [1.0] * 3  # the generator's own word for it
    by_terms = load(level_by="num_terms", limit=8)
    assert set(by_terms.dataset["level"][:]) <= set(range(2, 7))


@pytest.mark.soak
def test_every_level_of_every_curriculum_is_a_question_or_one_line() -> None:
    refused: dict[str, list[int]] = {}
    for generator in sorted(set(CURRICULA) - SLOW):
        for level in range(generators.level_count(generator)):
            try:
                generators.make(generator, {}, level, seed=0, size=1)
            except ValueError as error:
                if f"generator {generator!r} at level {level} refuses its settings" in str(error):
                    refused.setdefault(generator, []).append(level)
    # Levels that reasoning-gym 0.1.25 defines, and then refuses itself.
    assert refused == {"caesar_cipher": [2, 3], "modulo_grid": [1], "rubiks_cube": [4]}


def test_partial_credit_adds_up_to_the_verifiers_score() -> None:
    task = load("chain_sum", partial_credit=True)
    right = task.dataset["solution"][:]
    answers = [right[0], f"<answer>{right[1]}, I guess</answer>", "none"]
    correct, rest = rewarded(task, answers), rewarded(task, answers, reward=1)
    assert correct == [1.0, 0.0, 0.0]
    assert 0 < rest[1] < 1
    assert (rest[0], rest[2]) == (0.0, 0.0)
    lenient = load("chain_sum", threshold=0.1)
    assert rewarded(lenient, answers) == [1.0, 1.0, 0.0]
    assert len(lenient.reward_funcs) == 1


def test_the_reward_can_be_pickled_and_looks_for_the_models_own_marker() -> None:
    task = load()
    reward = pickle.loads(pickle.dumps(task.reward_funcs[0]))
    gold, entry = task.dataset["solution"][0], task.dataset["reasoning_gym"][:1]
    assert reward(completions=[f"</think>{gold}"], reasoning_gym=entry) == [1.0]
    assert reward(completions=[f"{gold}"], reasoning_gym=entry) == [0.0]  # it has not ended its thinking
    other = fitted(PEARReward(reward), "####")
    assert other(completions=[f"a</think>b #### {gold}"], reasoning_gym=entry, phase_entropies=[(0.5, 0.25)]) == [0.75]
    assert reward.think_end_token == "</think>"
    plain = load(thinking=False).reward_funcs[0]
    assert fitted(plain, "####")(completions=[gold], reasoning_gym=entry) == [1.0]


def test_what_is_logged() -> None:
    task, columns = load(), {}
    gold = task.dataset["solution"][0]
    task.reward_funcs[0](
        completions=[f"</think>{gold}", "</think>", "x"],
        reasoning_gym=task.dataset["reasoning_gym"][:],
        log_extra=columns.__setitem__,
    )
    assert columns == {"answer_read": [gold, "", ""], "score": [1.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    ("text", "gold", "answer"),
    [
        ("<answer>1</answer> no, <answer> 2\n</answer>", "7", "2"),
        (r"so \boxed{3} or \boxed{\frac{1}{2}} it is", "7", r"\frac{1}{2}"),
        (r"\boxed{4} then \boxed{5", "7", "4"),  # the last was cut off
        (r"<answer>6</answer> \boxed{7}", "7", "6"),
        ("First 1.\nAnswer: 7\n\n", "7", "7"),
        ("The final answer is 7", "7", "7"),
        ("answering seven", "7", "answering seven"),
        ("7 + 4 = 11.", "12", "11"),
        ("4 - 9 = -5, so -5,", "1.5", "-5"),
        ("10-3", "7", "3"),
        ("It costs $1,234.50 (x2 less)", "7", "2"),
        ("Answer: ab", "cd", "ab"),
        ("\n1 2\n3 4\n", "1 2\n3 4", "1 2\n3 4"),
        ("move A\nmove B", None, "move A\nmove B"),
        ("", "7", ""),
    ],
)
def test_how_an_answer_is_read(text: str, gold: str | None, answer: str) -> None:
    assert read_answer(text, gold) == answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timed, "SECONDS", 0.5)
    yield
    SCORER.close()


def test_an_endless_answer_and_one_that_raises_are_wrong(
    impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # spiral_matrix's verifier evaluates what looks like a list.
    task = load("spiral_matrix", limit=3)
    endless = "[sum(1 for a in range(10**6) for b in range(10**6))]"
    assert rewarded(task, [endless, "[1/0]", task.dataset["solution"][2]]) == [0.0, 0.0, 1.0]
    assert "takes too long to check counts as wrong: [sum(1" in caplog.text
    # A row whose question this version of the package cannot make.
    broken = task.dataset["reasoning_gym"][0].replace("spiral_matrix", "chain_sum").replace('"answer"', '"other"')
    (value,) = task.reward_funcs[0](completions=["</think>5"], reasoning_gym=[broken.replace('"other"', '"answer"', 1)])
    assert value == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": None}, "needs its option generator"),
        ({"generator": "chain_sun"}, "no generator 'chain_sun'; did you mean chain_sum?"),
        ({"generator": 5}, "no generator 5"),
        ({"min_term": 3}, "'chain_sum' has no setting 'min_term'; did you mean min_terms?"),
        ({"level": 3}, "no setting 'level'; did you mean levels?"),
        ({"size": 3}, "'size' is no option of task 'reasoning_gym': give limit"),
        ({"min_terms": "x"}, r"refuses its settings \(min_terms='x'\)"),
        ({"min_terms": 9}, "max_terms must be >= min_terms"),
        ({"levels": [11]}, "levels 0 to 10, not 11"),
        ({"levels": [0, 0]}, "each once"),
        ({"levels": []}, "each once"),
        ({"levels": [0], "level_by": "num_terms"}, "exclude each other"),
        ({"levels": [1], "max_terms": 4}, "max_terms is what levels sets"),
        ({"generator": "acre", "levels": [0]}, "'acre' has no curriculum"),
        ({"level_by": "num_term"}, "no 'num_term' in their metadata; did you mean num_terms?"),
        ({"level_by": "difficulty"}, "'difficulty' of generator 'chain_sum' is no number and no word"),
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"split": "dev"}, "no split 'dev'; its splits: train, validation, test"),
        ({"path": "x.jsonl"}, "reads no file"),
        ({"generator": "word_sorting", "transformation": "big"}, "one of lowercase, uppercase, original"),
        ({"generator": "coin_flip", "limit": 5_000}, "no more different questions in the split 'train'"),
        ({"generator": "composite", "datasets": ["gcd"]}, "datasets must be a list of mappings"),
        ({"generator": "composite", "datasets": [{"name": "gdc"}]}, "did you mean gcd?"),
        ({"generator": "composite", "datasets": [{"name": "gcd", "config": {"x": 1}}]}, "'gcd' has no setting 'x'"),
        ({"min_terms": {1, 2}}, "such as JSON can hold"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"threshold": "1"}, {"partial_credit": 1}, {"thinking": "no"}, {"levels": "0"}])
def test_wrong_types_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        load(**options)


def test_settings_of_other_types_than_yaml_has() -> None:
    shouting = load("word_sorting", transformation="uppercase")
    for text in shouting.dataset["reasoning_gym"][:]:
        assert all(word.isupper() for word in generators.from_text(text)["metadata"]["sorted_words"])
    assert rewarded(shouting, shouting.dataset["solution"][:]) == [1.0] * 3
    late = load("time_intervals", min_time="12:00:00", max_time="13:00:00", task_types=["time"])
    assert rewarded(late, late.dataset["solution"][:]) == [1.0] * 3


def test_json_keeps_tuples_and_the_keys_of_mappings() -> None:
    value = {"a": (1, [2, (3,)]), "b": {1: "x", (2, 3): None}, "c": {}}
    assert generators.from_text(generators.to_text(value)) == value


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r'pip install "entropy_rft\[reasoning-gym\]"'):
        load()
