"""The embedded engine below HTTP: text as it comes, tokens and their probabilities, requests, and the thread."""

from __future__ import annotations

import queue
import random

import pytest
import torch

from entropy_rft.router.embedded.batch import DecodingBatch, Row, choose_tokens
from entropy_rft.router.embedded.engine import Engine, Failed, Generation, Overloaded
from entropy_rft.router.embedded.requests import Limits, RequestError, chat_request, completion_request
from entropy_rft.router.embedded.responses import Response
from entropy_rft.router.embedded.text import TextStream
from entropy_rft.router.tokenizing import ChatTokenizer
from entropy_rft.sampling import TransformersSampler

PROMPTS = [[40, 41, 42], [50], [60, 61, 62, 63, 64, 65, 66], [70, 71]]


@pytest.fixture(scope="module")
def model(random_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(random_model_dir).eval()


@pytest.fixture(scope="module")
def tokenizer(random_model_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(random_model_dir)


@pytest.fixture
def engine(model, tokenizer):
    made = Engine(model, tokenizer, [tokenizer.eos_token_id], max_rows=3, max_waiting=8)
    yield made
    made.close()


# Text


def stream(tokenizer, text, stop=()):
    """The pieces of a text, and whether it was stopped."""
    found = TextStream(tokenizer, stop)
    pieces = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        pieces.append(found.add(token))
        if found.stopped:
            break
    pieces.append(found.finish())
    return pieces, found.stopped


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 🙂🙂!", " leading and trailing ", "🙂", ""])
def test_characters_are_whole(tokenizer, text):
    pieces, stopped = stream(tokenizer, text)  # one token a byte
    assert "".join(pieces) == text
    assert not stopped
    assert all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_are_no_character_still_end(tokenizer):
    found = TextStream(tokenizer)
    (first, *_) = tokenizer("世", add_special_tokens=False)["input_ids"]
    assert found.add(first) == ""
    assert found.finish() == "\ufffd"
    many = TextStream(tokenizer)
    assert any(many.add(first) for _ in range(20))  # a model that writes nothing else does not stall the stream


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one END two", ["END"], "one "),
        ("one EN two", ["END"], "one EN two"),
        ("one EN", ["END"], "one EN"),
        ("aab", ["ab"], "a"),
        ("one two", ["two", "one t"], ""),
        ("Grüße", ["ü"], "Gr"),
        ("END", ["END"], ""),
        ("a<think>b", ["k>", "hi"], "a<t"),  # both in one token
    ],
)
def test_stop_texts(tokenizer, text, stop, shown):
    pieces, stopped = stream(tokenizer, text, stop)
    assert "".join(pieces) == shown
    assert stopped == any(word in text for word in stop)


def test_special_tokens_are_not_shown(tokenizer):
    found = TextStream(tokenizer)
    ids = tokenizer("a<|user|>b<think>", add_special_tokens=False)["input_ids"]
    assert "".join(map(found.add, ids)) + found.finish() == "ab<think>"


# Tokens


def row(**fields):
    return Row(**{"prompt_ids": [5], "random": random.Random(0)} | fields)


def test_greedy_and_sampled_rows_side_by_side():
    logits = torch.tensor([[0.0, 5.0, 1.0]]).repeat(3, 1)
    counts = torch.zeros(3)
    rows = [row(temperature=0), row(temperature=1), row(temperature=1, top_k=1)]
    for _ in range(4000):
        first, second, third = choose_tokens(logits, rows)
        assert (first, third) == (1, 1)
        counts[second] += 1
    assert torch.allclose(counts / 4000, logits[0].softmax(-1), atol=0.02)


def test_top_p_and_top_k():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def seen(**fields):
        own = row(**fields)
        return {choose_tokens(logits, [own])[0] for _ in range(500)}

    assert seen() == {0, 1, 2, 3}
    assert seen(top_p=0.5) == {0}
    assert seen(top_p=0.51) == {0, 1}
    assert seen(top_k=3) == {0, 1, 2}
    assert seen(top_p=0.01) == {0}
    assert seen(temperature=0.05) == {0}


