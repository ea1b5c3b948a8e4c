"""How wrong the planner is: each measured point predicted, with what fits it had and without.

Three holdouts refit the prior without what is predicted: each GPU type in turn, each model, and both at once. A
prediction's interval holds 90% of what was measured; its coverage is counted. Intervals of a holdout come from the
residuals of the *other* held-out groups (split conformal by group), so that coverage is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecap.hardware.catalogue import Hardware
from moecap.plan.audit import bound_violation, suspected_speculation
from moecap.plan.cases import Case
from moecap.plan.fitting import Fitted, fit
from moecap.plan.prior import POOLED, Coefficients, prior_of

#: Share of what is measured that an interval is to hold.
COVER = 0.9
#: A point whose requests wait for most of their time measures the queue.
WAITING = 0.3
#: So many residuals of an engine's own, and groups of them, make an interval.
ENOUGH, ENOUGH_GROUPS = 40, 3
HOLDOUTS = ("gpu", "model", "both")

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """Predicted and measured TPOT of cases (s), and the ends of the interval; arrays of shape (cases,)."""

    cases: Sequence[Case]
    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def measured(self) -> np.ndarray:
        return np.array([case.tpot_s for case in self.cases], dtype=np.float64)

    @property
    def ratio(self) -> np.ndarray:
        """Measured over predicted."""
        return self.measured / self.predicted

    def where(self, keep: Sequence[bool] | np.ndarray) -> Predictions:
        """Those cases alone."""
        mask = np.asarray(keep, dtype=bool)
        kept = [case for case, k in zip(self.cases, mask, strict=True) if k]
        return Predictions(kept, self.predicted[mask], self.low[mask], self.high[mask])


def metrics(found: Predictions) -> Metrics:
    """Errors of predictions: ``mape`` and ``median`` of |predicted / measured − 1|, ``bias`` (median, signed) …"""
    if not len(found.cases):
        return {"points": 0} | dict.fromkeys(
            ("mape", "median", "bias", "rank_correlation", "coverage", "bound_violations")
        )
    measured = found.measured
    error = found.predicted / measured - 1
    inside = (measured >= found.low) & (measured <= found.high)
    bound = np.array([float(case.terms.roofline_s[0]) for case in found.cases])
    return {
        "points": len(found.cases),
        "mape": float(np.abs(error).mean()),
        "median": float(np.median(np.abs(error))),
        "bias": float(np.median(error)),
        "rank_correlation": _rank_correlation(found.predicted, measured),
        "coverage": float(inside.mean()),
        "bound_violations": int((measured < bound).sum()),
    }


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's; None for fewer than three points or without any spread."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def by_prior(cases: Sequence[Case]) -> Predictions:
    """Predicted by the prior that comes with the library."""
    predicted, low, high = [], [], []
    for case in cases:
        prior = prior_of(case.engine)
        value = float(prior.coefficients.tpot_s(case.terms, case.workload, case.mixed)[0])
        ends = prior.interval(case.model, case.hardware)
        predicted.append(value)
        low.append(value * ends[0])
        high.append(value * ends[1])
    return Predictions(cases, np.array(predicted), np.array(low), np.array(high))


def predict(cases: Sequence[Case], coefficients_of: Callable[[str], Coefficients]) -> np.ndarray:
    """Predicted TPOT of cases, in s."""
    return np.array([float(coefficients_of(c.engine).tpot_s(c.terms, c.workload, c.mixed)[0]) for c in cases])


def usable(cases: Sequence[Case]) -> np.ndarray:
    """Which cases a fit may learn from, shape (cases,): a TPOT, its parallelism said, not mostly waiting, no drafts."""
    suspects = suspected_speculation(cases)
    return np.array(
        [
            bool(c.tpot_s)
            and c.point.speculative is not True
            and i not in suspects
            and c.point.tp is not None
            and c.terms.fits_requests >= 1
            and not _waits(c)
            for i, c in enumerate(cases)
        ],
        dtype=bool,
    )


def _waits(case: Case) -> bool:
    if not case.ttft_s or not case.tpot_s:
        return False
    return case.ttft_s > WAITING * (case.ttft_s + case.workload.output_tokens * case.tpot_s)


def folds(cases: Sequence[Case], kind: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(what is learnt from, what is predicted) of a holdout, as masks; none where nothing is left to learn from."""
    gpus, models = np.array([c.hardware for c in cases]), np.array([c.model for c in cases])
    keys = {"gpu": [(g, None) for g in sorted(set(gpus))], "model": [(None, m) for m in sorted(set(models))]}
    keys["both"] = sorted(set(zip(gpus.tolist(), models.tolist(), strict=True)))
    for gpu, model in keys[kind]:
        same_gpu = gpus == gpu if gpu is not None else np.zeros(len(cases), bool)
        same_model = models == model if model is not None else np.zeros(len(cases), bool)
        test = same_gpu & same_model if kind == "both" else same_gpu | same_model
        train = ~(same_gpu | same_model)
        if train.any():
            yield train, test


