"""A result that goes through a server's logits and comes back out of an answer."""

from __future__ import annotations

import re

import pytest
import torch

from entropy_rft.difficulty.served.wire import (
    DIGEST_DIGITS,
    MARK,
    STATUS_ADAPTER,
    STATUS_OK,
    TOKENS,
    decoded,
    encoded,
    request_body,
)

DIGEST = "0fa9c3" + 58 * "7"


def answered(values, dtype=torch.float32, vocabulary=50, mode="logprobs"):
    """What vLLM answers for logits that begin with `values` and are minus infinity elsewhere."""
    row = torch.full((vocabulary,), float("-inf"), dtype=dtype)
    row[: len(values)] = values.to(dtype)
    scores = row.log_softmax(-1, dtype=torch.float32) if mode == "logprobs" else row.float()
    top = scores.topk(TOKENS)
    named = {
        f"token_id:{token}": max(value, -9999.0)
        for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    }
    return {"choices": [{"logprobs": {"top_logprobs": [named]}}]}


@pytest.mark.parametrize("mode", ["logprobs", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_come_back_to_float32s_precision(dtype, mode):
    sharp = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3], [1e-7, 1 - 2e-7, 1e-7]])
    probabilities = torch.cat(
        [sharp, torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).mul(4).softmax(-1)]
    )
    rows = encoded(probabilities, torch.full((len(probabilities),), STATUS_OK), DIGEST)
    assert rows.shape == (len(probabilities), TOKENS)
    for row, expected in zip(rows, probabilities.tolist(), strict=True):
        found, digest = decoded(answered(row, dtype, mode=mode))
        assert digest == DIGEST[:DIGEST_DIGITS]
        assert found == pytest.approx(expected, abs=2e-7)


def test_why_there_is_no_result():
    probabilities = torch.tensor([[0.2, 0.3, 0.5], [float("nan")] * 3, [float("nan")] * 3])
    rows = encoded(probabilities, torch.tensor([STATUS_ADAPTER, STATUS_OK, STATUS_ADAPTER]), DIGEST)
    for row, reason in zip(rows, ("LoRA adapter", "not finite", "LoRA adapter"), strict=True):
        with pytest.raises(ValueError, match=reason):
            decoded(answered(row))


def test_a_status_of_a_later_version():
    rows = encoded(torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([9]), DIGEST)
    with pytest.raises(ValueError, match="unknown status 9: update this package"):
        decoded(answered(rows[0]))


@pytest.mark.parametrize("seed", range(20))
def test_an_ordinary_answer_is_not_taken_for_a_result(seed):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 5
    with pytest.raises(ValueError, match="evaluates no probe"):
        decoded(answered(logits))


def test_whole_numbers_that_are_no_probabilities():
    with pytest.raises(ValueError, match="evaluates no probe"):
        decoded(answered(torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"choices": []},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"top_logprobs": [None]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [{"the": -0.5}]}}]},
        {"choices": [{"logprobs": {"top_logprobs": [{"token_id:0": None}]}}]},
    ],
)
def test_an_answer_without_log_probabilities(answer):
    with pytest.raises(ValueError, match="no log-probabilities of token ids"):
        decoded(answer)


def test_what_is_asked():
    body = request_body("tiny", [3, 4])
    assert body["prompt"] == [3, 4]
    assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (1, 0, TOKENS)
    assert MARK in body["vllm_xargs"]
    assert re.fullmatch("[a-z_]+", MARK)
