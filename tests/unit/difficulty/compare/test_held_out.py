"""Which questions are held out, and that answers to them are comparable, kept, and asked for once."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.difficulty import DEFAULT_STRATEGIES, Difficulty, DifficultyProbe, collect_traces, load_traces
from entropy_rft.difficulty.compare.comparison import Questions, answer_questions, evaluate_probe, held_out_questions
from entropy_rft.difficulty.compare.tuning import trial_lines, tune_strategies
from entropy_rft.difficulty.store import read_rows_and_vectors
from entropy_rft.difficulty.strategies import DIFFICULTIES, NAMES
from entropy_rft.sampling import Completion, ThinkEndMarker, TransformersSampler
from entropy_rft.tasks import load_task

SOURCE = {"name": DEFAULT_TASK, "split": "validation", "limit": 8}
LABELS = [Difficulty.EASY, Difficulty.HARD]


class Scripted:
    """Answers at once, each question with its own length, and remembers what it was asked; dies when told to."""

    def __init__(self, lives=10**6):
        self.calls, self.lives = [], lives

    def sample(self, prompts, **settings):
        if not self.lives:
            raise KeyboardInterrupt
        self.lives -= 1
        questions = [prompt[-1]["content"] for prompt in prompts]
        self.calls.append({"questions": questions, "prompts": prompts, **settings})
        tokens = [
            [min(len(text) + i, settings["max_tokens"]) for i in range(settings["samples"])] for text in questions
        ]
        return [[Completion([1], [2] * length, "7", False) for length in own] for own in tokens]

    @property
    def asked(self):
        """Questions, once for all three strategies."""
        return [question for call in self.calls[::3] for question in call["questions"]]


@pytest.fixture(scope="module")
def model(random_model_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(random_model_dir), AutoTokenizer.from_pretrained(random_model_dir)


@pytest.fixture(scope="module")
def collect(model, tmp_path_factory):
    base = tmp_path_factory.mktemp("traces")

    def run(name, sampler=None, **options):
        own = {name: options.pop(name, SOURCE[name]) for name in ("limit", "split")}
        source = {**SOURCE, **own, "options": options}
        task = load_task(**{k: v for k, v in source.items() if k != "options"}, **options)
        collect_traces(
            *model, task, base / name, sampler=sampler or TransformersSampler(*model), model_name="m", source=source,
            samples=2, max_tokens=4, chunk_size=4, progress=False,
        )  # fmt: skip
        return base / name

    return run


@pytest.fixture(scope="module")
def traces(collect):
    return collect("plain")


def probe_of(directory, count):
    """One that says it was fitted to the first `count` questions of the traces."""
    traces = load_traces(directory)
    probe = DifficultyProbe("linear", base_model="m", fingerprint=traces.fingerprint)
    states = np.concatenate([traces.hidden] * 4)
    probe.fit(states, [LABELS[i % 2] for i in range(len(states))], epochs=2)
    probe.questions = traces.questions[:count]
    return probe


def ask(questions, sampler, directory, strategies=DEFAULT_STRATEGIES, **options):
    settings = {"samples": 2, "max_tokens": 50, "chunk_size": 2, "progress": False, **options}
    return answer_questions(questions, strategies, sampler, directory, **settings)


def test_fitted_questions_are_left_out(traces):
    questions = held_out_questions([traces], probe_of(traces, 3))
    assert (len(questions), questions.fitted) == (5, 3)
    ((task, rows),) = questions.parts
    expected = [row["prompt"] for row in task.dataset][3:]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in questions.traces.rows] == expected
    with pytest.raises(ValueError, match="was fitted to all 8 questions of these traces"):
        held_out_questions([traces], probe_of(traces, 8))


def test_traces_are_read_once(traces, collect, monkeypatch):
    """Their hidden states are most of what they hold."""
    other = collect("twelve", limit=12, split="test")
    probe = probe_of(traces, 3)
    read = []
    monkeypatch.setattr(
        "entropy_rft.difficulty.traces.read_rows_and_vectors",
        lambda directory, column: read.append(directory) or read_rows_and_vectors(directory, column),
    )
    questions = held_out_questions([traces, other], probe)
    assert read == [traces, other]
    assert [len(rows) for _, rows in questions.parts] == [5, 12]
    asked = [row["prompt"] for _, rows in questions.parts for row in rows]
    assert asked == [row["prompt"] for row in questions.traces.rows]


def test_fitted_questions_are_left_out_in_other_words_too(traces, collect):
    worded = collect("worded", instruction="Be brief.", answer_format="As a number.")
    questions = held_out_questions([worded], probe_of(traces, 3))
    assert (len(questions), questions.fitted) == (5, 3)
    assert held_out_questions([traces], probe_of(worded, 5)).fitted == 5
    older = probe_of(traces, 4)
    older.questions = load_traces(worded).ids[:4]  # probes once named the wording
    assert held_out_questions([worded], older).fitted == 4


def test_a_task_that_has_other_questions_now_is_refused(traces, collect):
    changed = collect("changed", limit=6)
    settings = json.loads((changed / "settings.json").read_text())
    settings["task"]["seed"] = 9
    (changed / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=rf"{DEFAULT_TASK!r} has other questions now than when .*changed.* was collected"
    ):
        held_out_questions([changed], probe_of(traces, 3))


def test_instructions_go_where_the_template_lets_them(traces, model, tmp_path):
    """As in the router: at the end of the user's turn where a system message would be refused."""
    questions = held_out_questions([traces], probe_of(traces, 3))
    asking = Scripted()
    asking.tokenizer = copy.deepcopy(model[1])
    ask(questions, asking, tmp_path / "system")
    assert asking.calls[0]["prompts"][0][0]["role"] == "system"
    asking.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0]['content'] }}"
    )
    asking.calls.clear()
    ask(questions, asking, tmp_path / "user")
    (message,) = asking.calls[0]["prompts"][0]
    assert message["role"] == "user"
    assert message["content"].endswith(DEFAULT_STRATEGIES[DIFFICULTIES[0]].instruction)


