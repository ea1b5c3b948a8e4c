"""Speculative decoding of a mixture of experts: one step checks several drafted tokens and reads the union of theirs.

Dense weights are read once for all drafted tokens; experts are not, for tokens choose different ones. So a longer draft
costs bytes, and pays only where enough of it is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


def unions(ids: np.ndarray, window: int) -> np.ndarray:
    """Distinct experts of each run of ``window`` tokens that follow one another.

    Args:
        ids: expert ids of one sequence, (tokens, layers, top-k).

    Returns:
        Shape (tokens - window + 1, layers); no rows for a shorter sequence.
    """
    tokens, layers, top_k = ids.shape
    if tokens < window:
        return np.empty((0, layers), dtype=np.int64)
    runs = np.lib.stride_tricks.sliding_window_view(ids, window, axis=0)  # (runs, layers, top-k, window)
    chosen = np.sort(runs.reshape(tokens - window + 1, layers, top_k * window), axis=-1)
    return 1 + (chosen[..., 1:] != chosen[..., :-1]).sum(axis=-1)


def mean_unions(sequences: Iterable[np.ndarray], depths: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """Mean distinct experts per layer of a step that checks ``depth`` drafted tokens and computes one of its own.

    Args:
        sequences: expert ids of tokens that were decoded, (tokens, layers, top-k) each.
        depths: drafted tokens per step; 0: none. Those for which no sequence is long enough are left out.
    """
    total: dict[int, np.ndarray] = {}
    runs: dict[int, int] = dict.fromkeys(depths, 0)
    for ids in sequences:
        for depth in depths:
            found = unions(ids, depth + 1)
            if len(found):
                total[depth] = total.get(depth, 0) + found.sum(axis=0)
                runs[depth] += len(found)
    return {depth: tuple((total[depth] / runs[depth]).tolist()) for depth in depths if runs[depth]}


def tokens_per_step(acceptance: float, depth: int) -> float:
    """Tokens that a step yields, each drafted one being accepted with the same probability if all before it were:
    ``(1 - a^(d+1)) / (1 - a)`` (Leviathan et al., 2023, equation 1).

    >>> tokens_per_step(0.5, 1), tokens_per_step(1.0, 3), tokens_per_step(0.0, 5)
    (1.5, 4.0, 1.0)
    """
    return float(sum(acceptance**i for i in range(depth + 1)))


@dataclass(frozen=True)
class Depth:
    """What a depth of draft costs at batch size 1, the drafter itself not counted.

    Attributes:
        depth: drafted tokens per step.
        experts: distinct experts per layer and step, mean over layers.
        tokens: tokens that a step yields.
        bytes_per_token: bytes of weights read per token that is yielded.
    """

    depth: int
    experts: float
    tokens: float
    bytes_per_token: float


def depths(
    union: dict[int, tuple[float, ...]], expert_bytes: Sequence[float], fixed_bytes: float, acceptance: float
) -> list[Depth]:
    """Bytes per yielded token for each depth, the cheapest first.

    Args:
        union: of :func:`mean_unions`.
        expert_bytes: of one routed expert of each MoE layer.
        fixed_bytes: what a step reads whatever the routing.
        acceptance: probability that a drafted token is accepted, 0 to 1.
    """
    found = []
    for depth, experts in union.items():
        read = fixed_bytes + sum(n * size for n, size in zip(experts, expert_bytes, strict=True))
        tokens = tokens_per_step(acceptance, depth)
        found.append(Depth(depth, float(np.mean(experts)), tokens, read / tokens))
    return sorted(found, key=lambda d: d.bytes_per_token)
