"""Metrics of online load: only what lies in the steady window of a run counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.metrics.steps import points_of

Key = tuple[str, int, int]
Window = tuple[float, float]


def windows_of(points: pa.Table) -> dict[Key, Window]:
    """The steady windows of online runs; offline ones have none: the whole run counts."""
    if "window_start_s" not in points.column_names:
        return {}
    rows = points.select(["dataset", "batch_size", "repeat", "window_start_s", "window_end_s"]).to_pylist()
    return {
        (row["dataset"], row["batch_size"], row["repeat"]): (row["window_start_s"], row["window_end_s"])
        for row in rows
        if row["window_start_s"] is not None
    }


def steps_within(steps: pa.Table, windows: Mapping[Key, Window]) -> pa.Table:
    """The steps that began and ended within their run's window."""
    if not windows:
        return steps
    pieces = [steps.schema.empty_table()]
    for key, piece in points_of(steps):
        if key in windows:
            start, end = windows[key]
            ends = pc.add(piece["start_s"], piece["wall_s"])
            piece = piece.filter(pc.and_(pc.greater_equal(piece["start_s"], start), pc.less_equal(ends, end)))
        pieces.append(piece)
    return pa.concat_tables(pieces)


def requests_within(requests: pa.Table, window: Window | None) -> pa.Table:
    """The requests that arrived within the window."""
    if window is None:
        return requests
    arrived = requests["arrival_s"]
    return requests.filter(pc.and_(pc.greater_equal(arrived, window[0]), pc.less_equal(arrived, window[1])))


def columns(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the repeats of a point say of its load."""

    def of(name: str) -> list[Any]:
        return [value for p in points if (value := p.get(name)) is not None]

    first = points[0]
    drift = of("window_drift")
    return {
        "load": first.get("load") or "offline",
        **{name: first.get(name) for name in ("concurrency", "request_rate", "saturates")},
        "window_s": sum(of("window_end_s")) - sum(of("window_start_s")) if of("window_end_s") else None,
        "window_drift": max(drift, key=abs) if drift else None,
        "client_tokens_per_s": min(of("client_tokens_per_s"), default=None),
    }


def served_well(requests: pa.Table, slo: Mapping[str, float]) -> int:
    """Requests that hold every limit of ``slo`` (``ttft_s``, ``tpot_s``, ``e2e_s``)."""
    arrival, first, finished = (requests[name].to_numpy() for name in ("arrival_s", "first_token_s", "finished_s"))
    tokens = pc.list_value_length(requests["output_token_ids"]).to_numpy()
    taken = {
        "ttft_s": first - arrival,
        "tpot_s": (finished - first) / np.maximum(tokens - 1, 1),
        "e2e_s": finished - arrival,
    }
    return int(np.all([taken[name] <= limit for name, limit in slo.items()], axis=0).sum())
