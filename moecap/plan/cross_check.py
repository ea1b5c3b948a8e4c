"""How wrong the planner is where something was measured: calibrated on one deployment, held against the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moecap.columns.base import schema
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.columns.plan import CROSS_CHECK
from moecap.errors import MoecapError, nearest
from moecap.hardware.systems import Speeds
from moecap.plan.calibrate import calibrate, per_request, workload_of
from moecap.plan.predict import Calibration, predict
from moecap.plan.target import Candidate, Target

Row = dict[str, Any]


def cross_check(
    measured: Mapping[str, tuple[Candidate, Sequence[Mapping[str, Any]]]],
    target_of: Callable[[str], Target],
    reference: str,
    profiles: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> list[Row]:
    """Calibrate on one deployment, predict the others, and say how wrong that is.

    Args:
        measured: deployment → (its model and precision, its rows as :func:`calibrate` takes them).
        target_of: what they all ran on, by the dtype computed in.
        reference: the deployment to calibrate on.
        profiles: model → routing profile.

    Returns:
        Rows of ``CROSS_CHECK_SCHEMA``, one per deployment, dataset and batch size.

    Raises:
        MoecapError: the reference was not measured.
    """
    if reference not in measured:
        raise MoecapError(f"Calibration: deployment {reference!r} was not measured. {nearest(reference, measured)}")

    def profile(candidate: Candidate) -> Sequence[np.ndarray] | None:
        return (profiles or {}).get(candidate.anatomy.model)

    base, rows = measured[reference]
    calibration = calibrate(
        base.anatomy, target_of(base.compute_dtype), rows, f"measured runs of {reference}", profile(base)
    )
    found = []
    for name, (candidate, points) in measured.items():
        own = target_of(candidate.compute_dtype)
        for point in points:
            if not point.get("batch_size") or not point.get("tpot_s"):
                continue
            asked = (candidate.anatomy, own, [point["batch_size"]], workload_of(point))
            predicted = predict(*asked, calibration, profile(candidate))
            bound = predict(*asked, profile=profile(candidate))
            found.append(
                {
                    "deployment": name,
                    "dataset": point.get("dataset"),
                    "batch_size": point["batch_size"],
                    "measured_tpot_s": point["tpot_s"],
                    "predicted_tpot_s": float(predicted["tpot_s"][0]),
                    "error": float(predicted["tpot_s"][0]) / point["tpot_s"] - 1.0,
                    "uncalibrated_tpot_s": float(bound["tpot_s"][0]),
                    "uncalibrated_error": float(bound["tpot_s"][0]) / point["tpot_s"] - 1.0,
                    "calibrated_on": reference,
                    "in_sample": name == reference,
                }
            )
    return found


CROSS_CHECK_SCHEMA = schema(
    "deployment dataset batch_size measured_tpot_s predicted_tpot_s error uncalibrated_tpot_s uncalibrated_error "
    "calibrated_on in_sample",
    *(DEPLOYMENT, POINT, CROSS_CHECK),
    about={"batch_size": {"label": "batch"}},
)


def cross_check_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """How wrong the planner was, in a sentence or two."""
    if not rows:
        return "Nothing was measured that the planner could be held against."
    reference = ", ".join(dict.fromkeys(str(r["calibrated_on"]) for r in rows))
    other = [abs(r["error"]) for r in rows if not r["in_sample"]]
    own = [abs(r["error"]) for r in rows if r["in_sample"]]
    parts = [f"Calibrated on {reference} alone, the planner's TPOT is off by {np.median(own):.1%} there (median)"]
    if other:
        unseen = f"{len(other)} points that it had not seen"
        parts.append(f"by {np.median(other):.1%} (at most {max(other):.1%}) over {unseen}")
    times = float(np.median([r["measured_tpot_s"] / r["uncalibrated_tpot_s"] for r in rows]))
    return (
        f"{', and '.join(parts)}. Without calibration, the roofline is {times:.3g} times too fast (median): what the "
        "hardware allows at most, not what an engine reaches."
    )


def calibrate_from(
    deployments: Iterable[Mapping[str, Any]],
    candidates: Mapping[tuple[str, str], Candidate],
    metrics: Iterable[Mapping[str, Any]],
    speeds: Mapping[str, Speeds | None],
    machines: Mapping[str, Mapping[str, Any]] | None = None,
    reference: str | None = None,
    profiles: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> tuple[dict[str, Calibration], list[Row]]:
    """Calibrations per hardware from a campaign's measured runs, and how well one deployment predicts the others.

    Args:
        deployments: rows of the deployment table.
        candidates: (model, precision) → what is counted of it.
        metrics: rows of all deployments' metrics, with ``requests``, ``prompt_tokens`` and ``generated_tokens``.
        speeds: hardware → what the catalogue says that it can do; None: see ``machines``.
        machines: hardware → what calibration found, where speeds are measured.
        reference: the deployment to calibrate on, where it ran on the hardware; else the first that did.
        profiles: model → routing profile.

    Returns:
        hardware → :class:`Calibration`, and the rows of :func:`cross_check`.
    """
    points = [per_request(r) for r in metrics if r.get("status", "measured") in ("measured", "estimated")]
    groups: dict[tuple[str, int], dict[str, tuple[Candidate, list[Row]]]] = {}
    for row in deployments:
        key, variant = (str(row["hardware"]), int(row.get("devices") or 1)), (row["model"], row["precision"])
        own = [p for p in points if p["deployment"] == row["deployment"] and p.get("tpot_s")]
        if own and variant in candidates:
            groups.setdefault(key, {})[str(row["deployment"])] = (candidates[variant], own)
    found: dict[str, Calibration] = {}
    checks: list[Row] = []
    for (name, devices), measured in groups.items():
        machine = (machines or {}).get(name)

        def target_of(dtype: str, name: str = name, devices: int = devices, machine: Any = machine) -> Target:
            return Target.of(name, speeds.get(name), devices, dtype, machine)

        chosen = reference if reference in measured else next(iter(measured))
        base, rows = measured[str(chosen)]
        if name not in found or chosen == reference:
            source = f"measured runs of {chosen} on {devices} device(s)"
            profile = (profiles or {}).get(base.anatomy.model)
            found[name] = calibrate(base.anatomy, target_of(base.compute_dtype), rows, source, profile)
        checks += cross_check(measured, target_of, str(chosen), profiles)
    return found, checks
