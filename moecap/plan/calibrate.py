"""How measured times exceed the roofline on one hardware."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moecap.errors import MoecapError
from moecap.model.structure import Anatomy
from moecap.plan.counts import links_s, roofline_s, steps
from moecap.plan.predict import Calibration, Fit
from moecap.plan.target import Target, Workload

Row = dict[str, Any]


def fit(roofline: np.ndarray, batch: np.ndarray, measured: np.ndarray) -> Fit:
    """The fit with the least relative squared error, all its terms ≥ 0.

    As many terms are used as the points bear: the slowdown alone with one batch size, the overhead with two, the share
    of each request with three or more. The slowdown is at least 1, so that no model is predicted faster than the
    roofline, unless a measured time is: a cache then holds more than the roofline knows of.
    """
    terms = np.stack([roofline, np.ones_like(roofline), batch], axis=1)[:, : min(3, len(np.unique(batch)))]
    least = 1.0 if (measured >= roofline).all() else 0.0
    scaled, wanted = terms / measured[:, None], 1.0 - least * roofline / measured
    best, error = np.array([max(float((measured / roofline).mean()) - least, 0.0)]), math.inf
    chosen: tuple[int, ...] = (0,)
    for size in range(1, terms.shape[1] + 1):
        for columns in itertools.combinations(range(terms.shape[1]), size):
            solution, *_ = np.linalg.lstsq(scaled[:, columns], wanted, rcond=None)
            residual = float(((scaled[:, columns] @ solution - wanted) ** 2).sum())
            if (solution >= 0).all() and residual < error * (1 - 1e-9):
                best, error, chosen = solution, residual, columns
    found = [least, 0.0, 0.0]
    for column, value in zip(chosen, best, strict=True):
        found[column] += float(value)
    freedom = max(len(measured) - len(chosen), 1)
    spread = math.sqrt(error / freedom) if math.isfinite(error) and len(measured) > len(chosen) else 0.0
    return Fit(found[0], found[1], found[2], spread)


def calibrate(
    anatomy: Anatomy,
    target: Target,
    measured: Sequence[Mapping[str, Any]],
    source: str = "measured runs",
    profile: Sequence[np.ndarray] | None = None,
) -> Calibration:
    """Fit decode and prefill times to measured runs of one model on the target.

    Args:
        measured: rows with ``batch_size``, ``tpot_s``, ``ttft_s``, ``prompt_tokens``, ``output_tokens`` (per request).

    Raises:
        MoecapError: no row has a batch size and a TPOT.
    """
    rows = [r for r in measured if r.get("batch_size") and r.get("tpot_s")]
    if not rows:
        raise MoecapError(f"{target.hardware}: no measured run with a batch size and a TPOT to calibrate on.")
    decode, prefill = [], []
    for row in rows:
        counted = steps(anatomy, [row["batch_size"]], workload_of(row), target.devices, profile)
        prompt = counted.batch * row["prompt_tokens"]
        in_decode = roofline_s(counted.decode_bytes, counted.decode_flops, target)
        in_prefill = roofline_s(counted.prefill_bytes, counted.prefill_flops, target)
        decode.append((in_decode + links_s(anatomy, counted.batch, target))[0])
        prefill.append((in_prefill + links_s(anatomy, prompt, target))[0])
    batch = np.array([float(r["batch_size"]) for r in rows])
    tpot = np.array([float(r["tpot_s"]) for r in rows])
    known = [i for i, r in enumerate(rows) if r.get("ttft_s")]
    ttft = np.array([float(rows[i]["ttft_s"]) for i in known])
    prefills = fit(np.array(prefill)[known], batch[known], ttft) if known else Fit()
    return Calibration(fit(np.array(decode), batch, tpot), prefills, source, upper_bound=False)


def workload_of(row: Mapping[str, Any]) -> Workload:
    """What a request of a measured row is."""
    return Workload(max(round(row["prompt_tokens"]), 1), max(round(row["output_tokens"]), 2))


def per_request(row: Mapping[str, Any]) -> Row:
    """A row of metrics with its tokens per request, as :func:`calibrate` takes them."""
    requests = row.get("requests") or 1
    return {
        **row,
        "prompt_tokens": (row.get("prompt_tokens") or requests) / requests,
        "output_tokens": (row.get("generated_tokens") or 2 * requests) / requests,
    }
