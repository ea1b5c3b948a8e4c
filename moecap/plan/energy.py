"""Power that devices draw, from what they do: a rated share at rest, one per byte moved, one per product computed.

    power of a device / TDP = rest + memory × sqrt(S-MBU) + compute × sqrt(S-MFU)

S-MBU and S-MFU are those of the step with its complete counts. The coefficients are in ``data/power.yaml``, with their
source; ``TDP × devices`` is off by half on serving that is bound by memory. Host and facility come on top by the cost
model (idle parts, PUE).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from moecap.hardware.catalogue import Hardware
from moecap.plan.backtest import quantiles
from moecap.plan.cases import Case
from moecap.plan.names import DATA
from moecap.plan.prior import prior_of
from moecap.plan.terms import Terms
from moecap.schema import read_yaml

TERMS = ("rest", "memory", "compute")


@lru_cache(maxsize=1)
def power_data() -> Mapping[str, Any]:
    """``data/power.yaml``."""
    return read_yaml(DATA / "power.yaml")


def features(terms: Terms, step_s: np.ndarray, devices: int) -> np.ndarray:
    """What a device's share of its TDP is linear in, shape (concurrencies, 3)."""
    busy = terms.read_bytes / step_s / devices / terms.bytes_per_s
    computing = np.sqrt(terms.flops / step_s / devices / terms.peak_flops)
    return np.stack([np.ones_like(busy), np.sqrt(busy), computing], axis=1)


def device_power_w(terms: Terms, step_s: np.ndarray, devices: int, tdp_w: float) -> np.ndarray:
    """Mean power of one device, in W, at most its TDP; shape (concurrencies,)."""
    weights = np.array([float(power_data()["coefficients"][name]) for name in TERMS])
    return np.minimum(features(terms, step_s, devices) @ weights, 1.0) * tdp_w


def power_interval() -> tuple[float, float]:
    """Factors of a predicted power that hold 90% of what was measured (models held out)."""
    low, high = power_data()["interval"]
    return float(low), float(high)


def energy_report(cases: Sequence[Case], hardware: Hardware) -> dict[str, Any]:
    """How wrong power and energy per token are, on rows that print them.

    ``power_mape`` with the printed time per token, ``power_mape_predicted`` with the predicted one,
    ``power_mape_held_out`` with coefficients refitted without the model; ``power_coverage``: the share of powers within
    the shipped interval of the predicted one; ``joules_mape`` with everything predicted; ``tdp_mape``: what ``TDP ×
    devices`` would say; ``itl``: the predicted gap between tokens against the printed one.
    """
    rows = [c for c in cases if c.point.power_w and c.point.devices and c.tpot_s and hardware.find(c.hardware).gpu]
    if not rows:
        return {"points": 0}
    tdp = np.array([_tdp(c, hardware) for c in rows])
    devices = np.array([float(c.point.devices or 1) for c in rows])
    watts = np.array([float(c.point.power_w or 0.0) for c in rows])
    measured_s = np.array([float(c.tpot_s or 0.0) for c in rows])
    predicted_s = np.array(
        [float(prior_of(c.engine).coefficients.tpot_s(c.terms, c.workload, c.mixed)[0]) for c in rows]
    )

    def power(step: np.ndarray) -> np.ndarray:
        each = [device_power_w(c.terms, np.array([s]), int(d), t)[0] for c, s, d, t in
                zip(rows, step, devices, tdp, strict=True)]  # fmt: skip
        return np.array(each) * devices

    inputs = np.stack([features(c.terms, np.array([s]), int(d))[0] for c, s, d in
                       zip(rows, measured_s, devices, strict=True)])  # fmt: skip
    held = held_out(inputs, watts / devices / tdp, [c.model for c in rows]) * tdp * devices
    ratio = watts / held
    found = {
        "points": len(rows),
        "models": len({c.model for c in rows}),
        "power_mape": _mape(power(measured_s), watts),
        "power_mape_predicted": _mape(power(predicted_s), watts),
        "power_mape_held_out": _mape(held, watts),
        "tdp_mape": _mape(tdp * devices, watts),
        "itl_mape": _mape(predicted_s, measured_s),
        "itl_bias": float(np.median(predicted_s / measured_s - 1)),
        "power_interval": list(quantiles(ratio, np.ones(len(ratio)))),
    }
    ends = power_interval()
    drawn = power(predicted_s)
    found["power_coverage"] = float(((watts >= drawn * ends[0]) & (watts <= drawn * ends[1])).mean())
    timed = [i for i, c in enumerate(rows) if c.point.joules_per_token]
    if timed:
        running = np.array([float(c.terms.running[0]) for c in rows])
        mean_s = [prior_of(c.engine).coefficients.tpot_s(c.terms, c.workload)[0] for c in rows]
        joules = power(predicted_s) * np.array(mean_s, dtype=np.float64) / running
        printed = np.array([float(rows[i].point.joules_per_token or 0.0) for i in timed])
        found["joules_mape"] = _mape(joules[timed], printed)
        inside = (printed >= joules[timed] * ends[0]) & (printed <= joules[timed] * ends[1])
        found["joules_coverage"] = float(inside.mean())
    return found


def held_out(inputs: np.ndarray, shares: np.ndarray, models: Sequence[str]) -> np.ndarray:
    """Predicted shares of the TDP, each model by a fit to the others (to all where there is one alone)."""
    names = np.array(models)
    found = np.empty(len(shares))
    for model in np.unique(names):
        train = names != model if (names != model).any() else np.ones(len(names), bool)
        found[names == model] = inputs[names == model] @ fit_power(inputs[train], shares[train], names[train])
    return np.minimum(found, 1.0)


def fit_power(inputs: np.ndarray, shares: np.ndarray, models: np.ndarray) -> np.ndarray:
    """Coefficients ≥ 0 by least relative squares, every model counting by the root of its points."""
    from scipy.optimize import nnls

    counts = {m: int((models == m).sum()) for m in np.unique(models)}
    scale = np.array([1 / np.sqrt(counts[m]) for m in models]) ** 0.5 / shares
    return nnls(inputs * scale[:, None], shares * scale)[0]


def _tdp(case: Case, hardware: Hardware) -> float:
    gpu = hardware.find(case.hardware).gpu
    return float(gpu.tdp_w) if gpu is not None else 0.0


def _mape(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(np.abs(predicted / measured - 1).mean())
