from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from entropy_rft.assets import DEFAULT_TASK
from entropy_rft.difficulty import collect_traces, load_traces, question_states
from entropy_rft.difficulty.collect import trace_schema
from entropy_rft.difficulty.states import fingerprint
from entropy_rft.difficulty.store import ChunkStore
from entropy_rft.difficulty.traces import levels
from entropy_rft.sampling import TransformersSampler, encode_prompt, score_completions
from entropy_rft.tasks import load_task


@pytest.fixture(scope="module")
def task():
    return load_task(DEFAULT_TASK, split="validation", limit=10)


@pytest.fixture
def collect(model_and_tokenizer, task, tmp_path):
    model, tokenizer = model_and_tokenizer

    def run(directory="traces", sampler=None, task=task, **options):
        return collect_traces(
            model,
            tokenizer,
            task,
            tmp_path / directory,
            sampler=sampler or TransformersSampler(model, tokenizer),
            **{"samples": 3, "max_tokens": 6, "chunk_size": 4, "progress": False, "model_name": "m", **options},
        )

    return run


class Dies(Exception):
    pass


class Mortal:
    """Samples, and dies at the n-th chunk."""

    def __init__(self, sampler, chunks):
        self.sampler, self.left = sampler, chunks

    def sample(self, *args, **kwargs):
        if not self.left:
            raise Dies
        self.left -= 1
        return self.sampler.sample(*args, **kwargs)


def same(first, second):
    assert first.ids == second.ids
    assert first.rows == second.rows
    assert np.array_equal(first.hidden, second.hidden)


def test_a_trace_says_what_the_answers_were(collect, model_and_tokenizer, task, tmp_path):
    model, tokenizer = model_and_tokenizer
    state = collect(temperature=0)
    assert (state.added, state.done, state.total) == (10, 10, 10)
    traces = load_traces(tmp_path / "traces")
    assert traces.complete
    assert [row["index"] for row in traces.rows] == list(range(10))
    assert levels(traces.rows) == [str(level) for level in range(1, 11)]
    assert traces.hidden.shape == (10, 16)
    prompts = [row["prompt"] for row in task.dataset]
    answers = TransformersSampler(model, tokenizer).sample(prompts, temperature=0, max_tokens=6, progress=False)
    for row, prompt, hidden, (answer,) in zip(traces.rows, prompts, traces.hidden, answers, strict=True):
        assert row["prompt"] == prompt
        assert row["answer_tokens"] == [len(answer.token_ids)] * 3
        (statistics,) = score_completions(model, [answer])
        assert row["entropy"] == pytest.approx(float(statistics.entropy.mean()), rel=1e-4)
        with torch.no_grad():
            states = model(torch.tensor([encode_prompt(tokenizer, prompt)]), output_hidden_states=True).hidden_states
        assert np.array_equal(hidden, states[-1][0, -1].numpy())
        assert (row["accuracy"], row["correct"]) == (0.0, [False] * 3)


def test_the_hidden_state_is_of_the_prompt_that_was_answered(collect, model_and_tokenizer, tmp_path):
    """The sampler may have arguments for the chat template, such as one that turns the thinking off."""
    model, tokenizer = model_and_tokenizer
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think></think>"
    sampler = TransformersSampler(model, tokenizer, chat_template_kwargs={"chat_template": template})
    sampler.sample, asked = spied(sampler.sample)
    collect(sampler=sampler)
    ids = [group[0].prompt_ids for groups in asked for group in groups]
    traces = load_traces(tmp_path / "traces")
    assert np.array_equal(traces.hidden, question_states(model, ids).numpy())
    assert [row["prompt_tokens"] for row in traces.rows] == [len(own) for own in ids]


def spied(call):
    results = []

    def wrapped(*args, **kwargs):
        results.append(call(*args, **kwargs))
        return results[-1]

    return wrapped, results


