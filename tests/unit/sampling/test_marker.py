from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from entropy_rft.sampling import ThinkEndMarker


@pytest.fixture(scope="module")
def splitting() -> Any:
    """A byte-level BPE that writes the marker as ``</ think >``, and ``>`` with a newline as one token, as Qwen2.5."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "/"), ("t", "h"), ("th", "i"), ("thi", "n"), ("thin", "k"), (">", "Ċ")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def phases(tokenizer: Any, text: str, mask: list[int] | None = None) -> tuple[str, str]:
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    valid = torch.ones_like(ids) if mask is None else torch.tensor([mask])
    thinking, answer = ThinkEndMarker(tokenizer, "</think>").phases(ids, valid)
    assert not (thinking & answer).any()
    assert not ((thinking | answer) & (valid == 0)).any()
    return tokenizer.decode(ids[thinking]), tokenizer.decode(ids[answer])


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("ab</think>cd", "ab", "cd"),
        ("ab</think>\ncd", "ab", "cd"),  # the token that also holds the newline is the marker's
        ("ab", "ab", ""),
        ("</think>cd", "", "cd"),
        ("ab</think>", "ab", ""),
        ("a</think>b</think>c", "a", "b</think>c"),
        ("a</thin</think>c", "a</thin", "c"),
        ("é</think>日", "é", "日"),
    ],
)
def test_a_marker_of_several_tokens_is_found_however_it_is_written(
    splitting: Any, text: str, thinking: str, answer: str
) -> None:
    assert len(ThinkEndMarker(splitting, "</think>").ids) == 3
    assert phases(splitting, text) == (thinking, answer)


def test_a_marker_that_is_a_token_among_others_is_found_however_it_is_written() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("#", "#"), ("##", "##"), ("Ġ", "####"), ("####", "Ċ")]  # as SmolLM2 has them
    words = [*alphabet, *("".join(pair) for pair in merges)]
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    marker = ThinkEndMarker(tokenizer, "####")
    assert len(marker.ids) == 1
    for text, thinking, answer in (("a####b", 1, 1), ("a ####b", 1, 1), ("a####\nbc", 1, 2), ("abc", 3, 0)):
        ids = torch.tensor([tokenizer.encode(text)])
        found = marker.phases(ids, torch.ones_like(ids))
        assert [int(phase.sum()) for phase in found] == [thinking, answer], text


def test_a_marker_in_a_tools_output_does_not_count(splitting: Any) -> None:
    ids = splitting.encode("a</think>b</think>c", add_special_tokens=False)
    assert len(ids) == 9
    assert phases(splitting, "a</think>b</think>c", [1, 0, 0, 0, 1, 1, 1, 1, 1]) == ("ab", "c")
    assert phases(splitting, "a</think>b</think>c", [1, 1, 0, 1, 1, 1, 1, 1, 1]) == ("a</>b", "c")


def test_rows_of_a_batch_are_independent_and_padding_is_neither(splitting: Any) -> None:
    texts = ["ab</think>c", "ab", "</think>"]
    rows = [splitting.encode(text, add_special_tokens=False) for text in texts]
    ids = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (8 - len(row)) for row in rows])
    thinking, answer = ThinkEndMarker(splitting, "</think>").phases(ids, mask)
    assert thinking.sum(1).tolist() == [2, 2, 0]
    assert answer.sum(1).tolist() == [1, 0, 0]


def test_a_single_token_and_a_tokenizer_without_it(splitting: Any) -> None:
    import copy

    single = copy.deepcopy(splitting)
    single.add_tokens(["</think>"])
    marker = ThinkEndMarker(single, "</think>")
    assert len(marker.ids) == 1
    assert phases(single, "ab</think>cd") == ("ab", "cd")
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    lacking = ThinkEndMarker(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>"), "</think>")
    assert not lacking
    thinking, answer = lacking.phases(torch.tensor([[1, 1]]), torch.tensor([[1, 0]]))
    assert (thinking.tolist(), answer.tolist()) == ([[True, False]], [[False, False]])


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_tokenizers_that_drop_or_refuse_a_part_of_it_cannot_write_it(unknown: str | None) -> None:
    letters = {letter: i for i, letter in enumerate("/thinka")}
    dropping = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(letters, [])))
    assert not ThinkEndMarker(dropping, "</think>")
    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "a": 1}, unk_token=unknown) if unknown else models.WordLevel({"a": 1})
    )
    undeclared = PreTrainedTokenizerFast(tokenizer_object=words)  # transformers is told of no unknown token
    assert not ThinkEndMarker(undeclared, "</think>")


def test_a_marker_without_text_is_a_mistake(splitting: Any) -> None:
    with pytest.raises(ValueError, match="think_end_token must be the text"):
        ThinkEndMarker(splitting, "")


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("opening", "end"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_the_reward_reads_the_tags(splitting: Any, special: bool, opening: str, end: str) -> None:
    import copy

    tokenizer = copy.deepcopy(splitting)
    tokenizer.add_tokens([opening, end], special_tokens=special)
    ids = [*tokenizer.encode(f"{opening}ab{end}cd", add_special_tokens=False), tokenizer.eos_token_id]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded == ("abcd" if special else f"{opening}ab{end}cd")
    marker = ThinkEndMarker(tokenizer, end)
    assert marker.reward_text(decoded, ids) == f"{opening}ab{end}cd"
    assert marker.reward_text("cd", ids) == f"{opening}ab{end}cd"  # a parser of answers cut the thinking off
    assert marker.reward_text("cd", ids[-3:]) == "cd"


def test_a_prompt_that_opens_the_thinking(splitting: Any) -> None:
    def ids(text: str) -> list[int]:
        return splitting.encode(text, add_special_tokens=False)

    marker = ThinkEndMarker(splitting, "</think>")
    assert marker.opened(ids("What is it?" + "x" * 50 + "<think>\n"))
    assert marker.opened(ids("<think>"))
    assert not marker.opened(ids("<think></think>"))
    assert not marker.opened(ids("What is <think>?"))
    assert not marker.opened([])
    assert not ThinkEndMarker(splitting, "####").opened(ids("####"))