def test_a_row_does_not_depend_on_its_neighbours(model):
    """Rows come and go between steps; each gets what it gets alone."""

    def alone(prompt, steps):
        own = Row(prompt, random.Random(str(prompt)), temperature=0.9)
        batch = DecodingBatch(model)
        batch.add([own])
        for _ in range(steps - 1):
            batch.step()
        return own.token_ids

    rows = [Row(prompt, random.Random(str(prompt)), temperature=0.9) for prompt in PROMPTS]
    batch = DecodingBatch(model)
    batch.add(rows[:2])
    batch.step()
    batch.add(rows[2:])  # longer and shorter ones join
    for _ in range(3):
        batch.step()
    batch.keep([rows[1], rows[3]])
    for _ in range(4):
        batch.step()
    assert [own.token_ids for own in rows] == [
        alone(prompt, steps) for prompt, steps in zip(PROMPTS, (5, 9, 4, 8), strict=True)
    ]
    assert batch._mask.shape == (2, 9)  # 2 of the prompt and 7 of 8 written: no padding for those that went
    batch.keep([])
    batch.add([rows[0]])
    assert len(batch.rows) == 1


def test_logits_that_are_not_finite(random_model_dir):
    from transformers import AutoModelForCausalLM

    broken = AutoModelForCausalLM.from_pretrained(random_model_dir).eval()
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        DecodingBatch(broken).add([row()])


def test_logprobs_are_the_models_own(model):
    own = row(prompt_ids=PROMPTS[0], temperature=0.3, top_logprobs=2)
    batch = DecodingBatch(model)
    (found,) = batch.add([own])
    (later,) = batch.step()
    with torch.no_grad():
        logprobs = model(torch.tensor([PROMPTS[0] + own.token_ids])).logits[0].log_softmax(-1)
    for position, token, said in ((2, own.token_ids[0], found), (3, own.token_ids[1], later)):
        assert said.token_id == token
        assert said.logprob == pytest.approx(float(logprobs[position, token]), abs=1e-4)
        assert [index for index, _ in said.top] == logprobs[position].topk(2).indices.tolist()


# The thread


def ask(engine, **fields):
    """Submit; returns the job and the queue of its pieces."""
    pieces = queue.Queue()
    fields = {"prompts": [PROMPTS[0]], "max_tokens": [10], "temperature": 0.0} | fields
    return engine.submit(Generation(**fields), lambda new: [pieces.put(piece) for piece in new]), pieces


def read(pieces, ends=1):
    found = []
    while ends:
        found.append(pieces.get(timeout=30))
        assert not isinstance(found[-1], Failed), found[-1]
        ends -= found[-1].finish_reason is not None
    return found


def test_greedy_is_what_the_sampler_writes(engine, model, tokenizer):
    prompts = [tokenizer.decode(prompt) for prompt in PROMPTS]
    expected = TransformersSampler(model, tokenizer).sample(prompts, temperature=0, max_tokens=12, progress=False)
    asked = [ask(engine, prompts=[group[0].prompt_ids], max_tokens=[12])[1] for group in expected]  # more than fit
    for pieces, (completion, *_) in zip(asked, expected, strict=True):
        found = read(pieces)
        assert [token for piece in found for token in piece.token_ids] == completion.token_ids
        assert "".join(piece.text for piece in found) == completion.text
        assert found[-1].finish_reason == ("length" if completion.truncated else "stop")


def test_a_seed_repeats_and_its_samples_differ(engine):
    def tokens(**fields):
        found = read(ask(engine, n=3, temperature=1.0, **fields)[1], ends=3)
        return [[t for piece in found if piece.index == index for t in piece.token_ids] for index in range(3)]

    first = tokens(seed=1)
    assert first == tokens(seed=1)
    assert len({tuple(ids) for ids in first}) == 3
    assert first != tokens(seed=2)
    assert tokens() != tokens()


def test_several_prompts_and_a_limit_of_each(engine):
    found = read(ask(engine, prompts=PROMPTS[:2], max_tokens=[2, 5], n=2, ignore_eos=True)[1], ends=4)
    lengths = [sum(len(piece.token_ids) for piece in found if piece.index == index) for index in range(4)]
    assert lengths == [2, 2, 5, 5]


def test_the_end_of_a_completion(engine, model, tokenizer):
    token = DecodingBatch(model)
    own = row(prompt_ids=PROMPTS[0], temperature=0)
    token.add([own])
    ending = Engine(model, tokenizer, own.token_ids)  # its first token is the end
    found = read(ask(ending)[1])
    assert [(piece.text, piece.token_ids, piece.finish_reason) for piece in found] == [("", own.token_ids, "stop")]
    assert len(read(ask(ending, ignore_eos=True)[1])) > 1
    ending.close()


def test_a_stop_text_ends_it(engine, tokenizer):
    whole = "".join(piece.text for piece in read(ask(engine)[1]))
    found = read(ask(engine, stop=(whole[3:5],))[1])
    assert "".join(piece.text for piece in found) == whole[: whole.index(whole[3:5])]
    assert found[-1].finish_reason == "stop"


