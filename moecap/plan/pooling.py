"""The prior shrinks to one's own measurements as they come in.

A model on some hardware deviates from the prior by a factor whose logarithm is Gaussian: as wide as the prior's own
interval, half of its variance shared by all models on that hardware. A measured run says what the factor was, up to
noise; the posterior of another run follows (Gaussian conditioning), for the same model nearly what was measured, for
another model on the same hardware half of the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moecap.hardware.systems import Speeds
from moecap.plan.prior import Prior
from moecap.plan.target import Candidate, Workload
from moecap.plan.terms import Parallel, terms

#: Share of the deviation's variance that models on one hardware have in common.
SHARED = 0.5
#: Standard deviation of a run's log TPOT around its own model's factor, and of a mean of many.
NOISE, LEAST = 0.12, 0.03
#: Half the width of a 90% interval, in standard deviations.
NINETY = 1.645


@dataclass(frozen=True)
class Own:
    """Own runs on one hardware: model → log(measured / predicted) of its runs, and where they come from."""

    ratios: Mapping[str, Sequence[float]] = field(default_factory=dict)
    source: str = ""


def posterior(prior: Prior, own: Own | None, model: str, hardware: str) -> tuple[float, float, float]:
    """Factor of the prior's prediction that is expected, and the ends of its 90% interval."""
    low, high = prior.interval(model, hardware)
    if own is None or not own.ratios:
        return 1.0, low, high
    spread = math.log(high) / NINETY
    names = list(own.ratios)
    shared = np.array([[SHARED + (1 - SHARED) * (a == b) for b in names] for a in names])
    noise = np.array([NOISE**2 / len(own.ratios[n]) + LEAST**2 for n in names])
    covariance = spread**2 * shared + np.diag(noise)
    towards = spread**2 * np.array([SHARED + (1 - SHARED) * (n == model) for n in names])
    seen = np.array([float(np.mean(own.ratios[n])) for n in names])
    weights = np.linalg.solve(covariance, towards)
    mean = float(weights @ seen)
    left = math.sqrt(max(spread**2 - float(weights @ towards), 0.0) + LEAST**2)
    return math.exp(mean), math.exp(mean - NINETY * left), math.exp(mean + NINETY * left)


def ratio(
    prior: Prior,
    candidate: Candidate,
    speeds: Speeds,
    parallel: Parallel,
    requests: float,
    workload: Workload,
    measured_s: float,
    profile: Sequence[np.ndarray] | None = None,
) -> float:
    """log(measured / predicted) of one own run."""
    found = terms(candidate.anatomy, speeds, parallel, [requests], workload, profile)
    return math.log(measured_s / float(prior.coefficients.tpot_s(found, workload)[0]))
