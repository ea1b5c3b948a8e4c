"""What a layer keeps of a context and what a query reads of it: windows, chunks, compression and top-k, only here.

Functions of a :class:`~moecap.model.structure.Cache` and of positions, in entries of that cache; numbers or arrays.
Bytes are entries times :attr:`~moecap.model.structure.Anatomy.cache_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moecap.model.structure import Anatomy, Cache


def entries_cached(cache: Cache, context: Any) -> Any:
    """Entries that are kept after ``context`` tokens (any shape)."""
    kept = np.asarray(context) // cache.tokens
    return kept if cache.window is None else np.minimum(kept, -(-cache.window // cache.tokens))


def entries_read(cache: Cache, first: Any, tokens: Any) -> Any:
    """Entries that computing positions ``first`` to ``first + tokens - 1`` reads, each once, their own included.

    Exact for one token at a time. Of several with a read limit, no two are taken to choose the same entry, as far as
    there are entries: an upper bound.

    Args:
        cache: says whether everything, a sliding window, a chunk or a selection is read.
        first, tokens: any shape.
    """
    if not cache.elements:
        return np.zeros_like(np.asarray(first))
    first, tokens = np.asarray(first), np.asarray(tokens)
    end = first + tokens
    if cache.window is None:
        read = end // cache.tokens
    elif cache.chunked:
        read = end - first // cache.window * cache.window
    else:
        read = np.minimum(end, tokens + cache.window - 1) // cache.tokens
    return read if cache.read_limit is None else np.minimum(read, cache.read_limit * tokens)


def pairs(cache: Cache, first: Any, tokens: Any) -> Any:
    """Causal (query, entry) pairs of computing positions ``first`` to ``first + tokens - 1``: each query sees the
    entries up to itself, in its window and within the read limit.

    Args, returns: as :func:`entries_read`.
    """
    if not cache.elements:
        return np.zeros_like(np.asarray(first))
    first, tokens = np.asarray(first), np.asarray(tokens)
    return _pairs_before(cache, first + tokens) - _pairs_before(cache, first)


def _pairs_before(cache: Cache, position: np.ndarray) -> np.ndarray:
    """Pairs of all queries at positions 0 to ``position - 1``: the sum of min(⌊(q + 1) / tokens⌋, limit)."""
    step, window = cache.tokens, cache.window
    if cache.chunked and window is not None:
        rest = position % window
        return position // window * (window * (window + 1) // 2) + rest * (rest + 1) // 2
    limits = [limit for limit in (None if window is None else window // step, cache.read_limit) if limit is not None]
    limit = min(limits, default=None)
    inside = position if limit is None else np.minimum(position, limit * step)
    whole, rest = inside // step, inside % step
    growing = step * (whole * (whole - 1) // 2) + whole * (rest + 1)
    return growing if limit is None else growing + (position - inside) * limit


def per_cache(anatomy: Anatomy, count: Callable[[Cache], Any]) -> np.ndarray:
    """``count`` of each of the model's caches, stacked along a last axis, as a step table has them."""
    return np.stack([np.asarray(count(cache)) for _, cache in anatomy.caches], axis=-1)


def pair_flops(anatomy: Anatomy) -> np.ndarray:
    """FLOP per (query, entry) of each cache, over all layers of its kind, shape (caches,)."""
    return np.array([anatomy.kinds[index].count * cache.flops_per_pair for index, cache in anatomy.caches], dtype=float)
