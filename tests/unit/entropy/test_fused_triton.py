"""The Triton path: on CUDA for real, elsewhere through Triton's interpreter in a process of its own.

What the compiler makes of the kernel is in test_fused_triton_compiled.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from test_fused import KINDS, NAMES, SHAPES, case, check, reference

from entropy_rft.entropy import TokenStatistics, fused_token_statistics
from entropy_rft.entropy import fused as fused_module

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
on_cuda = pytest.mark.skipif(not CUDA or INTERPRETED, reason="needs a CUDA device")


# The real vocabulary takes the interpreter seconds a kind: it gets one kind of it.
CASES = [
    (kind, shape) for shape in SHAPES for kind in KINDS if not INTERPRETED or shape != SHAPES[-1] or kind == KINDS[0]
]


def runs_the_kernel(test: Callable[..., None]) -> Callable[..., None]:
    """A test of this process where the kernel can run in it; elsewhere test_in_the_interpreter runs them all."""
    test.__test__ = CUDA or INTERPRETED  # type: ignore[attr-defined]
    return test


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the kernel's own tests run in this process")
def test_in_the_interpreter() -> None:
    # Triton reads the variable when it is imported, so this process cannot.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout
    assert int(passed[1]) > len(KINDS) * (len(SHAPES) - 1), run.stdout


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from entropy_rft.entropy import fused_triton

    monkeypatch.setattr(fused_triton, "TOKEN_TILE", 4)
    monkeypatch.setattr(fused_triton, "TILE_BYTES", 4 * 4 * 1500)


def through_triton(hidden, weight, ids, bias=None, temperature=1.0, softcap=None, scale=1.0, product_dtype=None):
    """fused_token_statistics as on CUDA, also where the kernel is interpreted."""
    from entropy_rft.entropy.fused_triton import running_sums

    tensors = [None if x is None else x.to(DEVICE) for x in (hidden, weight, ids, bias)]
    hidden, weight, ids, bias = tensors
    head = fused_module.Head(weight, bias, temperature, softcap, scale, product_dtype)
    statistics = running_sums(hidden, ids, head).statistics()
    if DEVICE == "cuda":
        options = {"bias": bias, "temperature": temperature, "logit_softcap": softcap, "logit_scale": scale}
        public = fused_token_statistics(hidden, weight, ids, **options, product_dtype=product_dtype)
        assert all(torch.equal(getattr(public, name), getattr(statistics, name)) for name in NAMES)
    return statistics


@runs_the_kernel
@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_agrees_with_float64(kind: str, shape: tuple[int, int, int]) -> None:
    hidden, weight, ids, bias = case(kind, *shape)
    check(through_triton(hidden, weight, ids, bias, 0.9), reference(hidden, weight, ids, bias, 0.9))


@runs_the_kernel
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_torch_path_over_several_tiles(kind: str) -> None:
    hidden, weight, ids, bias = case(kind, 4099, 33, 11)
    found = through_triton(hidden, weight, ids, bias, 0.9)
    torch_path = fused_token_statistics(hidden, weight, ids, bias=bias, temperature=0.9)
    check(found, (torch_path.log_prob.double(), torch_path.entropy.double(), torch_path.expected_discriminant.double()))
    check(found, reference(hidden, weight, ids, bias, 0.9))


@runs_the_kernel
@pytest.mark.usefixtures("small_tiles")
def test_soft_cap_scale_bias_and_temperature() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 33), torch.randn(2500, 33)
    bias, ids = torch.randn(2500), torch.randint(0, 2500, (9,))
    for softcap, scale in ((None, 0.5), (5.0, 0.3)):
        found = through_triton(hidden, weight, ids, bias, 0.7, softcap, scale)
        check(found, reference(hidden, weight, ids, bias, 0.7, softcap, scale))


@runs_the_kernel
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs(dtype: torch.dtype) -> None:
    hidden, weight, ids, _ = case("random", 2500, 64, 9)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    check(through_triton(hidden, weight, ids), reference(hidden, weight, ids))
    # A bias of 0 and -inf: the interpreter truncates where a device rounds.
    bias = torch.zeros(2500, dtype=dtype)
    bias[::3] = float("-inf")
    ids = ids // 3 * 3 + 1
    found = through_triton(hidden, weight, ids, bias, 0.9, product_dtype=dtype)
    torch_path = fused_token_statistics(hidden, weight, ids, bias=bias, temperature=0.9, product_dtype=dtype)
    # On a device two libraries may round one product to different neighbours.
    tolerance = 2e-2 if DEVICE == "cuda" else 2e-5
    assert torch.allclose(found.log_prob.cpu(), torch_path.log_prob, rtol=tolerance)
    assert torch.allclose(found.entropy.cpu(), torch_path.entropy, rtol=tolerance)


@runs_the_kernel
def test_no_token_and_ties() -> None:
    none = through_triton(torch.zeros(0, 4), torch.randn(9, 4), torch.zeros(0, dtype=torch.long))
    assert none.entropy.shape == (0,)
    weight, ids = torch.zeros(2500, 2), torch.tensor([3, 7])
    weight[[3, 7, 2400]] = 60.0
    hidden = torch.ones(2, 2)
    check(through_triton(hidden, weight, ids), reference(hidden, weight, ids))


@on_cuda
@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16])
def test_nothing_waits_for_the_device_and_memory_is_no_more_than_trls(product_dtype: torch.dtype | None) -> None:
    from trl.kernels import ChunkedLogProbFunction

    hidden = torch.randn(8192, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(151_936, 1024, device="cuda", dtype=torch.bfloat16)
    ids = torch.randint(0, 151_936, (8192,), device="cuda")

    def trl() -> object:
        return ChunkedLogProbFunction.apply(hidden, weight, None, ids, 1.0, 32768, None, 1.0, ("log_probs", "entropy"))

    def ours() -> TokenStatistics:
        return fused_token_statistics(hidden, weight, ids, product_dtype=product_dtype)

    extra = []
    for call in (trl, ours):
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        extra.append(torch.cuda.max_memory_allocated() - before)
    assert extra[1] <= extra[0] + 2**20
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours()
    finally:
        torch.cuda.set_sync_debug_mode("default")