def holdout(cases: Sequence[Case], kind: str, refit: Callable[..., Fitted] = fit) -> Predictions | None:
    """Each GPU type, model, or both, predicted by a prior that has not seen it; None where there is but one."""
    predicted = np.full(len(cases), np.nan)
    group = np.full(len(cases), -1)
    for number, (train, test) in enumerate(folds(cases, kind)):
        fitted = refit([c for c, t in zip(cases, train, strict=True) if t], first_token=False)
        predicted[test] = predict([c for c, t in zip(cases, test, strict=True) if t], fitted.of)
        group[test] = number
    seen = group >= 0
    if not seen.any():
        return None
    kept = [c for c, s in zip(cases, seen, strict=True) if s]
    measured = np.array([c.tpot_s for c in kept], dtype=np.float64)
    low, high = conformal(measured / predicted[seen], group[seen], kept)
    return Predictions(kept, predicted[seen], predicted[seen] * low, predicted[seen] * high)


def conformal(ratio: np.ndarray, group: np.ndarray, cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Ends of intervals as factors of the prediction, for each point from its engine's residuals in the other groups.

    Where an engine has too few groups (:data:`ENOUGH_GROUPS`), those of all engines are used; where there is one group
    alone, its own.
    """
    low, high = np.empty(len(ratio)), np.empty(len(ratio))
    weights = cell_weights([case.cell for case in cases])
    engines = np.array([case.engine for case in cases])
    for number in np.unique(group):
        others = group != number if (group != number).any() else group == number
        for engine in np.unique(engines[group == number]):
            own, like = (group == number) & (engines == engine), others & (engines == engine)
            taken = like if len(np.unique(group[like])) >= ENOUGH_GROUPS else others
            low[own], high[own] = quantiles(ratio[taken], weights[taken])
    return low, high


def cell_weights(cells: Sequence[object]) -> np.ndarray:
    """Weights by which every cell counts alike, however many points it has."""
    counts: dict[object, int] = {}
    for cell in cells:
        counts[cell] = counts.get(cell, 0) + 1
    return np.array([1.0 / np.sqrt(counts[cell]) for cell in cells])


def quantiles(ratio: np.ndarray, weights: np.ndarray, cover: float = COVER) -> tuple[float, float]:
    """The interval (1/f, f) around 1 that holds ``cover`` of weighted ratios.

    It is symmetric, because a bias seen in one group says nothing about the sign of the next one's.
    """
    size = np.abs(np.log(ratio))
    order = np.argsort(size)
    share = np.cumsum(weights[order]) / weights.sum()
    factor = float(np.exp(size[order][min(int(np.searchsorted(share, cover)), len(ratio) - 1)]))
    return 1 / factor, factor


def grouped(found: Predictions, key: Callable[[Case], tuple[Any, ...]], names: Sequence[str]) -> list[Metrics]:
    """Metrics per group, in the order of its name."""
    keys = [key(case) for case in found.cases]
    return [
        {**dict(zip(names, one, strict=True)), **metrics(found.where([k == one for k in keys]))}
        for one in sorted(set(keys), key=str)
    ]


def report(
    cases: Sequence[Case],
    unpredicted: Iterable[tuple[object, str]],
    hardware: Hardware,
    holdouts: Iterable[str] = HOLDOUTS,
) -> dict[str, Any]:
    """Everything that ``moecap backtest --json`` prints about serving points.

    Returns:
        the metrics of all points that have a TPOT; ``comparable``: the same of those that a fit may learn from
        (:func:`usable`); ``groups`` by model × hardware × engine, ``concurrency``: by model × hardware × engine ×
        concurrency; ``holdout``; ``ttft``; ``violations``, each with what would explain it; ``unpredicted``: reason →
        number of points.
    """
    timed = [case for case in cases if case.tpot_s]
    found, fair = by_prior(timed), usable(timed)
    names = ("model", "hardware", "engine")
    clean = [case for case, u in zip(timed, fair, strict=True) if u]
    held = {kind: holdout(clean, kind) for kind in holdouts}
    reasons: dict[str, int] = {}
    for _, reason in unpredicted:
        reasons[reason] = reasons.get(reason, 0) + 1
    violations = [v for v in (bound_violation(case, hardware) for case in timed) if v is not None]
    return {
        **metrics(found),
        "comparable": metrics(found.where(fair)),
        "groups": grouped(found, lambda c: (c.model, c.hardware, c.engine), names),
        "concurrency": grouped(
            found, lambda c: (c.model, c.hardware, c.engine, c.terms.concurrency[0]), (*names, "concurrency")
        ),
        "holdout": {kind: None if held.get(kind) is None else _holdout(held[kind]) for kind in HOLDOUTS},
        "ttft": first_token([case for case, u in zip(timed, fair, strict=True) if u]),
        "throughput": throughput([case for case, u in zip(timed, fair, strict=True) if u]),
        "violations": [v.__dict__ for v in violations],
        "unpredicted": reasons,
    }


def _holdout(found: Predictions | None) -> Metrics:
    assert found is not None
    return {
        **metrics(found),
        "engines": grouped(found, lambda c: (c.engine,), ("engine",)),
        "groups": grouped(found, lambda c: (c.model, c.hardware, c.engine), ("model", "hardware", "engine")),
    }


def first_token(cases: Sequence[Case]) -> Mapping[str, Any]:
    """Errors of the predicted time to first token; a model's interval is that of the other models' residuals."""
    timed = [case for case in cases if case.ttft_s]
    if not timed:
        return {"points": 0, "mape": None, "median": None, "bias": None, "coverage": None}
    predicted = np.array(
        [float(prior_of(c.engine).coefficients.ttft_s(c.terms, c.workload)[0]) for c in timed], dtype=np.float64
    )
    measured = np.array([c.ttft_s for c in timed], dtype=np.float64)
    error = predicted / measured - 1
    models = sorted({c.model for c in timed})
    low, high = conformal(measured / predicted, np.array([models.index(c.model) for c in timed]), timed)
    return {
        "points": len(timed),
        "mape": float(np.abs(error).mean()),
        "median": float(np.median(np.abs(error))),
        "bias": float(np.median(error)),
        "coverage": float(((measured >= predicted * low) & (measured <= predicted * high)).mean()),
    }


def throughput(cases: Sequence[Case]) -> Mapping[str, Any]:
    """Errors of the predicted tokens/s of a closed loop, and how many lie within the ends of TPOT's interval.

    What a million tokens cost is a price per second over this rate: it has the same coverage, beside the price's range.
    """
    timed = [case for case in cases if case.tpot_s and case.ttft_s]
    if not timed:
        return {"points": 0, "mape": None, "median": None, "bias": None, "coverage": None}
    found = by_prior(timed)
    first = np.array([float(prior_of(c.engine).coefficients.ttft_s(c.terms, c.workload)[0]) for c in timed])
    output = np.array([float(c.workload.output_tokens) for c in timed])

    def rate(ttft_s: np.ndarray, tpot_s: np.ndarray) -> np.ndarray:
        return output / (ttft_s + (output - 1) * tpot_s)

    measured = rate(np.array([c.ttft_s for c in timed], dtype=np.float64), found.measured)
    error = rate(first, found.predicted) / measured - 1
    inside = (measured >= rate(first, found.high)) & (measured <= rate(first, found.low))
    return {
        "points": len(timed),
        "mape": float(np.abs(error).mean()),
        "median": float(np.median(np.abs(error))),
        "bias": float(np.median(error)),
        "coverage": float(inside.mean()),
    }


def intervals(cases: Sequence[Case], fitted: Fitted) -> dict[str, dict[str, dict[str, list[float]]]]:
    """What :attr:`moecap.plan.prior.Prior.intervals` holds, per engine: by what is new, of these cases' residuals."""
    own = Predictions(cases, predict(cases, fitted.of), np.zeros(len(cases)), np.zeros(len(cases)))
    found: dict[str, Predictions] = {"none": own}
    found |= {kind: held for kind in HOLDOUTS if (held := holdout(cases, kind)) is not None}

    def ends(held: Predictions, engine: str) -> list[float]:
        own = held.where([engine in (POOLED, c.engine) for c in held.cases])
        taken = own if len(own.cases) >= ENOUGH else held
        return [round(q, 4) for q in quantiles(taken.ratio, cell_weights([c.cell for c in taken.cases]))]

    return {engine: {kind: {"tpot": ends(p, engine)} for kind, p in found.items()} for engine in fitted.engines}
