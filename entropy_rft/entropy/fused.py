"""The same token statistics from hidden states and the LM head, without storing the logits.

One pass over tiles of the vocabulary with an online log-sum-exp. With ``z`` the transformed logits, ``m`` the running
maximum (of one token, the first that reaches it) and ``e = exp(z - m)``, four running sums over the OTHER tokens are
enough for everything::

    s1 = Σ e    t1 = Σ e (z-m)    s2 = Σ e²    t2 = Σ e² (z-m)

    log π(a) = z_a - m - log(1 + s1)
    H        = log(1 + s1) - t1 / (1 + s1)
    E[S]     = Σ π² (H + log π) = (t2 - (1 + s2) t1 / (1 + s1)) / (1 + s1)²

The maximum's own term, 1, is not in the sums, because the rest of a peaked row would be lost in it: at a maximum
probability of 0.9999 all of log π(a) and H is in an s1 of 1e-4, of which 1 + s1 keeps three digits in float32. No
difference of nearly equal numbers is computed: both terms of H are positive.

When the maximum rises by d, the term of the old one is added to the sums, and with ``r = exp(-d)``:
``s ← r (s + 1)``, ``t ← r (t - d (s + 1))`` (with ``r²`` for the squares).
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entropy_rft.entropy.running_sums import FAR_BELOW, Head, RunningSums
from entropy_rft.entropy.statistics import TokenStatistics, check_temperature

# A tile of 512 x 1,024 float32 logits is 2 MiB: it stays in a core's cache from the product to the sums.
TOKEN_TILE = 512
VOCABULARY_TILE = 1024

_LOG2_E = math.log2(math.e)


@torch.no_grad()
def fused_token_statistics(
    hidden: Float[Tensor, "*shape width"],
    weight: Float[Tensor, "vocabulary width"],
    token_ids: Int[Tensor, "*shape"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    product_dtype: torch.dtype | None = None,
) -> TokenStatistics:
    """:class:`TokenStatistics` of ``z = softcap(logit_scale · (hidden @ weight.T + bias)) / temperature``.

    No gradient is computed. Extra memory is a few tiles, whatever the number of tokens and the vocabulary. For CUDA
    tensors Triton is used where it is installed, without waiting for the device. For every other device torch is used,
    with the same results.

    Args:
        hidden: ``(..., D)`` hidden states that enter the LM head: float32, bfloat16 or float16.
        weight: ``(V, D)`` LM head.
        token_ids: ``(...)`` sampled tokens.
        bias: ``(V,)``, may hold ``-inf`` for banned tokens.
        temperature: the logits are divided by it.
        logit_softcap: ``c`` in ``c · tanh(z / c)`` (Gemma), before the temperature.
        logit_scale: factor on the logits before the soft cap (Cohere; 1 / logits_scaling for Granite).
        product_dtype: ``None`` multiplies and accumulates in float32 whatever the inputs. A loss whose own head rounds
            its products to bfloat16 trains the rounded policy; name its dtype here to measure exactly that one.

    Returns:
        float32 statistics of the shape of `token_ids`.

    Raises:
        ValueError: for shapes that do not belong together, or a temperature or soft cap that is not above 0.
    """
    check_temperature(temperature)
    if logit_softcap is not None and not logit_softcap > 0:
        raise ValueError(f"logit_softcap must be above 0, or None for none, got {logit_softcap}")
    if hidden.shape[:-1] != token_ids.shape or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and token_ids {tuple(token_ids.shape)} "
            "do not belong together: (..., D), (V, D) and (...) are needed"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be {tuple(weight.shape[:1])} for this weight, got {tuple(bias.shape)}")
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), token_ids.reshape(-1)
    head = Head(weight, bias, temperature, logit_softcap, logit_scale, product_dtype)
    with torch.autocast(flat.device.type, enabled=False):  # `product_dtype` alone decides
        if flat.is_cuda and _triton_is_installed():
            from entropy_rft.entropy.fused_triton import running_sums
        else:
            running_sums = _running_sums
        return running_sums(flat, targets, head).statistics().map(lambda row: row.reshape(token_ids.shape))


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


def _running_sums(hidden: Tensor, targets: Tensor, head: Head) -> RunningSums:
    tokens = hidden.shape[0]
    sums = RunningSums.start(tokens, hidden.device)
    tiles = -(-tokens // TOKEN_TILE)
    for tile in range(tiles):  # of equal size: a last tile of one token would cost as much as a full one
        rows = slice(tile * tokens // tiles, (tile + 1) * tokens // tiles)
        _one_token_tile(hidden[rows], targets[rows], head, RunningSums(*(row[rows] for row in sums)))
    return sums


def _one_token_tile(hidden: Tensor, targets: Tensor, head: Head, sums: RunningSums) -> None:
    tokens, vocabulary = hidden.shape[0], head.weight.shape[0]
    before_cap = head.scale / (head.temperature if head.softcap is None else head.softcap)
    # float32 products and sums from any input type: a tile rounded to bfloat16 makes the entropy drift.
    dtype = head.product_dtype or torch.float32
    hidden = hidden.to(dtype)
    bias = None if head.bias is None else head.bias.to(dtype)
    tile = torch.empty(tokens, min(VOCABULARY_TILE, vocabulary), dtype=torch.float32, device=hidden.device)
    exps = torch.empty_like(tile)
    for start in range(0, vocabulary, VOCABULARY_TILE):
        end = min(start + VOCABULARY_TILE, vocabulary)
        z, e = tile[:, : end - start], exps[:, : end - start]
        product = z if dtype == torch.float32 else torch.empty_like(z, dtype=dtype)
        torch.mm(hidden, head.weight[start:end].to(dtype).t(), out=product)
        if bias is not None:
            product.add_(bias[start:end])
        if product is not z:
            z.copy_(product)
        # Scaling the hidden states would be cheaper. The logits are scaled because the training loss scales them, and
        # the log-probabilities of the two are compared.
        if before_cap != 1.0:
            z.mul_(before_cap)
        if head.softcap is not None:
            z.tanh_().mul_(head.softcap / head.temperature)
        local = targets - start
        here = (local >= 0) & (local < end - start)
        at_target = z.gather(1, local.clamp(0, end - start - 1).unsqueeze(1)).squeeze(1)
        sums.target_logit.copy_(torch.where(here, at_target, sums.target_logit))
        _fold(z, e, sums)


def _fold(z: Tensor, e: Tensor, sums: RunningSums) -> None:
    """Add one tile of logits `z` to the sums; `z` and the scratch `e` of its shape are overwritten."""
    maximum, s1, t1, s2, t2, _ = sums
    top = z.amax(1)
    rose = top > maximum
    # argmax reads a tile ten times slower than amax, but after the first tiles few rows need it.
    rising = rose.nonzero().squeeze(1)
    where = z[rising].argmax(1)
    risen = torch.where(rose, top, maximum)
    drop = maximum - risen
    r, old = drop.exp(), rose.float()
    # Before the first maximum r is 0, and so is everything below; with NO_MAXIMUM there is no 0 * inf.
    t1.add_(drop * (s1 + old)).mul_(r)
    s1.add_(old).mul_(r)
    r.square_()
    t2.add_(drop * (s2 + old)).mul_(r)
    s2.add_(old).mul_(r)
    maximum.copy_(risen)

    z.sub_(risen.unsqueeze(1)).clamp_(min=FAR_BELOW)
    torch.mul(z, _LOG2_E, out=e)
    e.exp2_()  # on a CPU four times as fast as exp
    e[rising, where] = 0.0
    s1.add_(e.sum(1))
    s2.add_(torch.linalg.vector_norm(e, dim=1).square_())
    t1.add_(z.mul_(e).sum(1))
    t2.add_(z.mul_(e).sum(1))