def test_every_strategy_answers_the_same_questions_with_the_same_seed(traces, tmp_path):
    sampler = Scripted()
    questions = held_out_questions([traces], probe_of(traces, 3))
    answers = ask(questions, sampler, tmp_path)
    assert answers.tokens.shape == answers.correct.shape == (3, 5, 2)
    chunks = [sampler.calls[start : start + 3] for start in range(0, len(sampler.calls), 3)]
    assert [len(chunk[0]["questions"]) for chunk in chunks] == [2, 2, 1]
    for chunk in chunks:
        assert len({call["seed"] for call in chunk}) == 1
        assert [call["questions"] for call in chunk] == [chunk[0]["questions"]] * 3
        for call, difficulty in zip(chunk, DIFFICULTIES, strict=True):
            strategy = DEFAULT_STRATEGIES[difficulty]
            assert call["prompts"][0][0] == {"role": "system", "content": strategy.instruction}
            assert (call["temperature"], call["max_tokens"]) == (strategy.temperature, strategy.max_tokens(50))
    assert len({chunk[0]["seed"] for chunk in chunks}) == 3
    lengths = [len(text) for text in sampler.asked]
    assert answers.tokens[1].tolist() == [[n, n + 1] for n in lengths]


def test_answers_are_kept_under_their_questions(traces, tmp_path):
    """Another split of the probe's, back again, and a kill in between: nothing is asked twice, all stay in order."""
    first = ask(held_out_questions([traces], probe_of(traces, 4)), Scripted(), tmp_path)
    more, sampler = held_out_questions([traces], probe_of(traces, 1)), Scripted(lives=5)
    with pytest.raises(KeyboardInterrupt):
        ask(more, sampler, tmp_path)
    assert len(sampler.asked) == 3  # of which the last one was lost
    again = Scripted()
    answers = ask(more, again, tmp_path)
    contents = [row["prompt"][-1]["content"] for row in more.traces.rows]
    assert again.asked == contents[2:3]
    assert answers.tokens[1, :, 0].tolist() == [len(text) for text in contents]
    assert (answers.tokens[:, 3:] == first.tokens).all()
    nobody = Scripted(lives=0)
    assert (ask(held_out_questions([traces], probe_of(traces, 4)), nobody, tmp_path).tokens == first.tokens).all()
    assert (
        ask(held_out_questions([traces], probe_of(traces, 6)), nobody, tmp_path).tokens == first.tokens[:, 2:]
    ).all()
    with pytest.raises(ValueError, match="was started with samples = 2, not 3: continue with the same settings"):
        ask(more, nobody, tmp_path, samples=3)


