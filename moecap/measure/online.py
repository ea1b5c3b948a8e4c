"""Online load: how many requests a run has, its steady window, where a sweep ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecap.engines.base import Arrivals, RequestRecord, RunResult
from moecap.engines.environments import interpreter, versions
from moecap.engines.server.aiperf import DISTRIBUTION, ENVIRONMENT
from moecap.errors import MoecapError


@dataclass(frozen=True)
class Online:
    """How requests arrive at a deployment: ``request_rate`` per second, or as many in flight as the point says.

    ``rounds`` × the requests in flight make a timed run; ``saturation_gain`` is what a larger concurrency has to add.
    """

    rounds: int = 8
    saturation_gain: float = 0.05
    request_rate: float | None = None

    def requests(self, in_flight: int, least: int | None) -> int:
        """Requests of one timed run."""
        return max(least or 0, self.rounds * in_flight)

    def arrivals(self, in_flight: int) -> Arrivals:
        if self.request_rate is not None:
            return Arrivals(request_rate=self.request_rate)
        return Arrivals(concurrency=in_flight)


def client_version() -> str:
    """AIPerf's version: what a run was sent by is part of what it depends on."""
    return versions([DISTRIBUTION], interpreter(ENVIRONMENT, DISTRIBUTION))[DISTRIBUTION]


def steady_window(records: Sequence[RequestRecord]) -> tuple[float, float]:
    """Start and end of the time in which load is steady, in seconds from the start of the run.

    It begins when the first request is done (before, all were at their beginning together) and ends when the last one
    arrives (afterwards fewer and fewer are left).

    Raises:
        MoecapError: the last request arrived before one was done: too few requests for a steady state.
    """
    start = min(record.token_times_s[-1] for record in records)
    end = max(record.arrival_s for record in records)
    if not end > start:
        raise MoecapError(
            f"No steady state: the last of {len(records)} requests arrived before the first one was done. Give more "
            "requests (`performance.requests_per_repeat`, `performance.online.rounds`)."
        )
    return start, end


def point_columns(result: RunResult, arrivals: Arrivals, client_tokens_per_s: float | None) -> dict[str, Any]:
    """What the table of points says of an online run: tokens and time are those of its steady window."""
    start, end = steady_window(result.requests)
    times = np.concatenate([record.token_times_s for record in result.requests])
    inside = times[(times >= start) & (times < end)]
    later = int((inside >= (start + end) / 2).sum())
    first = [r for r in result.requests if start <= r.token_times_s[0] < end]
    return {
        "wall_s": end - start,
        "requests": sum(start <= record.arrival_s <= end for record in result.requests),
        "prompt_tokens": sum(len(record.prompt_token_ids) for record in first),
        "generated_tokens": len(inside),
        "load": "online",
        "concurrency": arrivals.concurrency,
        "request_rate": arrivals.request_rate,
        "window_start_s": start,
        "window_end_s": end,
        "window_drift": later / (len(inside) - later) - 1 if len(inside) > later else None,
        "client_tokens_per_s": client_tokens_per_s,
    }


def saturated_at(
    sizes: Mapping[str, Sequence[int]], rate: Callable[[str, int], float | None], gain: float
) -> dict[str, int]:
    """Dataset -> the concurrency that added less than ``gain`` to the throughput of the one before it.

    Args:
        sizes: dataset -> its concurrencies.
        rate: tokens/s at one of them; None: not measured yet.
    """
    found = {}
    for dataset, values in sizes.items():
        before = None
        for size in sorted(values):
            now = rate(dataset, size)
            if now is None:
                break
            if before is not None and now < before * (1 + gain):
                found[dataset] = size
                break
            before = now
    return found
