"""How a request asks for the probe's result, and how the result travels in the answer's log-probabilities.

The only numbers that an ordinary answer of vLLM returns are log-probabilities. So the logits of a marked request are
replaced by whole numbers from 0 to 255 on the first `TOKENS` token ids, and by minus infinity elsewhere. Whatever the
server makes of logits, the difference of two log-probabilities is the difference of their logits. Each number is
therefore read exactly, as the difference from that of token 0, also where logits are bfloat16 (which has whole numbers
up to 256) and with every ``--logprobs-mode``. A probability is three such numbers, which is float32's precision.

===========  =======================================================
token ids    what the difference from token 0 is
===========  =======================================================
0            0
1            `STATUS_OK`, or why there is no result
2 to 4       the first 24 bits of the probe's digest
5 to 13      probabilities of EASY, NORMAL and HARD, 24 bits each
===========  =======================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entropy_rft.errors import UserValueError

if TYPE_CHECKING:
    from torch import Tensor

MARK = "entropy_rft_probe"
"""Key in a request's ``vllm_xargs`` that asks for the probe's result."""
STATUS_OK, STATUS_ADAPTER, STATUS_NOT_FINITE = 1, 2, 3
DIGEST_DIGITS = 6
"""Hex digits of the probe's digest that an answer holds."""
TOKENS = 14
"""Token ids that an answer needs; vLLM gives up to 20 log-probabilities by default."""

_CLASSES, _BYTES = 3, 3
_TOP = 256**_BYTES - 1
_SLACK = 0.05  # of a difference from a whole number; float32's rounding makes less than 0.001
_PREFIX = "token_id:"
_NO_PROBE = (
    "the server evaluates no probe: start vLLM with ENTROPY_RFT_PROBE=DIR where entropy_rft is installed, and name "
    "entropy_rft_probe in VLLM_PLUGINS if that is set"
)
_REASONS = {
    STATUS_ADAPTER: "the request uses a LoRA adapter, but the probe was made for the model without it",
    STATUS_NOT_FINITE: "the model's hidden state is not finite",
}


def request_body(model: str | None, token_ids: list[int]) -> dict[str, Any]:
    """The body for ``POST /v1/completions`` that asks for the probe's result for the prompt `token_ids`."""
    return {
        "model": model,
        "prompt": token_ids,
        "add_special_tokens": False,
        "max_tokens": 1,
        "logprobs": TOKENS,
        "return_tokens_as_token_ids": True,
        # The server's generation_config.json may set these; some modes of log-probabilities are taken after them.
        "temperature": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "vllm_xargs": {MARK: 1},
    }


def encoded(probabilities: Tensor, statuses: Tensor, digest: str) -> Tensor:
    """The first `TOKENS` logits of each row; all others must become minus infinity.

    Args:
        probabilities: (N, 3) float32.
        statuses: (N,) whole numbers; a row that is not finite gets `STATUS_NOT_FINITE` in place of `STATUS_OK`.
        digest: of the probe, in hex digits.

    Returns:
        (N, `TOKENS`) whole numbers as float32, on the device of `probabilities`.
    """
    import torch

    finite = probabilities.isfinite().all(-1)
    statuses = torch.where(finite | (statuses != STATUS_OK), statuses, STATUS_NOT_FINITE)
    known = (statuses == STATUS_OK)[:, None]
    whole = (probabilities.where(known, probabilities.new_zeros(())) * _TOP).round().long().clamp(0, _TOP)
    shifts = torch.arange(8 * (_BYTES - 1), -1, -8, device=whole.device)
    digits = (whole[:, :, None] >> shifts) & 255
    head = torch.tensor([0, 0, *bytes.fromhex(digest[:DIGEST_DIGITS])], device=whole.device)
    head = head.repeat(len(whole), 1)
    head[:, 1] = statuses
    return torch.cat([head, digits.flatten(1)], 1).float()


def decoded(answer: Any) -> tuple[tuple[float, float, float], str]:
    """The probabilities of EASY, NORMAL and HARD, and the first `DIGEST_DIGITS` hex digits of the probe's digest.

    Args:
        answer: of ``POST /v1/completions``, parsed.

    Raises:
        ValueError: it is an ordinary answer, or the server says why there is no result; one line.
    """
    try:
        found: Mapping[str, float] = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        values = {int(name.removeprefix(_PREFIX)): float(value) for name, value in found.items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserValueError("the answer holds no log-probabilities of token ids") from None
    differences = [values.get(token, math.nan) - values.get(0, math.nan) for token in range(TOKENS)]
    whole = [round(value) if abs(value) < 1e3 else -1 for value in differences]
    exact = all(abs(value - number) < _SLACK for value, number in zip(differences, whole, strict=True))
    if not exact or not all(0 <= number <= 255 for number in whole) or len(values) != TOKENS:
        raise UserValueError(_NO_PROBE)
    status, body = whole[1], bytes(whole[2:])
    if status != STATUS_OK:
        raise UserValueError(_REASONS.get(status, f"the server gives the unknown status {status}: update this package"))
    size = DIGEST_DIGITS // 2
    easy, normal, hard = (
        int.from_bytes(body[size + _BYTES * index :][:_BYTES], "big") / _TOP for index in range(_CLASSES)
    )
    if abs(easy + normal + hard - 1) > 1e-5:
        raise UserValueError(_NO_PROBE)
    return (easy, normal, hard), body[:size].hex()
