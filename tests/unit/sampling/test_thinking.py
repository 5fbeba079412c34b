"""A limit on the thinking: what is forced, when, and what is left alone."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from entropy_rft.sampling import TransformersSampler
from entropy_rft.sampling.thinking import ThinkingBlock, ThinkingTags, longest_thinking

PROMPTS = ["12", [{"role": "user", "content": "What is 1 + 2 + 3 + 4?"}], "What?<think>", "<think>a</think>"]


def ids(results):
    return [[completion.token_ids for completion in row] for row in results]


def sample(model, tokenizer, prompts=PROMPTS, **settings):
    marker = settings.pop("marker", "</think>")
    sampler = TransformersSampler(model, tokenizer, batch_size=settings.pop("batch_size", 4), think_end_token=marker)
    return sampler.sample(prompts, **{"samples": 3, "max_tokens": 40, "progress": False, **settings})


@pytest.mark.parametrize(("word", "tokens"), [("think", 1), ("thought", len("</thought>"))])
def test_a_block_is_followed_token_by_token(word, tokens, random_tokenizer):
    tags = ThinkingTags(random_tokenizer, f"</{word}>")

    def after(prompt, text):
        block = ThinkingBlock(tags, random_tokenizer(prompt.replace("think", word))["input_ids"])
        for token in random_tokenizer(text.replace("think", word))["input_ids"] if text else []:
            block.add(token)
        return block.open, block.count

    assert len(tags.end.ids) == tokens
    assert after("x", "") == (False, 0)
    assert after("x", "abc<think") == (False, 0)
    assert after("x", "abc<think>") == (True, 0)
    assert after("x", "abc<think>1234") == (True, 4)
    assert after("x", "abc<think>12</think>34") == (False, 0)
    assert after("<think>0", "12") == (True, 3)  # vLLM counts the prompt's part too
    assert after("<think></think>", "12") == (False, 0)
    assert after("<think>", "1</think>2<think>345") == (True, 3)


def test_a_marker_without_an_opening_tag_ends_what_begins_with_the_completion(random_tokenizer):
    tags = ThinkingTags(random_tokenizer, "####")
    assert tags.start is None
    prompt = random_tokenizer("Example: 1 #### 2. Now you.")["input_ids"]
    assert longest_thinking(tags, prompt, random_tokenizer("abcde")["input_ids"]) == 5
    assert longest_thinking(tags, prompt, random_tokenizer("abcde####fghijklmnop")["input_ids"]) == 5 + 3


def test_the_marker_is_forced_after_so_many_tokens(random_model, random_tokenizer):
    marker = random_tokenizer("####")["input_ids"]
    free = ids(sample(random_model, random_tokenizer, PROMPTS[:2], marker="####"))
    limited = ids(sample(random_model, random_tokenizer, PROMPTS[:2], marker="####", thinking_tokens=5))
    for own, other in zip(chain(*free), chain(*limited), strict=True):
        if len(own) < 5:
            assert other == own  # it ended before
        else:
            assert other[:5] == own[:5]  # the same random numbers
            assert other[5:9] == marker
    assert any(len(row) > 9 for row in chain(*limited))  # the model goes on


def test_no_thinking_at_all(random_model, random_tokenizer):
    marker = random_tokenizer("####")["input_ids"]
    for row in chain(*ids(sample(random_model, random_tokenizer, PROMPTS[:2], marker="####", thinking_tokens=0))):
        assert row[:4] == marker


def test_only_an_open_block_is_ended(random_model, random_tokenizer):
    """The third prompt opens one; in the others a completion may, where the random model writes the tag."""
    free = ids(sample(random_model, random_tokenizer, batch_size=12))
    limited = ids(sample(random_model, random_tokenizer, batch_size=12, thinking_tokens=3))
    (start, marker) = random_tokenizer("<think></think>")["input_ids"]
    closed = [(i, j) for i in (0, 1, 3) for j in range(3) if start not in free[i][j]]
    assert len(closed) >= 6
    assert all(free[i][j] == limited[i][j] for i, j in closed)
    assert [row[:3] for row in limited[2]] == [row[:3] for row in free[2]]
    assert [row[3] for row in limited[2]] == [marker] * 3


def test_a_block_that_ends_itself_is_left_alone(random_model, random_tokenizer, monkeypatch):
    """The model is made to write "12</think>" by itself: a limit of 10 changes nothing."""
    text = random_tokenizer("12</think>" + "3" * 37)["input_ids"]
    forward, written = random_model.forward, []

    def scripted(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits[:] = -100.0
        output.logits[:, -1, text[len(written)]] = 100.0
        written.append(1)
        return output

    monkeypatch.setattr(random_model, "forward", scripted)
    (row,) = sample(random_model, random_tokenizer, ["<think>"], samples=1, thinking_tokens=10)
    assert row[0].token_ids == text


def test_the_limit_does_not_depend_on_the_batch(random_model, random_tokenizer):
    whole = ids(sample(random_model, random_tokenizer, marker="####", thinking_tokens=7, batch_size=12))
    single = ids(sample(random_model, random_tokenizer, marker="####", thinking_tokens=7, batch_size=1))
    assert whole == single


def test_greedy_answers_are_limited_too(random_model, random_tokenizer):
    prompt = PROMPTS[1]
    (row,) = sample(random_model, random_tokenizer, [prompt], temperature=0.0, marker="####", thinking_tokens=6)
    own = random_model.generate(torch.tensor([row[0].prompt_ids]), do_sample=False, max_new_tokens=6)
    assert row[0].token_ids[:6] == own[0, len(row[0].prompt_ids) :].tolist()
    assert row[0].token_ids[6:10] == random_tokenizer("####")["input_ids"]


def test_a_marker_that_cannot_be_written(random_model, random_tokenizer, monkeypatch):
    monkeypatch.setattr(type(random_tokenizer), "encode", lambda *a, **k: [])
    with pytest.raises(ValueError, match="thinking_tokens needs the text '</think>', which is not in the vocabulary"):
        sample(random_model, random_tokenizer, thinking_tokens=3)


def test_variables_of_the_template_and_further_fields(random_model, random_tokenizer, monkeypatch):
    template = random_tokenizer.chat_template
    ending = "{% if enable_thinking is defined and not enable_thinking %}NO{% endif %}{{ reasoning_effort }}"
    monkeypatch.setattr(random_tokenizer, "chat_template", template + ending)

    def prompt(**settings):
        ((first, *_),) = sample(random_model, random_tokenizer, PROMPTS[1:2], max_tokens=1, **settings)
        return random_tokenizer.decode(first.prompt_ids)

    assert prompt().endswith("<|assistant|>")
    assert prompt(chat_template_kwargs={"enable_thinking": False}).endswith("<|assistant|>NO")
    assert prompt(reasoning_effort="low").endswith("<|assistant|>low")
    assert prompt(reasoning_effort="none").endswith("<|assistant|>NOnone")  # as vLLM reads it
    assert prompt(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}).endswith(">none")
    # As in vLLM, the field wins over a variable of that name.
    assert prompt(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"}).endswith(">low")
    narrow = sample(random_model, random_tokenizer, extra_body={"top_p": 0.1})
    assert ids(narrow) == ids(sample(random_model, random_tokenizer, top_p=0.1))
    with pytest.raises(ValueError, match="extra_body: sampling with transformers has no 'top_k': measure with --vllm"):
        sample(random_model, random_tokenizer, extra_body={"top_k": 5})
