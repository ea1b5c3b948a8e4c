"""Fit the prior's coefficients to measured points, robustly, and pull engines towards each other.

The logarithm of every coefficient has a Gaussian prior (its physical guess and how unsure that is); an engine's own
deviates from the common one by a factor of about ``exp(ENGINE_SPREAD)``. The residual is that of log TPOT, with a loss
that grows linearly beyond ``NOISE``, and a cell (model, GPU, engine, precision) counts as ``CELL`` points at most, so
that neither a broken run nor a large sweep decides. An engine that was not measured has the common coefficients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moecap.plan.cases import Case
from moecap.plan.prior import POOLED, Coefficients, first_terms
from moecap.plan.terms import DECODE, PREFILL

#: Physical guess of each coefficient and the standard deviation of its logarithm.
GUESSES: dict[str, tuple[float, float]] = {
    "experts": (1.0, 0.25),  # the kernel's slope is in the term
    "expert_launch": (1.0, 0.35),  # so is its fixed time
    "memory": (1.3, 0.25),
    "layers": (0.03, 0.6),  # six small kernels of 5 µs
    "extra_ops": (0.06, 0.6),
    "sync": (0.005, 0.7),
    "sync_any": (0.01, 0.7),
    "links": (3.0, 0.7),
    "activations": (10.0, 1.0),  # written and read several times per layer
    "compute": (2.0, 0.5),
    "requests": (5.0, 1.0),
    "step": (0.3, 0.8),
    "prefill_compute": (2.0, 0.5),
    "prefill_activations": (5.0, 0.8),
    "prefill_links": (3.0, 0.7),
    "overload": (0.4, 0.5),
}
NAMES = (*DECODE, *PREFILL, "overload")
NOISE = 0.12
ENGINE_SPREAD = 0.25
CELL = 20.0


@dataclass(frozen=True)
class Fitted:
    """Coefficients per engine, the pooled ones under :data:`moecap.plan.prior.POOLED`."""

    engines: dict[str, Coefficients]

    def of(self, engine: str | None) -> Coefficients:
        """An engine's coefficients, the pooled ones for one that was not fitted."""
        return self.engines.get(engine or POOLED, self.engines[POOLED])


@dataclass(frozen=True)
class _Data:
    terms: np.ndarray  # (points, terms): the prefill's already times its share
    over: np.ndarray
    log_measured: np.ndarray
    weight: np.ndarray
    engine: np.ndarray  # (points,): index


def fit(cases: Sequence[Case], engine_spread: float = ENGINE_SPREAD, first_token: bool = True) -> Fitted:
    """Fit to cases with a measured TPOT; with none at all, the guesses are returned.

    Without ``first_token`` the time to first token keeps its guesses.
    """
    from scipy.optimize import least_squares

    names = sorted({case.engine for case in cases})
    guess = np.log([GUESSES[name][0] for name in NAMES])
    unsure = np.array([GUESSES[name][1] for name in NAMES])
    if not cases:
        return Fitted({POOLED: _coefficients(guess)})
    data = _data(cases, names)
    size = len(NAMES)

    def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x[:size], x[size:].reshape(len(names), size)

    def residuals(x: np.ndarray) -> np.ndarray:
        common, own = split(x)
        raw = _raw(common + own, data)[0]
        return np.concatenate([_bent(raw)[0], (common - guess) / unsure, (own / engine_spread).ravel()])

    def jacobian(x: np.ndarray) -> np.ndarray:
        common, own = split(x)
        raw, slopes = _raw(common + own, data)
        bent = _bent(raw)[1][:, None] * slopes
        rows = np.zeros((len(raw) + size + own.size, x.size))
        rows[: len(raw), :size] = bent
        for index in range(len(names)):
            mine = data.engine == index
            rows[: len(raw), size + index * size : size + (index + 1) * size][mine] = bent[mine]
        rows[len(raw) : len(raw) + size, :size] = np.diag(1 / unsure)
        rows[len(raw) + size :, size:] = np.eye(own.size) / engine_spread
        return rows

    start = np.concatenate([guess, np.zeros(len(names) * size)])
    found = least_squares(residuals, start, jac=jacobian, max_nfev=25, ftol=1e-4, xtol=1e-4).x
    common, own = split(found)
    engines = {POOLED: _coefficients(common)} | {n: _coefficients(common + own[i]) for i, n in enumerate(names)}
    return _with_first_token(Fitted(engines), cases) if first_token else Fitted(engines)


def _data(cases: Sequence[Case], names: Sequence[str]) -> _Data:
    cells = Counter(case.cell for case in cases)
    share = np.array([case.prefill_share for case in cases])
    prefill = np.stack([case.terms.prefill for case in cases]) * share[:, None]
    return _Data(
        np.concatenate([np.stack([case.terms.decode[0] for case in cases]), prefill], axis=1),
        np.array([case.terms.over[0] for case in cases]),
        np.log(np.array([case.tpot_s for case in cases], dtype=np.float64)),
        np.sqrt([min(1.0, CELL / cells[case.cell]) for case in cases]),
        np.array([names.index(case.engine) for case in cases]),
    )


def _raw(logs: np.ndarray, data: _Data) -> tuple[np.ndarray, np.ndarray]:
    """Weighted residuals of log TPOT, and their derivatives by each point's own coefficients' logarithms."""
    own = np.exp(logs)[data.engine]
    parts = data.terms * own[:, :-1]
    total = parts.sum(axis=1)
    raw = np.log(total) + own[:, -1] * data.over - data.log_measured
    slopes = np.concatenate([parts / total[:, None], (own[:, -1] * data.over)[:, None]], axis=1)
    scale = data.weight / NOISE
    return raw * scale, slopes * scale[:, None]


def _bent(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals whose square grows linearly beyond 1 (pseudo-Huber), and the derivative of the bend."""
    root = np.sqrt(1 + raw * raw)
    bent = np.sign(raw) * np.sqrt(2 * (root - 1))
    safe = np.where(np.abs(bent) < 1e-9, 1.0, bent)
    return bent, np.where(np.abs(bent) < 1e-9, 1.0, raw / (root * safe))


def _coefficients(logs: np.ndarray) -> Coefficients:
    values = np.exp(logs)
    return Coefficients(values[: len(DECODE)], values[len(DECODE) : -1], float(values[-1]))


def _with_first_token(fitted: Fitted, cases: Sequence[Case]) -> Fitted:
    """The coefficients of the time to first token, by non-negative least squares of relative residuals, reweighted."""
    found = {}
    for name, own in fitted.engines.items():
        mine = [c for c in cases if c.ttft_s and name in (POOLED, c.engine)]
        first = _first_token(own, mine) if len(mine) >= 20 else own.first
        found[name] = Coefficients(own.decode, own.prefill, own.overload, first)
    return Fitted(found)


def _first_token(own: Coefficients, cases: Sequence[Case]) -> np.ndarray:
    from scipy.optimize import nnls

    rows = np.stack([first_terms(own, case.terms, case.workload)[0] for case in cases])
    measured = np.array([case.ttft_s for case in cases], dtype=np.float64)
    weight = np.ones(len(measured))
    solution = own.first
    for _ in range(8):
        scale = weight / measured
        solution = nnls(rows * scale[:, None], measured * scale)[0]
        error = np.abs(np.log(np.maximum(rows @ solution, 1e-9) / measured))
        weight = 1 / np.sqrt(np.maximum(error, 0.05))
    return solution