def test_a_cancelled_generation_makes_room(engine):
    first, pieces = ask(engine, max_tokens=[400], n=3, ignore_eos=True)
    pieces.get(timeout=30)
    _, waiting = ask(engine, max_tokens=[2], ignore_eos=True)
    first.cancel()
    read(waiting)
    assert engine.running == 0
    assert engine.steps < 400


def test_what_is_cancelled_while_it_waits_is_not_begun(engine, monkeypatch):
    joined, add = [], engine._batch.add
    monkeypatch.setattr(engine._batch, "add", lambda rows: joined.extend(row.prompt_ids for row in rows) or add(rows))
    job, pieces = ask(engine, max_tokens=[400], n=3, ignore_eos=True)
    pieces.get(timeout=30)
    waiting, _ = ask(engine, prompts=[PROMPTS[1]])
    waiting.cancel()
    job.cancel()
    read(ask(engine, prompts=[PROMPTS[2]])[1])
    assert joined == [PROMPTS[0]] * 3 + [PROMPTS[2]]


def test_the_queue_is_bounded(engine):
    job, pieces = ask(engine, max_tokens=[500], n=3, ignore_eos=True)
    pieces.get(timeout=30)
    others = [ask(engine, max_tokens=[1], n=4) for _ in range(2)]
    with pytest.raises(Overloaded, match="8 completions are waiting"):
        ask(engine)
    job.cancel()
    for _, own in others:
        read(own, ends=4)


def test_a_failing_step_fails_its_generations_and_no_others(engine, monkeypatch):
    monkeypatch.setattr(engine._batch, "_forward", None)
    failed = ask(engine)[1].get(timeout=30)
    assert isinstance(failed, Failed)
    assert "TypeError" in failed.message
    monkeypatch.undo()
    _, pieces = ask(engine, max_tokens=[400], ignore_eos=True)
    pieces.get(timeout=30)
    monkeypatch.setattr(engine._batch, "step", None)  # now in the middle
    while not isinstance(pieces.get(timeout=30), Failed):
        pass
    monkeypatch.undo()
    read(ask(engine)[1])
    assert engine.alive


def test_who_cannot_be_told_any_more_is_forgotten(engine):
    def closed(new):
        raise RuntimeError("Event loop is closed")

    engine.submit(Generation(prompts=[PROMPTS[0]], max_tokens=[400], ignore_eos=True), closed)
    read(ask(engine)[1])
    assert engine.running == 0


def test_closing_fails_what_is_being_written(engine):
    _, pieces = ask(engine, max_tokens=[500], n=4, ignore_eos=True)
    pieces.get(timeout=30)
    engine.close()
    assert not engine.alive
    while not isinstance(last := pieces.get(timeout=30), Failed):
        pass
    assert last.message == "the engine is closed"
    with pytest.raises(RuntimeError, match="closed"):
        ask(engine)


# Requests

LIMITS = Limits(name="tiny", context=50, vocabulary=260, temperature=0.7)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def chat(tokenizer, **fields):
    return chat_request(CHAT | fields, ChatTokenizer(tokenizer), LIMITS)


def completion(tokenizer, **fields):
    return completion_request({"prompt": "hi"} | fields, ChatTokenizer(tokenizer), LIMITS)


def test_what_is_not_said(tokenizer):
    asked = chat(tokenizer, temperature=None, max_tokens=None, unknown={"x": 1}, stop=None, logprobs=None)
    generation = asked.generation
    room = 50 - len(generation.prompts[0])
    assert (generation.temperature, generation.max_tokens, generation.n, generation.seed) == (0.7, [room], 1, None)
    assert (asked.stream, asked.include_usage, asked.return_token_ids) == (False, False, False)
    assert completion(tokenizer).generation.max_tokens == [16]


def test_what_is_said(tokenizer):
    asked = chat(
        tokenizer, temperature=0, max_tokens=7, max_completion_tokens=5, n=2, seed=3, stop="x", top_p=0.5, top_k=-1,
        logprobs=True, top_logprobs=4, stream=True, stream_options={"include_usage": True}, return_token_ids=True,
        tools=[], tool_choice="auto", response_format={"type": "text"}, presence_penalty=0.0,
    )  # fmt: skip
    generation = asked.generation
    assert (generation.temperature, generation.max_tokens, generation.n, generation.seed) == (0.0, [5], 2, 3)
    assert (generation.stop, generation.top_p, generation.top_k, generation.top_logprobs) == (("x",), 0.5, 0, 4)
    assert asked.stream
    assert asked.include_usage
    assert asked.return_token_ids


