"""What engines take for each term: coefficients fitted to public measurements, with their source, and intervals.

``data/prior.yaml`` holds them: an engine's own where it was measured, those pooled over engines otherwise. They are
figures; no measured row is in it. :mod:`moecap.plan.fitting` made them, :mod:`moecap.plan.backtest` says how wrong they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from moecap.plan.names import DATA
from moecap.plan.target import Workload
from moecap.plan.terms import DECODE, PREFILL, Terms
from moecap.schema import read_yaml

#: Terms of a time to first token: own prefill, that of those who start together, a step, 1, waiting for a place.
FIRST = ("own_prefill", "others_prefill", "step", "fixed", "waiting")

#: The engine's entry that is used for one that was not measured.
POOLED = "pooled"


@dataclass(frozen=True)
class Coefficients:
    """Multipliers of the terms, all above 0; ``overload`` is an exponent."""

    decode: np.ndarray
    prefill: np.ndarray
    overload: float
    first: np.ndarray = field(default_factory=lambda: np.array([1.0, 0.05, 1.0, 0.02, 0.5]))

    def step_s(self, terms: Terms) -> np.ndarray:
        """A decode step of the running requests alone, shape (concurrencies,)."""
        return terms.decode @ self.decode

    def prefill_s(self, terms: Terms) -> float:
        """The prefill of one request."""
        return float(terms.prefill @ self.prefill)

    def tpot_s(self, terms: Terms, workload: Workload, mixed: bool = True) -> np.ndarray:
        """Mean time per output token; without ``mixed`` that of a step in which nobody's prompt is computed."""
        share = terms.running / workload.output_tokens if mixed else 0.0
        return (self.step_s(terms) + share * self.prefill_s(terms)) * np.exp(self.overload * terms.over)

    def ttft_s(self, terms: Terms, workload: Workload) -> np.ndarray:
        """Mean time to first token in a closed loop that starts all requests together."""
        return first_terms(self, terms, workload) @ self.first


def first_terms(coefficients: Coefficients, terms: Terms, workload: Workload) -> np.ndarray:
    """The terms of :data:`FIRST`, in s, shape (concurrencies, 5)."""
    prefill = coefficients.prefill_s(terms)
    ones = np.ones_like(terms.running)
    fits = max(terms.fits_requests, 1.0)
    excess = np.maximum(terms.concurrency - fits, 0.0) / fits
    waiting = excess * workload.output_tokens * coefficients.tpot_s(terms, workload)
    return np.stack(
        [prefill * ones, prefill * terms.running, coefficients.step_s(terms), ones, waiting],
        axis=1,
    )


@dataclass(frozen=True)
class Prior:
    """An engine's coefficients, how far off they are where they were not fitted, and where they come from.

    Attributes:
        intervals: what is new (``none``, ``gpu``, ``model``, ``both``) → quantity → (low, high): factors that hold 90%
            of what was measured, of the prediction.
        models, hardware: what it was fitted on.
    """

    engine: str
    coefficients: Coefficients
    intervals: Mapping[str, Mapping[str, tuple[float, float]]]
    models: frozenset[str]
    hardware: frozenset[str]
    source: str
    date: str

    def novelty(self, model: str, hardware: str) -> str:
        """What of a deployment the prior was not fitted on."""
        known = {"gpu": hardware in self.hardware, "model": model in self.models}
        new = [name for name, seen in known.items() if not seen]
        return "both" if len(new) == 2 else new[0] if new else "none"

    def interval(self, model: str, hardware: str, quantity: str = "tpot") -> tuple[float, float]:
        """Factors of a prediction that hold 90% of what would be measured."""
        return self.intervals[self.novelty(model, hardware)][quantity]


@lru_cache(maxsize=1)
def _stored() -> Mapping[str, Any]:
    return read_yaml(DATA / "prior.yaml")


@lru_cache(maxsize=16)
def prior_of(engine: str | None) -> Prior:
    """The prior of an engine (``vllm``, ``sglang``, ``trtllm``); of any other the pooled one."""
    stored = _stored()
    name = engine if engine in stored["engines"] else POOLED
    return from_data(str(name), stored)


def from_data(name: str, stored: Mapping[str, Any]) -> Prior:
    """A prior from the data of ``prior.yaml``."""
    entry = stored["engines"][name]
    return Prior(
        engine=name,
        coefficients=Coefficients(
            np.array([float(entry["decode"][t]) for t in DECODE]),
            np.array([float(entry["prefill"][t]) for t in PREFILL]),
            float(entry["overload"]),
            np.array([float(entry["first_token"][t]) for t in FIRST]),
        ),
        intervals={
            new: {q: (float(low), float(high)) for q, (low, high) in found.items()}
            for new, found in entry["intervals"].items()
        },
        models=frozenset(stored["fitted_on"]["models"]),
        hardware=frozenset(stored["fitted_on"]["hardware"]),
        source=str(stored["source"]),
        date=str(stored["date"]),
    )
