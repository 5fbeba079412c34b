"""The same token statistics from hidden states and the LM head, without ever holding the logits.

One pass over tiles of the vocabulary with an online log-sum-exp. With ``z`` the transformed logits, ``m`` the running
maximum and ``e = exp(z - m)``, four running sums are enough for everything::

    s1 = Σ e    t1 = Σ e (z-m)    s2 = Σ e²    t2 = Σ e² (z-m)

    log π(a) = z_a - m - log s1
    H        = log s1 - t1/s1
    E[S]     = Σ π² (H + log π) = (t2 - s2 t1/s1) / s1²

When the maximum rises by d, ``e`` shrinks by ``r = exp(-d)`` and the sums follow: ``s ← r s``, ``t ← r (t - d s)``
(with ``r²`` for the squares).
"""

from __future__ import annotations

import torch
from torch import Tensor

from entropy_rft.entropy.statistics import TokenStatistics, check_temperature

# A tile of 512 x 1,024 float32 logits is 2 MiB: it stays in a core's cache from the product to the sums.
TOKEN_TILE = 512
VOCABULARY_TILE = 1024

# Stands for -inf where an infinite value would make 0 * inf: exp(-1e4) is 0 in float32 and 0 * -1e4 is 0.
_FAR_BELOW = -1.0e4
_NO_MAXIMUM = -1.0e30


@torch.no_grad()
def fused_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    product_dtype: torch.dtype | None = None,
) -> TokenStatistics:
    """:class:`TokenStatistics` of ``z = softcap(logit_scale · (hidden @ weight.T + bias)) / temperature``.

    No gradient flows. Extra memory is a few tiles, whatever the number of tokens and the vocabulary.

    Args:
        hidden: ``(..., D)`` hidden states that enter the LM head.
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
    flat = hidden.reshape(-1, hidden.shape[-1])
    targets = token_ids.reshape(-1)
    output = torch.empty(3, flat.shape[0], dtype=torch.float32, device=flat.device)
    for start in range(0, flat.shape[0], TOKEN_TILE):
        tokens = slice(start, start + TOKEN_TILE)
        _one_token_tile(
            flat[tokens],
            weight,
            bias,
            targets[tokens],
            temperature,
            logit_softcap,
            logit_scale,
            product_dtype,
            output[:, tokens],
        )
    return TokenStatistics(*(row.reshape(token_ids.shape) for row in output))


def _one_token_tile(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    logit_softcap: float | None,
    logit_scale: float,
    product_dtype: torch.dtype | None,
    output: Tensor,
) -> None:
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    before_cap = logit_scale if logit_softcap is not None else logit_scale / temperature
    rounded = hidden.to(product_dtype) if product_dtype is not None else None
    # float32 products and sums from any input type: a tile rounded to bfloat16 makes the entropy drift.
    # Scaling commutes with the product, and D numbers are cheaper to scale than V.
    hidden = hidden.float() * before_cap
    tile = hidden.new_empty(tokens, min(VOCABULARY_TILE, vocabulary))
    exps = torch.empty_like(tile)
    maximum = hidden.new_full((tokens,), _NO_MAXIMUM)
    s1, t1, s2, t2 = hidden.new_zeros(4, tokens)
    target_logit = hidden.new_full((tokens,), float("-inf"))
    for start in range(0, vocabulary, VOCABULARY_TILE):
        end = min(start + VOCABULARY_TILE, vocabulary)
        z, e = tile[:, : end - start], exps[:, : end - start]
        if rounded is None:
            torch.mm(hidden, weight[start:end].float().t(), out=z)
            if bias is not None:
                z.add_(bias[start:end].float() * before_cap)
        else:
            product = torch.mm(rounded, weight[start:end].to(rounded.dtype).t())
            if bias is not None:
                product.add_(bias[start:end].to(rounded.dtype))
            z.copy_(product).mul_(before_cap)
        if logit_softcap is not None:
            z.div_(logit_softcap).tanh_().mul_(logit_softcap / temperature)
        local = targets - start
        here = (local >= 0) & (local < end - start)
        at_target = z.gather(1, local.clamp(0, end - start - 1).unsqueeze(1)).squeeze(1)
        target_logit = torch.where(here, at_target, target_logit)

        risen = torch.maximum(maximum, z.amax(1))
        drop = maximum - risen
        z.sub_(risen.unsqueeze(1)).clamp_(min=_FAR_BELOW)
        torch.exp(z, out=e)
        r = drop.exp()
        # `drop` times an empty sum must be 0 also when the first maximum stands in for -inf.
        t1 = r * (t1 + drop * s1)
        s1 = r * s1 + e.sum(1)
        r2 = r * r
        t2 = r2 * (t2 + drop * s2)
        s2 = r2 * s2
        z.mul_(e)
        t1 = t1 + z.sum(1)
        z.mul_(e)
        t2 = t2 + z.sum(1)
        e.mul_(e)
        s2 = s2 + e.sum(1)
        maximum = risen
    log_s1 = s1.log()
    mean = t1 / s1
    lowest = torch.finfo(torch.float32).min
    output[0] = (target_logit - maximum - log_s1).clamp(min=lowest, max=0.0)
    output[1] = (log_s1 - mean).clamp(min=0.0)
    output[2] = (t2 - s2 * mean) / (s1 * s1)