def test_the_entropy_of_a_question_is_the_mean_of_its_answers(collect, tmp_path):
    collect()
    for row in load_traces(tmp_path / "traces").rows:
        assert row["entropy"] == pytest.approx(sum(row["entropy_each"]) / 3)
        assert len({*row["entropy_each"]}) > 1


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_an_interrupted_collection_goes_on_as_if_nothing_had_happened(chunks, collect, model_and_tokenizer, tmp_path):
    collect("whole")
    mortal = Mortal(TransformersSampler(*model_and_tokenizer), chunks)
    with pytest.raises(Dies):
        collect(sampler=mortal)
    (tmp_path / "traces" / "data" / ".chunk-000001.parquet.99.tmp").write_bytes(b"PAR1 half a fi")
    if chunks:
        assert len(load_traces(tmp_path / "traces")) == 4 * chunks
        assert not load_traces(tmp_path / "traces").complete
    state = collect()
    assert (state.added, state.done) == (10 - 4 * chunks, 10)
    same(load_traces(tmp_path / "traces"), load_traces(tmp_path / "whole"))
    assert collect().added == 0


def test_a_collection_of_an_earlier_version_goes_on(collect, model_and_tokenizer, tmp_path):
    """Its settings hold the fingerprint of then; the weights are compared by that."""
    model, tokenizer = model_and_tokenizer
    with pytest.raises(Dies):
        collect(sampler=Mortal(TransformersSampler(model, tokenizer), 1))
    path = tmp_path / "traces" / "settings.json"
    settings = json.loads(path.read_text())
    old = fingerprint(model, like="0" * 16)
    path.write_text(json.dumps({**settings, "fingerprint": old}))
    collect()
    assert load_traces(tmp_path / "traces").fingerprint == old
    path.write_text(json.dumps({**settings, "fingerprint": "0" * 16}))
    with pytest.raises(ValueError, match="started with fingerprint"):
        collect()


def test_shards_make_the_same_traces(collect, tmp_path):
    collect("whole")
    states = [collect(shard=shard, num_shards=2) for shard in (1, 0)]
    assert [(state.added, state.done) for state in states] == [(4, 4), (6, 10)]
    same(load_traces(tmp_path / "traces"), load_traces(tmp_path / "whole"))


def test_other_settings_are_refused_and_named(collect, tmp_path, task):
    collect()
    for options, message in (
        ({"temperature": 0.5}, "started with temperature = 1.0, not 0.5"),
        ({"samples": 4}, "samples = 3, not 4"),
        ({"layer": 0}, "layer = -1, not 0"),
        ({"chunk_size": 5}, "chunk_size = 4, not 5"),
        ({"model_name": "n"}, "model = 'm', not 'n'"),
        ({"task": load_task(DEFAULT_TASK, split="validation", limit=10, seed=1)}, "digest = "),
        ({"sampler_name": "openai"}, "sampler = 'transformers', not 'openai'"),
    ):
        with pytest.raises(ValueError, match="continue with the same settings") as caught:
            collect(**options)
        assert message in str(caught.value)
    assert collect(batch_size=3).added == 0  # makes no other traces


def test_answers_of_two_served_models_do_not_mix(collect, tmp_path):
    collect(sampler_name="openai", served_model="a")
    with pytest.raises(ValueError, match="started with served_model = 'a', not 'b'"):
        collect(sampler_name="openai", served_model="b")
    path = tmp_path / "traces" / "settings.json"
    settings = json.loads(path.read_text())
    del settings["served_model"]  # as traces of earlier versions: nobody knows whose they are, and they go on
    path.write_text(json.dumps(settings))
    assert collect(sampler_name="openai", served_model="b").added == 0


