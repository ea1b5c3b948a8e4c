"""Which rows of a plan hold the limits, which of them is cheapest, and what MBU-thinking would have bought."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

Row = dict[str, Any]


def meets(
    row: Mapping[str, Any],
    tpot_s: float | None = None,
    ttft_s: float | None = None,
    accuracy: float | None = None,
    dense: bool = False,
) -> bool:
    """Whether a row of the plan is feasible and holds the limits; an unknown accuracy holds none.

    ``dense`` asks as MBU-thinking would: with the TPOT of reading every expert.
    """
    if not row["feasible"]:
        return False
    if tpot_s is not None and row["tpot_dense_s" if dense else "tpot_s"] > tpot_s:
        return False
    if ttft_s is not None and row["ttft_s"] > ttft_s:
        return False
    return accuracy is None or (row["accuracy"] is not None and row["accuracy"] >= accuracy)


def cheapest(
    rows: Iterable[Mapping[str, Any]],
    tpot_s: float | None = None,
    ttft_s: float | None = None,
    accuracy: float | None = None,
    by: str = "usd_per_million_tokens",
    dense: bool = False,
) -> Row | None:
    """The cheapest row that holds the limits, by cost per token or (``by="hardware_usd"``) to buy; None: none."""
    held = [r for r in rows if r.get(by) is not None and meets(r, tpot_s, ttft_s, accuracy, dense)]
    order = ("hardware_usd", "usd_per_million_tokens")
    return dict(min(held, key=lambda r: (r[by], *(r[o] or math.inf for o in order)))) if held else None


def answer(
    table: pa.Table | Sequence[Mapping[str, Any]],
    tpot_s: float | None = None,
    ttft_s: float | None = None,
    accuracy: float | None = None,
) -> dict[str, Any]:
    """What the plan was made for: the cheapest, the largest batch, and what MBU-thinking would have bought instead.

    A prediction that measured runs have calibrated and a bare roofline, which no engine reaches, are not compared with
    each other: where there are both, the answer is about the former, and ``bounds`` about the latter.

    Returns:
        ``cheapest_per_token`` and ``cheapest_to_buy`` (rows or None), ``largest_batch`` (per model, precision, hardware
        and devices), ``mbu`` (the cheapest to buy that MBU's count would have let through) and ``mbu_extra_usd``: what
        it costs more to buy; None where one of the two is None. ``points``, ``feasible``, ``meeting``: how many rows;
        ``workloads``: (prompt, output) tokens of a request.
        ``bounds``: the same three rows of the uncalibrated points, None where all or none are. ``why_none``: where no
        row holds the limits, what comes nearest to it, or why nothing can be served.
    """
    rows = table.to_pylist() if isinstance(table, pa.Table) else list(table)
    limits = (tpot_s, ttft_s, accuracy)
    calibrated, bare = ([r for r in rows if r["upper_bound"] == bound] for bound in (False, True))
    chosen = _choose(calibrated or bare, *limits)
    buy, dense = chosen["cheapest_to_buy"], chosen["mbu"]
    largest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row[k] for k in SYSTEM)
        largest.setdefault(
            key,
            {**{k: row[k] for k in SYSTEM}, "largest_batch": row["largest_batch"], "largest_batch_in_time": None},
        )
        if meets(row, *limits):
            known = largest[key]["largest_batch_in_time"] or 0
            largest[key]["largest_batch_in_time"] = max(known, row["batch_size"])
    meeting = sum(meets(r, *limits) for r in rows)
    return {
        "points": len(rows),
        "workloads": sorted({(r["prompt_tokens"], r["output_tokens"]) for r in rows}),
        "feasible": sum(bool(r["feasible"]) for r in rows),
        "meeting": meeting,
        "upper_bound": any(r["upper_bound"] for r in rows),
        **chosen,
        "mbu_extra_usd": None if buy is None or dense is None else dense["hardware_usd"] - buy["hardware_usd"],
        "bounds": _choose(bare, *limits) if calibrated and bare else None,
        "why_none": [] if meeting else _why_none(rows),
        "largest_batch": list(largest.values()),
    }


#: What a row of the plan would be bought as.
SYSTEM = ("model", "precision", "hardware", "devices")


def _choose(
    rows: Sequence[Mapping[str, Any]], tpot_s: float | None, ttft_s: float | None, accuracy: float | None
) -> dict[str, Row | None]:
    limits = (tpot_s, ttft_s, accuracy)
    return {
        "cheapest_per_token": cheapest(rows, *limits),
        "cheapest_to_buy": cheapest(rows, *limits, by="hardware_usd"),
        "mbu": cheapest(rows, *limits, by="hardware_usd", dense=True),
    }


def _why_none(rows: Sequence[Mapping[str, Any]], most: int = 5) -> list[str]:
    """The fastest that can be served; where nothing can, the reasons, of each system at its smallest batch."""
    feasible = [r for r in rows if r["feasible"]]
    if feasible:
        best = min(feasible, key=lambda r: r["tpot_s"])
        known = "unknown" if best["accuracy"] is None else f"{best['accuracy']:.3f}"
        return [
            f"the fastest of what can be served is {best['devices']} x {best['hardware']}: {best['model']} "
            f"{best['precision']}, batch {best['batch_size']}, TPOT {best['tpot_s'] * 1e3:,.3g} ms, TTFT "
            f"{best['ttft_s'] * 1e3:,.3g} ms, accuracy {known}"
        ]
    first: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda r: r["batch_size"]):
        first.setdefault(tuple(row[k] for k in SYSTEM), row)
    said = [
        f"{r['devices']} x {r['hardware']}: {r['model']} {r['precision']}, batch {r['batch_size']}: {r['reason']}"
        for r in first.values()
    ]
    return [*said[:most], *([f"and {len(said) - most} more"] if len(said) > most else [])]
