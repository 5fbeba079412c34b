"""Fused statistics against an independent float64 computation, on every device that is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from entropy_rft.entropy import TokenStatistics, fused_token_statistics, token_statistics
from entropy_rft.entropy import fused as fused_module

NAMES = ("log_prob", "entropy", "expected_discriminant")
KINDS = ["random", "peaked", "almost certain", "uniform", "banned"]
# V: one, tiny, a tile short of one, a tile, many tiles and a bit, a real vocabulary. D: odd and even. N: one and more.
SHAPES = [(1, 7, 3), (2, 33, 5), (1023, 33, 7), (1024, 64, 1), (4097, 1001, 8), (151_936, 65, 6)]


def reference(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """log π(a), H and E[S] in float64 from the same numbers, each written so that peaked rows keep their digits."""
    z = hidden.double() @ weight.double().T
    z = scale * (z if bias is None else z + bias.double())
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    top, where = z.max(1, keepdim=True)
    below = (z - top).clamp(min=-1e300)
    log_z = torch.log1p(below.exp().scatter(1, where, 0.0).sum(1, keepdim=True))
    log_pi = below - log_z
    pi = log_pi.exp()
    # -Σ π log π with the maximum's log π = -log_z: no term of the sum is rounded away by a larger one.
    entropy = -(pi * log_pi).sum(1)
    expected = (pi.square() * (entropy.unsqueeze(1) + log_pi)).sum(1)
    return log_pi.gather(1, ids.unsqueeze(1)).squeeze(1), entropy, expected


def case(kind: str, vocabulary: int, width: int, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """hidden, weight, token ids and bias whose rows are of that kind at temperature 0.9."""
    generator = torch.Generator().manual_seed(vocabulary + width)
    weight = torch.randn(vocabulary, width, generator=generator) * (3 / width**0.5)
    hidden = torch.randn(tokens, width, generator=generator)
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator)
    bias = None
    if kind in ("peaked", "almost certain"):
        chosen = torch.randint(0, vocabulary, (tokens,), generator=generator)
        hidden = weight[chosen] * ((30 if kind == "peaked" else 38) / weight[chosen].square().sum(1, keepdim=True))
        ids[::2] = chosen[::2]
    elif kind == "uniform":
        hidden = torch.zeros_like(hidden)
    elif kind == "banned":
        bias = torch.zeros(vocabulary)
        bias[1::3] = float("-inf")
        bias[: vocabulary // 2] = float("-inf")
        bias[-1] = 0.0
        allowed = bias.isfinite().nonzero().squeeze(1)
        ids = allowed[ids % len(allowed)]
    return hidden, weight, ids, bias


def check(actual: TokenStatistics, expected: tuple[Tensor, Tensor, Tensor], relative: float = 2e-5) -> None:
    """Within `relative` of log-probability and entropy however small they are, 2e-6 of E[S]; in range and finite."""
    for name, value in zip(NAMES, expected, strict=True):
        found = getattr(actual, name).cpu()
        assert found.dtype == torch.float32, name
        assert found.isfinite().all(), name
        error = (found.double() - value.cpu()).abs()
        limit = 2e-6 if name == "expected_discriminant" else relative * value.cpu().abs()
        assert (error <= limit).all(), (name, found, value)
    assert (actual.log_prob <= 0).all()
    assert (actual.entropy >= 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_float64(kind: str, shape: tuple[int, int, int]) -> None:
    hidden, weight, ids, bias = case(kind, *shape)
    actual = fused_token_statistics(hidden, weight, ids, bias=bias, temperature=0.9)
    check(actual, reference(hidden, weight, ids, bias, 0.9))


def test_the_peaked_cases_are_peaked() -> None:
    for kind, least in (("peaked", 0.999), ("almost certain", 1 - 1e-6)):
        hidden, weight, _, _ = case(kind, 151_936, 65, 6)
        assert (hidden.double() @ weight.double().T / 0.9).softmax(1).amax(1).min() > least


def test_more_than_one_maximum() -> None:
    # All of the mass on three tokens, within one tile and in different ones.
    weight, ids = torch.zeros(2500, 2), torch.tensor([3, 7])
    weight[[3, 7, 2400]] = 60.0
    hidden = torch.ones(2, 2)
    actual = fused_token_statistics(hidden, weight, ids)
    check(actual, reference(hidden, weight, ids))
    assert torch.allclose(actual.entropy, torch.tensor(3.0).log())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_inputs_accumulate_in_float32(kind: str, dtype: torch.dtype) -> None:
    hidden, weight, ids, bias = case(kind, 1500, 64, 16)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    check(fused_token_statistics(hidden, weight, ids, bias=bias), reference(hidden, weight, ids, bias))


@pytest.mark.parametrize(("vocabulary", "width", "tokens"), [(1, 3, 4), (1023, 17, 5), (2500, 33, 600)])
def test_soft_cap_scale_bias_and_temperature(vocabulary: int, width: int, tokens: int) -> None:
    torch.manual_seed(vocabulary)
    hidden, weight = torch.randn(tokens, width), torch.randn(vocabulary, width)
    bias, ids = torch.randn(vocabulary), torch.randint(0, vocabulary, (tokens,))
    plain = fused_token_statistics(hidden, weight, ids, bias=bias, temperature=0.7, logit_scale=0.5)
    check(plain, reference(hidden, weight, ids, bias, 0.7, None, 0.5))
    capped = fused_token_statistics(hidden, weight, ids, bias=bias, temperature=0.7, logit_softcap=5.0, logit_scale=0.3)
    check(capped, reference(hidden, weight, ids, bias, 0.7, 5.0, 0.3))


def test_no_token_and_any_leading_shape() -> None:
    weight = torch.randn(9, 4)
    assert fused_token_statistics(torch.zeros(0, 4), weight, torch.zeros(0, dtype=torch.long)).entropy.shape == (0,)
    hidden, ids = torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    several = fused_token_statistics(hidden, weight, ids)
    assert several.entropy.shape == (2, 3)
    one = fused_token_statistics(hidden[1, 2], weight, ids[1, 2])
    assert one.entropy.shape == ()
    assert torch.allclose(one.entropy, several.entropy[1, 2])


def test_first_tiles_without_a_finite_logit_and_a_banned_token() -> None:
    bias = torch.zeros(3000)
    bias[:2048] = float("-inf")
    hidden, weight, ids = torch.randn(4, 8), torch.randn(3000, 8), torch.tensor([2500, 2999, 2048, 0])
    actual = fused_token_statistics(hidden, weight, ids, bias=bias)
    expected = reference(hidden, weight, ids, bias)
    check(actual.map(lambda row: row[:3]), tuple(row[:3] for row in expected))  # type: ignore[arg-type]
    assert actual.log_prob[3] == torch.finfo(torch.float32).min
    assert actual.entropy[3] == pytest.approx(float(expected[1][3]), rel=2e-5)


def test_product_dtype_rounds_as_a_head_of_that_dtype_does() -> None:
    hidden, weight = torch.randn(16, 64).bfloat16(), torch.randn(1500, 64).bfloat16()
    ids, bias = torch.randint(0, 1500, (16,)), torch.randn(1500).bfloat16()
    for b in (None, bias):
        fused = fused_token_statistics(hidden, weight, ids, bias=b, temperature=0.9, product_dtype=torch.bfloat16)
        logits = hidden @ weight.T
        full = token_statistics((logits if b is None else logits + b).float(), ids, 0.9)
        for name in NAMES:
            assert torch.allclose(getattr(fused, name), getattr(full, name), rtol=2e-5, atol=2e-6), name
    exact = fused_token_statistics(hidden, weight, ids, temperature=0.9)
    rounded = fused_token_statistics(hidden, weight, ids, temperature=0.9, product_dtype=torch.bfloat16)
    assert (exact.log_prob - rounded.log_prob).abs().max() > 1e-3


def test_autocast_changes_nothing() -> None:
    hidden, weight, ids = torch.randn(5, 16), torch.randn(1100, 16), torch.randint(0, 1100, (5,))
    outside = fused_token_statistics(hidden, weight, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fused_token_statistics(hidden, weight, ids)
    assert torch.equal(inside.log_prob, outside.log_prob)


def test_inputs_are_left_alone_and_no_gradient_flows() -> None:
    hidden, weight, ids, bias = case("banned", 1500, 33, 5)
    assert bias is not None
    hidden.requires_grad_()
    before = [x.detach().clone() for x in (hidden, weight, ids, bias)]
    result = fused_token_statistics(hidden, weight, ids, bias=bias, logit_softcap=4.0)
    assert not result.log_prob.requires_grad
    assert all(torch.equal(x, y) for x, y in zip((hidden, weight, ids, bias), before, strict=True))


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, ids, bias = case("banned", 1500, 33, 50)
    whole = fused_token_statistics(hidden, weight, ids, bias=bias)
    monkeypatch.setattr(fused_module, "TOKEN_TILE", 7)
    monkeypatch.setattr(fused_module, "VOCABULARY_TILE", 11)
    pieces = fused_token_statistics(hidden, weight, ids, bias=bias)
    for name in NAMES:
        assert torch.allclose(getattr(pieces, name), getattr(whole, name), rtol=5e-6, atol=1e-6), name


_PEAK = """
import contextlib, ctypes, sys, torch
from pathlib import Path
from entropy_rft.entropy import fused_token_statistics

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

