"""Expert parallelism: where experts lie, and what the busiest rank then computes and reads in each step.

A step ends when its slowest rank has: the others wait. Which rank that is depends on the tokens, so real traces say.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moecap.errors import MoecapError


@dataclass(frozen=True)
class Placement:
    """Experts of one MoE layer on ranks.

    Attributes:
        ranks: the experts that each rank holds; one that several hold is shared out among them token by token.
        experts: how many there are.

    Raises:
        MoecapError: an expert lies nowhere, twice on a rank, or is none.
    """

    ranks: tuple[tuple[int, ...], ...]
    experts: int

    def __post_init__(self) -> None:
        held = [expert for rank in self.ranks for expert in rank]
        lost = sorted(set(range(self.experts)) - set(held))
        if lost or not set(held) <= set(range(self.experts)):
            wrong = f"expert {lost[0]} lies on no rank" if lost else f"there is no expert {max(held)}"
            raise MoecapError(f"A placement of {self.experts} experts on {len(self.ranks)} ranks: {wrong}.")
        if any(len(set(rank)) < len(rank) for rank in self.ranks):
            raise MoecapError("A placement puts an expert twice on one rank, where once is enough.")

    @cached_property
    def _copies(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per copy of an expert: its rank, the expert, which copy it is, and how many there are."""
        rank = np.repeat(np.arange(len(self.ranks)), [len(r) for r in self.ranks])
        expert = np.array([e for r in self.ranks for e in r], dtype=np.intp)
        number = np.zeros(len(expert), dtype=np.intp)
        seen = np.zeros(self.experts, dtype=np.intp)
        for i, e in enumerate(expert):
            number[i], seen[e] = seen[e], seen[e] + 1
        return rank, expert, number, seen[expert]

    def per_rank(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each rank computes and reads.

        Args:
            counts: tokens per expert in each step, shape (steps, experts).

        Returns:
            Tokens (token-expert pairs) and distinct experts per rank, each of shape (steps, ranks).
        """
        rank, expert, number, of = self._copies
        tokens = (counts[:, expert] + of - 1 - number) // of  # in turn: the first copies have one more
        shape = (len(counts), len(self.ranks))
        computed, read = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        np.add.at(computed.T, rank, tokens.T)
        np.add.at(read.T, rank, (tokens > 0).T)
        return computed, read


def linear(experts: int, ranks: int) -> Placement:
    """Experts in order, as many on each rank as come out even: what engines do unless told otherwise.

    >>> linear(4, 2).ranks
    ((0, 1), (2, 3))
    """
    _check(experts, ranks)
    bounds = [experts * r // ranks for r in range(ranks + 1)]
    return Placement(tuple(tuple(range(a, b)) for a, b in itertools.pairwise(bounds)), experts)


def replicated(load: Sequence[float] | np.ndarray, ranks: int, redundant: int = 0) -> Placement:
    """Experts by their load, the busiest several times, as DeepSeek's expert-parallel load balancer does it.

    First every redundant slot goes to the expert with the most load per copy, then copies go, heaviest first, to the
    rank with the least load that has a slot free and does not hold the expert yet. One level: nodes are not told apart.

    Args:
        load: of each expert, e.g. its tokens.
        ranks: how many there are.
        redundant: copies beside the first of each expert.
    """
    experts = len(load)
    _check(experts, ranks)
    if not 0 <= redundant <= experts * (ranks - 1):
        raise MoecapError(f"{redundant} redundant copies: allowed are 0 to {experts * (ranks - 1)}.")
    copies = np.ones(experts, dtype=np.intp)
    heaviest = [(-float(value), e) for e, value in enumerate(load)]
    heapq.heapify(heaviest)
    for _ in range(redundant):
        _, e = heapq.heappop(heaviest)
        copies[e] += 1
        if copies[e] < ranks:  # a copy on every rank is all that helps
            heapq.heappush(heaviest, (-float(load[e]) / copies[e], e))
    total = experts + redundant
    room = [total * (r + 1) // ranks - total * r // ranks for r in range(ranks)]
    held: list[list[int]] = [[] for _ in range(ranks)]
    weight = [0.0] * ranks
    # What lies on most ranks has the least choice, so it goes first; among the rest the heaviest.
    for e in sorted(range(experts), key=lambda e: (copies[e] < ranks, -float(load[e]) / copies[e])):
        for _ in range(copies[e]):
            free = [r for r in range(ranks) if e not in held[r] and len(held[r]) < room[r]]
            free = free or [r for r in range(ranks) if e not in held[r]]
            r = min(free, key=lambda r: (weight[r], len(held[r])))
            held[r].append(e)
            weight[r] += float(load[e]) / copies[e]
    return Placement(tuple(tuple(sorted(rank)) for rank in held), experts)


@dataclass(frozen=True)
class Busiest:
    """Means over steps.

    Attributes:
        tokens: token-expert pairs that the busiest rank computes in a step.
        experts: distinct experts that the rank reads which reads most.
        tokens_even, experts_even: those of a rank if ranks were alike.
    """

    tokens: float
    experts: float
    tokens_even: float
    experts_even: float

    @property
    def waiting(self) -> float:
        """Share of the ranks' time that waits for the busiest one, where reading experts takes the time."""
        return 1.0 - self.experts_even / self.experts if self.experts else 0.0


def busiest(placement: Placement, counts: np.ndarray) -> Busiest:
    """The busiest rank of each step, on average.

    Args:
        counts: tokens per expert in each step, shape (steps, experts); at least one step.
    """
    tokens, experts = placement.per_rank(counts)
    return Busiest(
        float(tokens.max(axis=1).mean()),
        float(experts.max(axis=1).mean()),
        float(tokens.mean()),
        float(experts.mean()),
    )


def expert_counts(ids: np.ndarray, experts: int) -> np.ndarray:
    """Tokens per expert in each step.

    Args:
        ids: expert ids of shape (steps, tokens, top-k); negative: no token.

    Returns:
        Shape (steps, experts).
    """
    steps = len(ids)
    flat = ids.reshape(steps, -1)
    there = flat >= 0
    place = (np.arange(steps)[:, None] * experts + flat)[there]
    return np.bincount(place, minlength=steps * experts).reshape(steps, experts)


def _check(experts: int, ranks: int) -> None:
    if not 1 <= ranks <= experts:
        raise MoecapError(f"{experts} experts on {ranks} ranks: allowed are 1 to {experts} ranks.")