def test_a_limit_beyond_the_context_is_the_context(tokenizer):
    (limit,) = chat(tokenizer, max_tokens=16384).generation.max_tokens
    assert limit == 50 - len(chat(tokenizer).generation.prompts[0])
    with pytest.raises(RequestError, match="leave no room") as raised:
        completion(tokenizer, prompt="x" * 50)
    assert raised.value.code == "context_length_exceeded"


def test_prompts_in_every_form(tokenizer):
    assert completion(tokenizer, prompt=["a", "bc"]).generation.prompts == [
        tokenizer(t)["input_ids"] for t in ("a", "bc")
    ]
    assert completion(tokenizer, prompt=[5, 6]).generation.prompts == [[5, 6]]
    assert completion(tokenizer, prompt=[[5, 6], [7]]).generation.prompts == [[5, 6], [7]]


@pytest.mark.parametrize(
    ("fields", "param", "status"),
    [
        ({"messages": []}, "messages", 400),
        ({"messages": "hi"}, "messages", 400),
        ({"messages": ["hi"]}, "messages[0]", 400),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", 400),
        ({"model": "other"}, "model", 404),
        ({"temperature": 2.1}, "temperature", 400),
        ({"temperature": True}, "temperature", 400),
        ({"temperature": float("nan")}, "temperature", 400),
        ({"top_p": 0}, "top_p", 400),
        ({"n": 0}, "n", 400),
        ({"n": 129}, "n", 400),
        ({"max_tokens": 0}, "max_tokens", 400),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", 400),
        ({"seed": "x"}, "seed", 400),
        ({"stop": [""]}, "stop", 400),
        ({"stop": 5}, "stop", 400),
        ({"stream": 1}, "stream", 400),
        ({"stream_options": {"include_usage": True}}, "stream_options", 400),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", 400),
        ({"top_logprobs": 2}, "top_logprobs", 400),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", 400),
        ({"presence_penalty": 0.5}, "presence_penalty", 400),
        ({"response_format": {"type": "json_object"}}, "response_format", 400),
        ({"tool_choice": "required"}, "tool_choice", 400),
        ({"tools": {}}, "tools", 400),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs", 400),
    ],
)
def test_what_is_refused_of_a_chat(tokenizer, fields, param, status):
    with pytest.raises(RequestError) as raised:
        chat(tokenizer, **fields)
    assert (raised.value.param, raised.value.status) == (param, status)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [5, "x"]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [260]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 129}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
    ],
)
def test_what_is_refused_of_a_completion(tokenizer, fields, param):
    with pytest.raises(RequestError) as raised:
        completion(tokenizer, **fields)
    assert (raised.value.param, raised.value.status) == (param, 400)


@pytest.mark.parametrize("body", [None, [], "x", 5])
def test_bodies_that_are_no_object(tokenizer, body):
    with pytest.raises(RequestError, match="JSON object"):
        chat_request(body, ChatTokenizer(tokenizer), LIMITS)


# Answers


def test_chunks_make_the_whole(engine, tokenizer):
    asked = chat(tokenizer, n=2, seed=1, max_tokens=6, logprobs=True, top_logprobs=1, stream=True,
                 stream_options={"include_usage": True})  # fmt: skip
    pieces = queue.Queue()
    engine.submit(asked.generation, lambda new: [pieces.put(piece) for piece in new])
    found = read(pieces, ends=2)
    whole = Response(True, asked, "tiny", tokenizer).whole(found)
    streamed = Response(True, asked, "tiny", tokenizer)
    chunks = [chunk for piece in found for chunk in streamed.chunks(piece)]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk["usage"] is None for chunk in chunks)
    for choice in whole["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in own) == choice["message"]["content"]
        assert [part["finish_reason"] for part in own][-1] == choice["finish_reason"]
        told = [entry for part in own if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert told == choice["logprobs"]["content"]
    usage = streamed.last_chunk()
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == sum(len(piece.token_ids) for piece in found)


def test_the_logprobs_of_a_completion(engine, tokenizer):
    asked = completion(tokenizer, logprobs=2, max_tokens=4, ignore_eos=True, return_token_ids=True)
    pieces = queue.Queue()
    engine.submit(asked.generation, lambda new: [pieces.put(piece) for piece in new])
    (choice,) = Response(False, asked, "tiny", tokenizer).whole(read(pieces))["choices"]
    told = choice["logprobs"]
    assert [len(told[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [4, 4, 4, 4]
    assert all(token in top for token, top in zip(told["tokens"], told["top_logprobs"], strict=True))
    assert told["text_offset"][0] == 0
    assert choice["prompt_token_ids"] == asked.generation.prompts[0]
    assert len(choice["token_ids"]) == 4