tokens, width, dtype = int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
weight = torch.zeros(151_936, width, dtype=dtype) + 0.01
hidden, ids = torch.ones(tokens, width, dtype=dtype), torch.zeros(tokens, dtype=torch.long)
fused_token_statistics(hidden[:2], weight[:3000], ids[:2])  # the libraries' own start
with contextlib.suppress(OSError, AttributeError):  # where it is glibc: what was freed must not be reused
    ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
fused_token_statistics(hidden, weight, ids)
print((status("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own peak of resident memory")
@pytest.mark.parametrize(("tokens", "width", "dtype"), [(2048, 16, "float32"), (8, 512, "bfloat16")])
def test_extra_memory_does_not_grow_with_tokens_or_vocabulary(tokens: int, width: int, dtype: str) -> None:
    # Full logits of the first case alone would be 1.2 GB.
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tokens), str(width), dtype], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) <= 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": torch.randn(2, 5)}, "do not belong together"),
        ({"token_ids": torch.zeros(3, dtype=torch.long)}, "do not belong together"),
        ({"bias": torch.zeros(2)}, r"bias must be \(3,\) for this weight, got \(2,\)"),
        ({"logit_softcap": 0.0}, "logit_softcap must be above 0"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    good = {"hidden": torch.randn(2, 4), "weight": torch.randn(3, 4), "token_ids": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        fused_token_statistics(**(good | arguments))
