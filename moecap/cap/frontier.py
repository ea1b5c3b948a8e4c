"""How often a row is on the Pareto frontier of cost, accuracy and throughput when its figures vary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moecap.jobs.failures import SCOPE
from moecap.metrics.intervals import Z95


def dominated(costs: np.ndarray, accuracies: np.ndarray, throughputs: np.ndarray) -> np.ndarray:
    """Which points are dominated: another one is no worse in all three and better in one.

    Args:
        costs, accuracies, throughputs: shape (..., points); lower cost, higher accuracy and throughput are better.

    Returns:
        Booleans of the same shape.
    """
    points = costs.shape[-1]
    result = np.zeros(np.broadcast_shapes(costs.shape, accuracies.shape, throughputs.shape), bool)
    for i in range(points):  # one column against all others keeps memory at (draws, points)
        c, a, t = costs[..., i, None], accuracies[..., i, None], throughputs[..., i, None]
        no_worse = (costs <= c) & (accuracies >= a) & (throughputs >= t)
        better = (costs < c) | (accuracies > a) | (throughputs > t)
        result[..., i] = (no_worse & better).any(-1)
    return result


def pareto_frequency(
    rows: Sequence[Mapping[str, Any]],
    cost: str = "usd_per_million_tokens",
    draws: int = 1000,
    seed: int = 0,
) -> list[float | None]:
    """How often each row is on the Pareto frontier of its dataset when its figures vary within their intervals.

    Throughput is drawn per row. The price of a hardware entry is drawn once for all deployments on it, so that two rows
    on the same machine are not told apart by a price they share. A model × precision × engine has one accuracy, drawn
    once. The cost per token follows from throughput and price (which moves the capital's share of it), it is not drawn
    again.

    Returns:
        A share of ``draws`` per row; null where cost, accuracy or throughput is null.
    """
    result: list[float | None] = [None] * len(rows)
    needed = (cost, "accuracy", "output_tokens_per_s")
    complete = [i for i, r in enumerate(rows) if all(r.get(k) is not None for k in needed)]
    for dataset in dict.fromkeys(rows[i]["dataset"] for i in complete):
        chosen = [i for i in complete if rows[i]["dataset"] == dataset]
        group = [rows[i] for i in chosen]
        rng = np.random.default_rng(seed)
        speed = np.exp(_draw(rng, group, "output_tokens_per_s", lambda r: (r["deployment"], r["batch_size"]), draws))
        price = np.exp(
            _draw(rng, group, "hardware_usd", lambda r: (r.get("hardware"), r.get("devices")), draws, default=0.0)
        )
        accuracy = _draw(rng, group, "accuracy", lambda r: tuple(r.get(k) for k in SCOPE[1:4]), draws, logs=False)
        middle = {k: np.array([r[k] for r in group], float) for k in (cost, "output_tokens_per_s")}
        bought = np.array([r.get("hardware_usd") or 1.0 for r in group], float)
        share = np.array([1.0 if cost == "hardware_usd" else _capital_share(r) for r in group])
        costs = middle[cost] * (share * price / bought + 1.0 - share)
        if cost != "hardware_usd":
            costs = costs * (middle["output_tokens_per_s"] / speed)
        keys = [tuple(r.get(k) for k in (*SCOPE[1:4], "accuracy", "accuracy_stderr")) for r in group]
        number = {k: i for i, k in enumerate(dict.fromkeys(keys))}
        same_accuracy = np.array([number[k] for k in keys])
        alive = np.flatnonzero(~_always_dominated(costs, accuracy, speed, same_accuracy))
        shares = np.zeros(len(group))
        shares[alive] = 1.0 - dominated(costs[:, alive], accuracy[:, alive], speed[:, alive]).mean(0)
        for i, frequency in zip(chosen, shares, strict=True):
            result[i] = float(frequency)
    return result


def _capital_share(row: Mapping[str, Any]) -> float:
    """Share of the purchase in the cost per token; all of it where the row does not say."""
    share = row.get("capital_share")
    return 1.0 if share is None else share


def _always_dominated(costs: np.ndarray, accuracy: np.ndarray, speed: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Points that one and the same other point beats in every draw, so that neither need be looked at draw by draw.

    Leaving them out changes nothing: what they would beat, the one that beats them beats too.

    Args:
        costs, accuracy, speed: shape (draws, points).
        same: per point, equal where two points share their accuracy.
    """
    (cost_low, accuracy_low, speed_low), (cost_high, accuracy_high, speed_high) = (
        [end(axis=0) for end in ends]
        for ends in ((costs.min, accuracy.min, speed.min), (costs.max, accuracy.max, speed.max))
    )
    found = np.zeros(costs.shape[1], bool)
    for i in range(costs.shape[1]):
        as_accurate = (same == same[i]) | (accuracy_low >= accuracy_high[i])
        found[i] = (as_accurate & (cost_high < cost_low[i]) & (speed_low >= speed_high[i])).any()
    return found


def _draw(
    rng: np.random.Generator,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    shared: Any,
    draws: int,
    logs: bool = True,
    default: float | None = None,
) -> np.ndarray:
    """Normal draws (of logarithms, where ``logs``), shape (draws, rows); rows with one ``shared`` key vary together."""
    noise: dict[Any, np.ndarray] = {}
    columns = []
    for row in rows:
        key = shared(row)
        if key not in noise:
            noise[key] = rng.standard_normal(draws)
        value, low, high = row.get(column), row.get(f"{column}_low"), row.get(f"{column}_high")
        if value is None or (logs and value <= 0):
            columns.append(np.full(draws, default))
            continue
        if logs:
            spread = math.log(high / low) / (2 * Z95) if low and high and low > 0 and high > low else 0.0
            columns.append(math.log(value) + spread * noise[key])
        else:
            half = (high - low) / 2 if low is not None and high is not None else 0.0
            stderr = row.get(f"{column}_stderr")
            spread = half / Z95 if stderr is None else stderr
            columns.append(value + spread * noise[key])
    return np.stack(columns, axis=-1)
