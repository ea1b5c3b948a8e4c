"""Intervals of 95%, from repeats and from what lies within them.

Latencies and utilizations: a bootstrap over repeats and, within a repeat, over requests or over blocks of consecutive
steps (steps are autocorrelated), widened by √(R/(R-1)) because R repeats understate how much repeats vary. Rates:
Student's t over the repeats' logarithms; null with a single repeat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DRAWS = 1000
#: Two-sided 95% of the normal distribution.
Z95 = 1.959963984540054
# Student's t, two-sided 95%, for 1 to 30 degrees of freedom.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def rate(name: str, amount: np.ndarray, time_s: np.ndarray) -> dict[str, Any]:
    """Sum over sum, and Student's t interval of the repeats' logarithms around it."""
    rate = float(amount.sum() / time_s.sum())
    result: dict[str, Any] = {name: rate}
    n = len(amount)
    if n > 1 and (amount > 0).all():
        spread = np.log(amount / time_s).std(ddof=1) / math.sqrt(n)
        factor = math.exp((T95[n - 2] if n - 2 < len(T95) else 1.96) * spread)
        result |= {f"{name}_low": rate / factor, f"{name}_high": rate * factor}
    return result


def block_length(steps: int) -> int:
    """Steps per bootstrap block: the square root of their number, so that blocks outlast the autocorrelation.

    >>> [block_length(n) for n in (1, 48, 10_000)]
    [1, 7, 100]
    """
    return max(1, round(math.sqrt(steps)))


def bootstrap_sums(
    runs: Sequence[np.ndarray],
    rng: np.random.Generator,
    draws: int = DRAWS,
    block: Callable[[int], int] = block_length,
) -> np.ndarray:
    """Resampled column sums: repeats are drawn with replacement, and within each, circular blocks of rows.

    Args:
        runs: per repeat an array (rows, columns); rows in order of time.
        rng, draws: of the resampling.
        block: rows → rows per block.

    Returns:
        Shape (draws, columns). A drawn repeat is scaled to the number of rows that it has, so that blocks which do
        not divide it evenly do not change its weight.
    """
    result = np.zeros((draws, runs[0].shape[1]))
    chosen = rng.integers(len(runs), size=(draws, len(runs)))
    for index, rows in enumerate(runs):
        n = len(rows)
        length = min(block(n), n)
        count = -(-n // length)
        sums = np.zeros((n + length, rows.shape[1]))
        np.cumsum(np.concatenate([rows, rows[: length - 1]]), axis=0, out=sums[1:])
        draw = np.repeat(np.arange(draws), (chosen == index).sum(axis=1))
        for begin in range(0, len(draw), 256):
            part = draw[begin : begin + 256]
            start = rng.integers(n, size=(len(part), count))
            drawn = (sums[start + length] - sums[start]).sum(axis=1) * (n / (count * length))
            np.add.at(result, part, drawn)
    return result


def with_interval(name: str, value: float, drawn: np.ndarray, repeats: int) -> dict[str, float]:
    widen = math.sqrt(repeats / (repeats - 1)) if repeats > 1 else 1.0
    low, high = value + widen * (np.percentile(drawn, [2.5, 97.5]) - value)
    # Nothing here can be negative, and rounding must not put the value outside its own interval.
    low, high = min(max(low, 0.0), value), max(high, value)
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
