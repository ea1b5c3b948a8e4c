"""Routing drift: the share of expert choices that change between two runs of the same tokens.

Two precisions, engines or batch sizes are compared token by token, as long as the sequences are the same: behind the
first output token that differs, the contexts differ, and experts would differ for another reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Routing(Protocol):
    """Expert ids (tokens, MoE layers, top-k) by sequence: a routing store."""

    layers: tuple[int, ...]

    def experts(self, sequence_sha256: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Drift:
    """What changed between two runs.

    Attributes:
        tokens: tokens compared: inputs whose whole context is the same in both.
        sequences: pairs of sequences that they are from.
        choices: per MoE layer, the share (0 to 1) of the top-k choices that the second run does not make.
        sets: per MoE layer, the share of tokens whose set of experts is another.
    """

    tokens: int
    sequences: int
    choices: tuple[float, ...]
    sets: tuple[float, ...]

    @property
    def choices_changed(self) -> float:
        """Over all layers."""
        return float(np.mean(self.choices))

    @property
    def sets_changed(self) -> float:
        """Over all layers."""
        return float(np.mean(self.sets))


def changed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Share of each token's choices that the second run does not make, per layer.

    Args:
        first, second: expert ids of shape (tokens, layers, top-k); the order within the top-k does not count.

    Returns:
        Shape (tokens, layers), 0 to 1.

    >>> changed(np.array([[[0, 3]]]), np.array([[[3, 5]]])).tolist()
    [[0.5]]
    """
    kept = (first[..., :, None] == second[..., None, :]).any(axis=-1)
    return 1.0 - kept.mean(axis=-1)


def same_context(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens of two sequences have the same tokens before them and are the same.

    >>> same_context([5, 6, 7, 8], [5, 6, 9])
    2
    """
    shorter = min(len(first), len(second))
    differ = np.flatnonzero(np.asarray(first[:shorter]) != np.asarray(second[:shorter]))
    return int(differ[0]) if len(differ) else shorter


Request = Mapping[str, Any]


def pairs(first: Iterable[Request], second: Iterable[Request]) -> Iterator[tuple[str, str, int]]:
    """Sequences of two runs that begin alike: both hashes, and for how many tokens.

    Args:
        first, second: rows of requests tables (``sequence_sha256``, ``prompt_token_ids``, ``output_token_ids``). A
            prompt is compared once, by its first sequence in each.
    """
    by_prompt: dict[tuple[int, ...], Request] = {}
    for request in first:
        by_prompt.setdefault(tuple(request["prompt_token_ids"]), request)
    for request in second:
        mate = by_prompt.pop(tuple(request["prompt_token_ids"]), None)
        if mate is not None:
            whole = [[*r["prompt_token_ids"], *r["output_token_ids"]] for r in (mate, request)]
            yield mate["sequence_sha256"], request["sequence_sha256"], same_context(*whole)


def drift(first: Routing, second: Routing, common: Iterable[tuple[str, str, int]]) -> Drift | None:
    """Routing drift between two stores of the same model; None: no token has the same context in both.

    Args:
        common: what :func:`pairs` yields.
    """
    tokens = sequences = 0
    choices = np.zeros(len(first.layers))
    sets = np.zeros(len(first.layers))
    for one, other, length in common:
        a, b = first.experts(one)[:length], second.experts(other)[:length]
        length = min(len(a), len(b))
        share = changed(a[:length], b[:length])
        choices += share.sum(axis=0)
        sets += (share > 0).sum(axis=0)
        tokens, sequences = tokens + length, sequences + 1
    if not tokens:
        return None
    return Drift(tokens, sequences, tuple((choices / tokens).tolist()), tuple((sets / tokens).tolist()))
