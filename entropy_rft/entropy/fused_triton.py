"""The running sums of :mod:`entropy_rft.entropy.fused` on CUDA. Imported only where Triton is installed.

cuBLAS multiplies a tile into one buffer, one kernel adds it to the sums, and nothing waits for the device. Of a block
of logits the kernel reduces only the maximum across lanes. There is one sum per lane until the row ends. The sums are
rescaled only when the maximum rises, which is rare after the first blocks.

Memory traffic, counted (b bytes a logit in the buffer: 2 with a 16-bit product, 4 otherwise; D the width; V the
vocabulary; N the tokens)::

    the product writes the tile              b  bytes a logit, as the product alone does
    the kernel reads it                      b  bytes a logit, once, 16 bytes a thread and load; it writes none back
    the kernel's sums, a token and tile     52  bytes: five read, six written, 4 bytes each, and the target of 8
    the target's logit, a token and tile     b  bytes at most
    the product reads the weight          2 D V  bytes (16 bit) for every 4,096 tokens
    the product reads the states          2 D N  bytes (16 bit) for every tile of the vocabulary

A row of a tile is 16,384 (b = 4) or 32,768 (b = 2) logits, so the sums are 0.003 bytes a logit at most. The traffic
beyond the product alone is therefore b bytes a logit: for V = 151,936 and b = 2, 304 kB a token, 0.09 ms for 1,000
tokens at 3.35 TB/s (an H100's data sheet). The product takes 2 D operations a logit, so at 800 TFLOP/s the kernel's
reading adds at least 23% at D = 1,024, 12% at 2,048, 6% at 4,096 and 5% at 5,120; twice that with b = 4. A tile,
256 MiB, does not fit into a cache of 50 MB between the product and the kernel.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from entropy_rft.entropy.running_sums import FAR_BELOW, Head, RunningSums

# Large enough that cuBLAS runs at full speed and a launch is done before the previous kernel ends. 256 MiB of logits is
# as much as TRL's head takes for bfloat16 (4,096 x 32,768), and half of what it takes for float32.
TOKEN_TILE = 4096
TILE_BYTES = 256 * 2**20
_BLOCK = 1024
_FAR_BELOW = tl.constexpr(FAR_BELOW)

# `torch.mm(..., out_dtype=torch.float32)` of 16-bit inputs: tensor cores with float32 results.
_MM_OUT_DTYPE = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 8)


@triton.jit
def _logits(row_ptr, bias_ptr, offsets, mask, scale, softcap, inv_t, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    z = tl.load(row_ptr + offsets, mask=mask, other=0.0)
    if HAS_BIAS:
        # Rounded to the product's dtype again, as a head that adds its bias in that dtype does.
        z = (z.to(tl.float32) + tl.load(bias_ptr + offsets, mask=mask, other=0.0).to(tl.float32)).to(z.dtype)
    z = z.to(tl.float32) * scale
    if HAS_SOFTCAP:
        z = softcap * (2 * tl.sigmoid(2 * z / softcap) - 1)  # tanh
    return tl.where(mask, z * inv_t, -float("inf"))


@triton.jit
def _fold(
    tile_ptr,
    stride,
    bias_ptr,
    targets_ptr,
    maximum_ptr,
    s1_ptr,
    t1_ptr,
    s2_ptr,
    t2_ptr,
    target_logit_ptr,
    start,
    width,
    scale,
    softcap,
    inv_t,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per token. The equations are those of fused.py; a row's sums have two parts: the sum of earlier
    # tiles (a scalar) and the sum of this tile (a number per lane).
    row = tl.program_id(0).to(tl.int64)
    row_ptr = tile_ptr + row * stride
    lanes = tl.arange(0, BLOCK)
    m = tl.load(maximum_ptr + row)
    s1 = tl.load(s1_ptr + row)
    t1 = tl.load(t1_ptr + row)
    s2 = tl.load(s2_ptr + row)
    t2 = tl.load(t2_ptr + row)
    s1_lanes = tl.zeros((BLOCK,), tl.float32)
    t1_lanes = tl.zeros((BLOCK,), tl.float32)
    s2_lanes = tl.zeros((BLOCK,), tl.float32)
    t2_lanes = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, width, BLOCK):
        offsets = first + lanes
        z = _logits(row_ptr, bias_ptr, offsets, offsets < width, scale, softcap, inv_t, HAS_BIAS, HAS_SOFTCAP)
        top = tl.max(z, axis=0)
        excluded = tl.full((), -1, tl.int32)
        if top > m:
            drop = m - top
            r = tl.exp(drop)
            r2 = r * r
            t1_lanes = r * (t1_lanes + drop * s1_lanes)
            s1_lanes = r * s1_lanes
            t2_lanes = r2 * (t2_lanes + drop * s2_lanes)
            s2_lanes = r2 * s2_lanes
            t1 = r * (t1 + drop * (s1 + 1.0))  # adds the term of the old maximum
            s1 = r * (s1 + 1.0)
            t2 = r2 * (t2 + drop * (s2 + 1.0))
            s2 = r2 * (s2 + 1.0)
            m = top
            excluded = tl.argmax(z, axis=0).to(tl.int32)
        z = tl.maximum(z - m, _FAR_BELOW)
        e = tl.where(lanes == excluded, 0.0, tl.exp(z))
        ez = e * z
        s1_lanes += e
        t1_lanes += ez
        s2_lanes += e * e
        t2_lanes += e * ez
    tl.store(maximum_ptr + row, m)
    tl.store(s1_ptr + row, s1 + tl.sum(s1_lanes, axis=0))
    tl.store(t1_ptr + row, t1 + tl.sum(t1_lanes, axis=0))
    tl.store(s2_ptr + row, s2 + tl.sum(s2_lanes, axis=0))
    tl.store(t2_ptr + row, t2 + tl.sum(t2_lanes, axis=0))
    target = tl.load(targets_ptr + row) - start
    here = (target >= 0) & (target < width)
    z = _logits(row_ptr, bias_ptr, target, here, scale, softcap, inv_t, HAS_BIAS, HAS_SOFTCAP)
    tl.store(target_logit_ptr + row, z, mask=here)


def running_sums(hidden: Tensor, targets: Tensor, head: Head) -> RunningSums:
    """The sums of `hidden` ``(N, D)`` and `targets` ``(N,)`` under `head`, all on one CUDA device."""
    tokens, vocabulary = hidden.shape[0], head.weight.shape[0]
    operands, buffer_dtype = _dtypes(hidden, head)
    rows = min(tokens, TOKEN_TILE)
    columns = min(vocabulary, TILE_BYTES // (TOKEN_TILE * buffer_dtype.itemsize))
    sums = RunningSums.start(tokens, hidden.device)
    buffer = torch.empty(rows, columns, dtype=buffer_dtype, device=hidden.device)
    bias = None if head.bias is None else head.bias.to(buffer_dtype).contiguous()
    targets = targets.contiguous()
    with torch.cuda.device_of(hidden):  # Triton launches on the current device
        for first in range(0, tokens, TOKEN_TILE):
            part = slice(first, min(first + TOKEN_TILE, tokens))
            inputs = hidden[part].to(operands)
            for start in range(0, vocabulary, columns):
                end = min(start + columns, vocabulary)
                tile = buffer[: inputs.shape[0], : end - start]
                _product(inputs, head.weight[start:end].to(operands), tile)
                _fold[(inputs.shape[0],)](
                    tile,
                    tile.stride(0),
                    tile if bias is None else bias[start:end],
                    targets[part],
                    *(row[part] for row in sums),
                    start,
                    end - start,
                    head.scale,
                    1.0 if head.softcap is None else head.softcap,
                    1.0 / head.temperature,
                    HAS_BIAS=bias is not None,
                    HAS_SOFTCAP=head.softcap is not None,
                    BLOCK=_BLOCK,
                )
    return sums


def _dtypes(hidden: Tensor, head: Head) -> tuple[torch.dtype, torch.dtype]:
    """Of the product's operands and of its result."""
    if head.product_dtype is not None and head.product_dtype != torch.float32:
        return head.product_dtype, head.product_dtype
    if hidden.is_cuda and _MM_OUT_DTYPE and hidden.dtype == head.weight.dtype:
        return hidden.dtype, torch.float32
    return torch.float32, torch.float32


def _product(inputs: Tensor, weight: Tensor, out: Tensor) -> None:
    if inputs.dtype == out.dtype:
        torch.mm(inputs, weight.t(), out=out)
    else:
        torch.mm(inputs, weight.t(), out_dtype=out.dtype, out=out)