def test_how_much_to_think_reaches_the_sampler_and_the_cache(traces, tmp_path):
    """Answers under one limit on the thinking are never taken for those under another, or under none."""
    questions = held_out_questions([traces], probe_of(traces, 3))
    easy = replace(DEFAULT_STRATEGIES[Difficulty.EASY], thinking_tokens=9, reasoning_effort="low")
    limited = {**DEFAULT_STRATEGIES, Difficulty.EASY: easy}
    sampler = Scripted()
    ask(questions, sampler, tmp_path / "limited", limited)
    first, second = sampler.calls[:2]
    assert (first["thinking_tokens"], first["reasoning_effort"], first["max_tokens"]) == (9, "low", 50)
    assert not {"thinking_tokens", "reasoning_effort"} & set(second)  # samplers of others need not know them
    nobody = Scripted(lives=0)
    ask(questions, nobody, tmp_path / "limited", limited)
    for other in (DEFAULT_STRATEGIES, {**limited, Difficulty.EASY: replace(easy, thinking_tokens=10)}):
        with pytest.raises(ValueError, match="was started with strategies = "):
            ask(questions, nobody, tmp_path / "limited", other)
    marker = ThinkEndMarker(SimpleNamespace(encode=lambda *_, **__: []), "</think>")
    ask(questions, Scripted(), tmp_path / "marked", limited, marker=marker)
    assert stored(tmp_path / "marked")["think_end_token"] == "</think>"
    ask(questions, Scripted(), tmp_path / "plain", marker=marker)
    known = "schema fingerprint sampler strategies samples max_tokens top_p seed task digest ids questions chunk_size"
    assert set(stored(tmp_path / "plain")) == set(known.split())  # as in earlier versions


def test_answers_with_another_placement_are_not_reused(traces, tmp_path):
    questions, sampler = held_out_questions([traces], probe_of(traces, 3)), Scripted()
    ask(questions, sampler, tmp_path / "end", placement="user_end")
    assert [message["role"] for message in sampler.calls[0]["prompts"][0]] == ["user"]
    assert sampler.calls[0]["questions"][0].endswith(DEFAULT_STRATEGIES[Difficulty.EASY].instruction)
    with pytest.raises(ValueError, match="was started with placement = 'user_end', not None"):
        ask(questions, Scripted(lives=0), tmp_path / "end")
    ask(questions, Scripted(), tmp_path / "system")
    with pytest.raises(ValueError, match="was started with placement = None, not 'user_end'"):
        ask(questions, Scripted(lives=0), tmp_path / "system", placement="user_end")


def stored(directory):
    return json.loads((directory / "part-0" / "settings.json").read_text())


@pytest.mark.parametrize("limits", [(), (5, 3)])
def test_limits_on_the_thinking_are_tuned_instead_of_shares(limits, model, traces):
    probe, sampler = probe_of(traces, 3), Scripted()
    probe.strategies = {d: replace(s, thinking_tokens=7) for d, s in probe.strategies.items()}
    probe.placement = "user_end"
    _, tried = tune_strategies(
        probe, held_out_questions([traces], probe), sampler, model[1], samples=2, max_tokens=50,
        temperatures=(0.2, 0.4), fractions=(0.5, 1.0), thinking_tokens=limits, min_confidence=0, progress=False,
    )  # fmt: skip
    trials = next(own for own in tried.values() if own)
    assert [t.strategy.thinking_tokens for t in trials] == [7, *(sorted(limits) or [7]) * 2]
    assert [t.strategy.temperature for t in trials[1:]] == ([0.2] * 2 + [0.4] * 2 if limits else [0.2, 0.4])
    assert all(call["max_tokens"] == 50 for call in sampler.calls)
    assert all(prompt[0]["role"] == "user" for call in sampler.calls for prompt in call["prompts"])
    assert trial_lines(tried, probe.strategies)[0][2] == "≤7"


