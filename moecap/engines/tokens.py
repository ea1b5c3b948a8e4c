"""Sequences of tokens: what names one wherever it is met again, and how many are computed at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

#: Tokens that a replay computes in one forward pass.
BATCH_TOKENS = 8192


def sequence_hash(token_ids: Sequence[int] | np.ndarray) -> str:
    """sha256 (hex) of the token ids as little-endian int32: the name under which a sequence's routing is kept.

    >>> sequence_hash([1, 2, 3])[:12]
    '4636993d3e1d'
    """
    return hashlib.sha256(np.ascontiguousarray(token_ids, dtype="<i4").tobytes()).hexdigest()


def expert_id_dtype(n_experts: int) -> np.dtype:
    """The smallest unsigned integer type that holds the ids of ``n_experts`` experts."""
    return np.dtype(np.uint8 if n_experts <= 256 else np.uint16)


def groups(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices in groups of at most ``tokens`` tokens (one index at least).

    >>> list(groups([3, 3, 9, 1], 6))
    [[0, 1], [2], [3]]
    """
    group: list[int] = []
    used = 0
    for index, length in enumerate(lengths):
        if group and used + length > tokens:
            yield group
            group, used = [], 0
        group.append(index)
        used += length
    if group:
        yield group
