"""TTFT, TPOT, ITL and end-to-end latency of a point's requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.columns.performance import PERCENTILES
from moecap.errors import MoecapError
from moecap.metrics.amounts import lists
from moecap.metrics.intervals import bootstrap_sums, with_interval

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
#: Columns by their older names -> percentile.
OLDER = {"ttft": "ttft_s", "itl": "itl_s"}


@dataclass(frozen=True)
class Times:
    """Latencies of one run's requests: name -> (value, weight), shape (requests that have one, 2); all gaps."""

    pairs: dict[str, np.ndarray]
    gaps_s: np.ndarray


def times_of(requests: pa.Table) -> Times:
    """Latencies of the requests of one run; the weight of an ITL is the request's number of gaps, of others 1.

    Raises:
        MoecapError: times that are out of order.
    """
    arrival, first, finished = (
        requests.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("arrival_s", "first_token_s", "finished_s")
    )
    tokens = pc.list_value_length(requests.column("output_token_ids")).fill_null(0).to_numpy(zero_copy_only=False)
    times, begin, count = lists(requests, "token_times_s")
    end = begin + count
    gaps = np.diff(times)
    gaps[begin[(begin > 0) & (begin < len(times))] - 1] = np.nan  # from one request to the next
    spans = np.zeros(len(count))
    some = count > 1
    spans[some] = times[end[some] - 1] - times[begin[some]]
    every, ones = np.ones(len(count), bool), np.ones(len(count))
    found = {
        "ttft_s": (first - arrival, every, ones),
        "tpot_s": ((finished - first) / np.maximum(tokens - 1, 1), tokens > 1, ones),
        "itl_s": (spans, some, count - 1.0),
        "e2e_s": (finished - arrival, every, ones),
    }
    pairs = {}
    for name, (value, valid, weight) in found.items():
        valid = valid & ~np.isnan(value)
        if (value[valid] < 0).any() or (gaps < 0).any():
            raise MoecapError(
                f"A request's {name} is negative: its times are out of order (arrival, first token, last token). "
                "Measure the point again."
            )
        pairs[name] = np.stack([value, weight], axis=1)[valid]
    return Times(pairs, gaps[~np.isnan(gaps)])


def latencies(runs: Sequence[Times], rng: np.random.Generator, draws: int) -> dict[str, Any]:
    """TTFT, TPOT and ITL with intervals, and percentiles of all latencies."""
    result: dict[str, Any] = {}
    for name in ("ttft_s", "tpot_s", "itl_s"):
        result |= _mean(name, runs, rng, draws)
    for name in LATENCIES:
        values = np.concatenate([_single(name, run) for run in runs]) if runs else np.empty(0)
        if len(values):
            figures = np.percentile(values, PERCENTILES)
            result |= {f"{name}_p{percent}": figure for percent, figure in zip(PERCENTILES, figures, strict=True)}
    for older, name in OLDER.items():
        result |= {f"{older}_p{percent}_s": result.get(f"{name}_p{percent}") for percent in (50, 99)}
    return result


def end_to_end(runs: Sequence[Times], rng: np.random.Generator, draws: int) -> dict[str, Any]:
    """End-to-end latency with its interval; drawn last, so that the draws of other columns stay as they were."""
    return _mean("e2e_s", runs, rng, draws)


def _mean(name: str, runs: Sequence[Times], rng: np.random.Generator, draws: int) -> dict[str, float]:
    """Weighted mean over requests, and its interval: (value, weight) pairs are resampled per request."""
    arrays = [run.pairs[name] for run in runs if len(run.pairs[name])]
    if not arrays:
        return {}
    totals = np.sum([a.sum(axis=0) for a in arrays], axis=0)
    drawn = bootstrap_sums(arrays, rng, draws, block=lambda n: 1)
    return with_interval(name, totals[0] / totals[1], drawn[:, 0] / drawn[:, 1], len(arrays))


def _single(name: str, run: Times) -> np.ndarray:
    """What percentiles of a latency are over: gaps for the ITL, requests for all else."""
    return run.gaps_s if name == "itl_s" else run.pairs[name][:, 0]
