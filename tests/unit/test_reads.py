"""What is kept of a context and what is read of it, against counting entries one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moecap.model.reads import entries_cached, entries_read, pairs
from moecap.model.structure import Cache

LIMITS = st.none() | st.integers(1, 12)


def visible(cache: Cache, query: int) -> list[int]:
    """Entries that the query at a position may read, before any choice among them."""
    entries = list(range((query + 1) // cache.tokens))
    if cache.window is None:
        return entries
    if cache.chunked:
        return [e for e in entries if e // cache.window == query // cache.window]
    return [e for e in entries if e > query - cache.window]


@given(context=st.integers(0, 200), tokens=st.integers(1, 9), limit=LIMITS)
def test_one_query_reads_no_more_than_its_limit_of_what_is_kept(context: int, tokens: int, limit: int | None) -> None:
    cache = Cache(3, tokens=tokens, read_limit=limit)
    kept = len(visible(cache, context))
    assert entries_cached(cache, context + 1) == kept
    assert entries_read(cache, context, 1) == min(kept, limit if limit is not None else kept)
    assert pairs(cache, context, 1) == entries_read(cache, context, 1)


@given(
    first=st.integers(0, 60),
    count=st.integers(1, 40),
    tokens=st.integers(1, 9),
    window=st.none() | st.integers(1, 30),
    chunked=st.booleans(),
    limit=LIMITS,
)
def test_pairs_are_the_sum_of_what_each_query_reads(first, count, tokens, window, chunked, limit) -> None:
    if window is not None:
        tokens = 1  # a window of compressed entries is kept by no model
    if chunked and window is not None:
        limit = None
    cache = Cache(3, tokens=tokens, window=window, chunked=chunked, read_limit=limit)
    each = [min(len(visible(cache, q)), limit or 10**9) for q in range(first, first + count)]
    assert pairs(cache, first, count) == sum(each)
    union = len(set().union(*(visible(cache, q) for q in range(first, first + count))))
    read = int(entries_read(cache, first, count))
    assert max(each, default=0) <= read
    if limit is None and not chunked:
        assert read == union


def test_nothing_kept_is_nothing_read_in_any_shape() -> None:
    assert entries_read(Cache(0), np.array([5, 7]), np.array([3, 1])).tolist() == [0, 0]
    assert pairs(Cache(0), 5, 3) == 0
