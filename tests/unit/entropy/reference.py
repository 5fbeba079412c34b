"""The definitions of methods.md, token by token in float64 numpy; shares nothing with the package."""

from __future__ import annotations

import math

import numpy as np


def distribution(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    z = np.asarray(logits, dtype=np.float64) / temperature
    e = np.exp(z - z.max())
    return e / e.sum()


def statistics(logits: np.ndarray, token: int, temperature: float = 1.0) -> dict[str, float]:
    """log π(a), H, S* and E[S] of one row."""
    p = distribution(logits, temperature)
    h = -sum(x * math.log(x) for x in p if x > 0)
    s = [x * (h + math.log(x)) if x > 0 else 0.0 for x in p]
    z = np.asarray(logits, dtype=np.float64) / temperature
    finite = z[np.isfinite(z)]
    log_z = finite.max() + math.log(np.exp(finite - finite.max()).sum())
    return {
        "log_prob": z[token] - log_z,
        "entropy": h,
        "discriminant": s[token],
        "expected_discriminant": sum(x * y for x, y in zip(p, s, strict=True)),
    }


def kept(
    rule: str,
    s_star: list[float],
    expected: list[float],
    advantages: list[float],
    mu_low: float,
    mu_high: float,
    which: str,
) -> list[bool]:
    """The rule for a batch given as flat lists of valid tokens."""
    n = len(s_star)
    mean = sum(s_star) / n
    z = [s - mean for s in s_star] if rule == "clip_b" else [s - e for s, e in zip(s_star, expected, strict=True)]
    z_mean = sum(z) / n
    sigma = math.sqrt(sum((x - z_mean) ** 2 for x in z) / n)
    if sigma < 1e-12:
        return [True] * n
    eligible = {"negative": lambda a: a < 0, "positive": lambda a: a > 0, "all": lambda a: True}[which]
    return [not eligible(a) or -mu_low * sigma <= x <= mu_high * sigma for x, a in zip(z, advantages, strict=True)]