def test_datasets_reads_it(collect, tmp_path):
    from datasets import load_dataset

    collect(level="9")
    loaded = load_dataset(str(tmp_path / "traces"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["validation"]
    dataset = loaded["validation"]
    assert len(dataset) == 10
    assert set(dataset["level"]) == {"9"}
    assert len(dataset[0]["hidden_state"]) == 16
    assert "10 of 10 questions, 3 answers each" in (tmp_path / "traces" / "README.md").read_text()


@pytest.mark.parametrize(
    ("split", "name"),
    [("train[:8]", "train_8"), ("my split", "my_split"), ("no", "no"), ("[]", "train"), (None, "train")],
)
def test_datasets_reads_it_whatever_the_split_and_after_a_kill(split, name, collect, model_and_tokenizer, tmp_path):
    from datasets import load_dataset

    source = {"name": DEFAULT_TASK, "split": split, "options": {"instruction": "two\nlines"}}
    with pytest.raises(Dies):
        collect(sampler=Mortal(TransformersSampler(*model_and_tokenizer), 1), source=source)
    assert "4 of 10 questions" in (tmp_path / "traces" / "README.md").read_text()
    loaded = load_dataset(str(tmp_path / "traces"), cache_dir=str(tmp_path / "cache"))
    assert {part: len(rows) for part, rows in loaded.items()} == {name: 4}


def test_the_card_is_there_before_the_first_answer(collect, tmp_path):
    with pytest.raises(Dies):
        collect(sampler=Mortal(None, 0))
    assert "0 of 10 questions" in (tmp_path / "traces" / "README.md").read_text()


def test_plain_text_prompts_and_unscorable_answers(collect, tmp_path):
    class Task:
        name, split = "text", "train"
        dataset = [{"prompt": f"{i}+{i}"} for i in range(3)]  # noqa: RUF012

        @staticmethod
        def reward(prompts, completions, **_):
            assert all(isinstance(completion, str) for completion in completions)
            return [None if prompt == "1+1" else 1.0 for prompt in prompts]

        reward_funcs = (reward,)

    collect(task=Task())
    traces = load_traces(tmp_path / "traces")
    assert [row["prompt"] for row in traces.rows] == ["0+0", "2+2"]
    assert traces.unscorable == 1
    assert traces.column("accuracy").tolist() == [1.0, 1.0]


def test_several_directories_of_one_model(collect, tmp_path):
    collect("a", level="1")
    collect("b", level="2", task=load_task(DEFAULT_TASK, split="train", limit=5))
    traces = load_traces(tmp_path / "a", tmp_path / "b")
    assert len(traces) == 15
    assert levels(traces.rows) == ["1", "2"]
    collect("c", layer=0)
    with pytest.raises(ValueError, match="was collected with layer 0"):
        load_traces(tmp_path / "a", tmp_path / "c")


def test_nothing_counts_twice(collect, tmp_path, monkeypatch):
    collect()
    collect("more", task=load_task(DEFAULT_TASK, split="validation", limit=4))
    monkeypatch.chdir(tmp_path)
    for directories in (("traces", "./traces/"), ("traces", "more")):
        with pytest.raises(ValueError, match="give each directory and each question once") as caught:
            load_traces(*directories)
        assert f"is in {directories[0]!r} and in {directories[1]!r}" in str(caught.value)


WIDTH, MANY = 4096, 256


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Traces of a model of an ordinary width, in chunks of 64; two of the questions could not be scored."""
    rows = [
        {"index": i, "id": f"q{i}", "prompt": f"{i}?", "solution": "7", "level": None, "tokens": 5.0,
         "accuracy": None if i in (0, 100) else 0.5, "entropy": 0.3, "prompt_tokens": 4,
         "hidden_state": np.full(WIDTH, i, np.float32)}
        for i in range(MANY)
    ]  # fmt: skip
    settings = {"model": "m", "fingerprint": "f", "layer": -1, "width": WIDTH, "think_end_token": "</think>"}
    store = ChunkStore(tmp_path_factory.mktemp("wide"), {**settings, "task": {"name": "t"}, "digest": "d"}, MANY, 64)
    for chunk in range(store.chunks):
        store.write(chunk, [rows[i] for i in store.span(chunk)], trace_schema(rows, WIDTH))
    return store.directory


def test_hidden_states_are_read_as_an_array(wide):
    """A question costs its D float32 once, and some words: as Python numbers it was 13 times as much."""
    load_traces(wide)  # what is imported or remembered at first is no question's
    tracemalloc.start()
    traces = load_traces(wide)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert traces.unscorable == 2
    assert traces.hidden.dtype == np.float32
    assert traces.hidden[:, 0].tolist() == [i for i in range(MANY) if i not in (0, 100)]
    vector = 4 * WIDTH
    assert kept / MANY < vector + 4096
    assert peak / MANY < 2 * vector + 8192  # the questions that were left out cost a copy


def test_chunks_in_any_order(tmp_path, wide):
    """Each row says which question it is; the array follows."""
    shuffled = shutil.copytree(wide, tmp_path / "shuffled")
    files = sorted((shuffled / "data").glob("*.parquet"))
    for number, file in enumerate(files):
        file.rename(file.with_suffix(f".{number}"))
    for number, file in enumerate(reversed(files)):
        files[number].with_suffix(f".{number}").rename(file)
    same(load_traces(shuffled), load_traces(wide))


@pytest.mark.parametrize("column", [None, [[1.0], [2.0, 3.0]], [[1.0], None], ["a", "b"]])
def test_states_that_are_none_are_damage(tmp_path, wide, column):
    damaged = shutil.copytree(wide, tmp_path / "damaged")
    path = damaged / "data" / "chunk-000002.parquet"
    table = pq.read_table(path).slice(0, 2).drop_columns(["hidden_state"])
    pq.write_table(table if column is None else table.append_column("hidden_state", [column]), path)
    with pytest.raises(ValueError, match=r"chunk-000002\.parquet' is corrupted .*hidden_state.*: delete it"):
        load_traces(damaged)


def test_each_directory_keeps_its_own(collect, tmp_path):
    collect("one")
    collect("two", task=load_task(DEFAULT_TASK, split="test", limit=6))
    both = load_traces(tmp_path / "one", tmp_path / "two")
    keep = np.arange(len(both)) % 3 > 0
    for traces in (both, both.take(np.ones(len(both), bool))):
        for part, name in zip(traces.by_directory(), ("one", "two"), strict=True):
            same(part, load_traces(tmp_path / name))
            assert part.settings == load_traces(tmp_path / name).settings
    first, second = both.take(keep).by_directory()
    assert first.ids == [i for i, kept in zip(both.ids[:10], keep[:10], strict=True) if kept]
    assert second.ids == [i for i, kept in zip(both.ids[10:], keep[10:], strict=True) if kept]
    assert np.array_equal(second.hidden, both.hidden[10:][keep[10:]])


def test_a_question_is_known_in_other_words(collect, tmp_path):
    """By traces that were collected before anyone asked, too: nothing of it is on the disk."""
    options = {"instruction": "Be brief.", "answer_format": "As a number."}
    source = {"name": DEFAULT_TASK, "split": "validation", "limit": 10}
    collect("plain", source=source)
    collect("worded", task=load_task(**source, **options), source={**source, "options": options})
    plain, worded = load_traces(tmp_path / "plain"), load_traces(tmp_path / "worded")
    assert not set(plain.ids) & set(worded.ids)
    assert worded.questions == plain.questions == plain.ids
    assert worded.among(plain.questions[:4]).tolist() == [True] * 4 + [False] * 6
    assert worded.among(worded.ids[:4]).tolist() == [True] * 4 + [False] * 6  # as probes had them once


def test_damage_is_one_line(collect, tmp_path):
    directory = tmp_path / "traces"
    with pytest.raises(ValueError, match=r"has no settings\.json"):
        load_traces(directory)
    collect()
    chunk = directory / "data" / "chunk-000001.parquet"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-20])
    with pytest.raises(
        ValueError, match=r"chunk-000001\.parquet' is corrupted .*: delete it and collect again"
    ) as caught:
        load_traces(directory)
    assert "\n" not in str(caught.value)
    chunk.unlink()
    assert collect().added == 4
    (directory / "data" / "chunk-000009.parquet").write_bytes(whole)
    with pytest.raises(ValueError, match="repeats question 4"):
        load_traces(directory)
    settings = json.loads((directory / "settings.json").read_text())
    for text, message in (("{", "cannot be read"), (json.dumps({**settings, "schema": 9}), "not of schema 1")):
        (directory / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_traces(directory)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"shard": 2, "num_shards": 2}, "shard must lie between 0 and 1 for 2 shards, got 2"),
        ({"num_shards": 0}, "num_shards must be at least 1"),
        ({"layer": 5}, "layer must lie between -3 and 2"),
    ],
)
def test_mistakes_leave_nothing_behind(options, message, collect, tmp_path):
    with pytest.raises(ValueError, match=message):
        collect(**options)
    assert not (tmp_path / "traces").exists()


def test_how_much_to_think_is_a_setting(collect, task, tmp_path):
    """The answers change; the hidden state is of the plain prompt, as it is when a probe is asked."""
    collect("plain")
    assert not {"thinking_tokens", "chat_template_kwargs"} & set(load_traces(tmp_path / "plain").settings[0])
    effort = {"thinking_tokens": 2, "chat_template_kwargs": {"bos": "x"}}
    collect("limited", effort=effort)
    plain, limited = load_traces(tmp_path / "plain"), load_traces(tmp_path / "limited")
    assert {name: limited.settings[0][name] for name in effort} == effort
    assert np.array_equal(plain.hidden, limited.hidden)
    with pytest.raises(ValueError, match="was started with thinking_tokens = 2, not 3"):
        collect("limited", effort={**effort, "thinking_tokens": 3})
    with pytest.raises(ValueError, match="was started with thinking_tokens = 2, not None"):
        collect("limited", effort={"chat_template_kwargs": {"bos": "x"}})
    with pytest.raises(ValueError, match="was started with thinking_tokens = None, not 2"):
        collect("plain", effort={"thinking_tokens": 2})
    with pytest.raises(ValueError, match="thinking_tokens must be 0 or more"):
        collect("no", effort={"thinking_tokens": -2})


def test_a_state_is_of_the_prompt_without_a_strategys_variables(
    collect, model_and_tokenizer, task, tmp_path, monkeypatch
):
    tokenizer = model_and_tokenizer[1]
    template = tokenizer.chat_template
    collect("plain")
    monkeypatch.setattr(
        tokenizer, "chat_template", template + "{% if enable_thinking is false %}<think></think>{% endif %}"
    )
    collect("without", effort={"chat_template_kwargs": {"enable_thinking": False}})
    assert np.array_equal(load_traces(tmp_path / "plain").hidden, load_traces(tmp_path / "without").hidden)
    assert load_traces(tmp_path / "plain").rows != load_traces(tmp_path / "without").rows


def test_a_question_that_its_data_has_twice_counts_once(collect, tmp_path, task):
    rows = [*task.dataset.select(range(4)), task.dataset[1], task.dataset[1]]
    twice = replace(task, dataset=Dataset.from_list(rows))
    collect(task=twice)
    traces = load_traces(tmp_path / "traces")
    assert len(traces) == len(set(traces.ids)) == len(traces.hidden) == 4
    assert [row["index"] for row in traces.rows] == [0, 1, 2, 3]
    assert (traces.repeated, traces.unscorable, traces.uncollected) == (2, 0, 0)
    assert traces.notes() == ["note: 2 questions that come twice in their data are used once"]
    assert traces.take(np.asarray([True, False, True, True])).repeated == 2