def test_a_collection_that_goes_on_costs_no_answers(model, collect, traces, tmp_path):
    """Four of eight questions are there: that is said, and the other four are all that is asked later."""

    class Dies:
        chunks = 1

        def sample(self, *args, **settings):
            if not self.chunks:
                raise KeyboardInterrupt
            self.chunks -= 1
            return TransformersSampler(*model).sample(*args, **settings)

    with pytest.raises(KeyboardInterrupt):
        collect("partly", sampler=Dies())
    partly = traces.parent / "partly"
    probe = probe_of(partly, 2)
    questions = held_out_questions([partly], probe)
    assert questions.traces.uncollected == 4
    answers = ask(questions, Scripted(), tmp_path)
    assert evaluate_probe(probe, questions, answers)["left_out"]["uncollected"] == 4
    sampler = Scripted()
    whole = held_out_questions([collect("partly")], probe)
    assert evaluate_probe(probe, whole, ask(whole, sampler, tmp_path))["left_out"]["uncollected"] == 0
    assert len(sampler.asked) == 4


def test_a_question_that_stands_in_a_file_twice(collect, traces, tmp_path):
    """Each has answers of its own, in its place, also after a kill between the two."""
    questions = held_out_questions([traces], probe_of(traces, 4))
    ((task, rows),) = questions.parts
    twice = Questions(questions.traces, [(task, [*rows, rows[0]])], 0)
    with pytest.raises(KeyboardInterrupt):
        ask(twice, Scripted(lives=6), tmp_path)
    sampler = Scripted()
    answers = ask(twice, sampler, tmp_path)
    lengths = [len(row["prompt"][-1]["content"]) for row in (*rows, rows[0])]
    assert answers.tokens[1, :, 0].tolist() == lengths
    assert sampler.asked == [rows[0]["prompt"][-1]["content"]]


def test_answers_under_other_options_of_a_task_are_asked_again(traces, tmp_path):
    """The options decide what counts as right."""
    questions = held_out_questions([traces], probe_of(traces, 4))
    ask(questions, Scripted(), tmp_path)
    (settings,) = questions.traces.settings
    settings["task"] = {**settings["task"], "options": {"thinking": False}}
    sampler = Scripted()
    ask(questions, sampler, tmp_path)
    assert len(sampler.asked) == 4
    again = Scripted()
    ask(questions, again, tmp_path)
    assert again.asked == []


def test_answers_of_another_model_are_refused(traces, tmp_path):
    questions = held_out_questions([traces], probe_of(traces, 4))
    ask(questions, Scripted(), tmp_path, fingerprint="another")
    with pytest.raises(ValueError, match="was started with fingerprint = 'another', not"):
        ask(questions, Scripted(), tmp_path)


def test_answers_of_earlier_versions_are_read(traces, tmp_path):
    """They say which questions they are of by a digest alone."""
    questions = held_out_questions([traces], probe_of(traces, 3))
    first = ask(questions, Scripted(), tmp_path)
    path = tmp_path / "part-0" / "settings.json"
    settings = json.loads(path.read_text())
    del settings["ids"]
    path.write_text(json.dumps(settings))
    (tmp_path / "part-0" / "data" / "chunk-000001.parquet").unlink()
    sampler = Scripted()
    assert (ask(questions, sampler, tmp_path, chunk_size=3).tokens == first.tokens).all()
    assert len(sampler.asked) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["part-0"]
    others = Scripted()
    ask(held_out_questions([traces], probe_of(traces, 5)), others, tmp_path)
    assert len(others.asked) == 3  # nobody knows which of them are there


def test_choosing_by_the_probe_takes_its_time(traces, tmp_path):
    probe = probe_of(traces, 3)
    questions = held_out_questions([traces], probe)
    answers = ask(questions, Scripted(), tmp_path)
    plain = evaluate_probe(probe, questions, answers)["policies"]
    timed = evaluate_probe(probe, questions, answers, routing=0.25)
    assert timed["routing_seconds"] == 0.25
    for name, policy in timed["policies"].items():
        extra = 0.25 if name == "probe" else 0.0
        assert policy["seconds"] == pytest.approx(plain[name]["seconds"] + extra)
    assert set(NAMES) < set(plain)
