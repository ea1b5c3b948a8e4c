"""What a campaign measured, as far as the planner learns from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moecap.hardware.systems import Speeds
from moecap.io import read_json, read_parquet
from moecap.model.structure import Anatomy
from moecap.paths import Paths, fill
from moecap.plan.calibrate import per_request, workload_of
from moecap.plan.counts import routing_profile
from moecap.plan.cross_check import calibrate_from
from moecap.plan.pooling import Own, ratio
from moecap.plan.predict import Calibration
from moecap.plan.prior import prior_of
from moecap.plan.target import Candidate, compute_dtype
from moecap.plan.terms import Parallel

Row = dict[str, Any]


def accuracies(cap: str | Path) -> dict[tuple[str, str], float]:
    """Accuracy per model and precision in a CAP table: the lowest over datasets, which a limit has to hold on each."""
    found: dict[tuple[str, str], float] = {}
    for row in read_parquet(cap, ["model", "precision", "accuracy"]).to_pylist():
        if row["accuracy"] is not None:
            key = (row["model"], row["precision"])
            found[key] = min(row["accuracy"], found.get(key, 1.0))
    return found


@dataclass(frozen=True)
class Measured:
    """What a campaign measured, as far as the planner learns from it.

    Attributes:
        deployments: rows of the deployment table.
        candidates: (model, precision) → what is counted of it.
        metrics: rows of the deployments' metrics.
        machines: hardware → what calibration of the machine found.
        profiles: model → routing profile.
    """

    deployments: Sequence[Mapping[str, Any]] = ()
    candidates: Mapping[tuple[str, str], Candidate] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    machines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    profiles: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        deployments: Sequence[Mapping[str, Any]],
        anatomies: Iterable[str | Path],
        metrics: Iterable[str | Path] = (),
        machines: Iterable[str | Path] = (),
        analyses: Iterable[str | Path] = (),
        accuracy: Mapping[tuple[str, str], float] | None = None,
        compute_dtypes: Mapping[str, str] | None = None,
        reference: str | None = None,
    ) -> Measured:
        """From the files of a results tree.

        Args:
            analyses: routing analyses, each in a folder named as its deployment; the reference's is taken before others
                as its model's profile.
            accuracy: see :func:`accuracies`.
            compute_dtypes: precision → dtype computed in, where its name does not say so.
            reference: the deployment to calibrate on.
        """
        candidates = {}
        for path in anatomies:
            found = Anatomy.from_json(read_json(path))
            key = (found.model, found.precision)
            dtype = (compute_dtypes or {}).get(found.precision) or compute_dtype(found.precision)
            candidates[key] = Candidate(found, dtype, (accuracy or {}).get(key))
        by_deployment = {Path(path).parent.name: path for path in analyses}
        profiles: dict[str, Sequence[np.ndarray]] = {}
        for row in sorted(deployments, key=lambda r: r["deployment"] != reference):
            name = row["deployment"]
            if name in by_deployment and row["model"] not in profiles:
                profile = routing_profile(read_parquet(by_deployment[name]).to_pylist())
                if profile is not None:
                    profiles[row["model"]] = profile
        return cls(
            deployments,
            candidates,
            [row for path in metrics for row in read_parquet(path).to_pylist()],
            {Path(path).stem: read_json(path) for path in machines},
            profiles,
        )

    @classmethod
    def of_results(cls, folder: str | Path, reference: str | None = None) -> Measured:
        """From a results folder as the workflow leaves it.

        Raises:
            MoecapError: there is no CAP table in it.
        """
        folder, paths = Path(folder), Paths(str(folder))
        rows: dict[str, Row] = {}
        columns = ["deployment", "model", "precision", "hardware", "devices"]
        for row in read_parquet(paths.cap, columns).to_pylist():
            rows.setdefault(row["deployment"], row)

        def there(pattern: str, **names: str) -> list[Path]:
            return [path for path in [Path(fill(getattr(paths, pattern), **names))] if path.is_file()]

        variants = dict.fromkeys((row["model"], row["precision"]) for row in rows.values())
        return cls.read(
            list(rows.values()),
            [path for model, precision in variants for path in there("anatomy", model=model, precision=precision)],
            [path for name in rows for path in there("metrics", deployment=name)],
            [path for name in {r["hardware"] for r in rows.values()} for path in there("machine", hardware=name)],
            [path for name in rows for path in there("routing_analysis", deployment=name)],
            accuracies(paths.cap),
            reference=reference,
        )

    def own_runs(self, speeds: Mapping[str, Speeds | None], engine: str) -> dict[str, Own]:
        """Own runs on catalogued devices, as the prior of an engine is shrunk to them: hardware → runs."""
        prior = prior_of(engine)
        found: dict[str, dict[str, list[float]]] = {}
        rows = [per_request(r) for r in self.metrics if r.get("status", "measured") in ("measured", "estimated")]
        for deployment in self.deployments:
            name, variant = str(deployment["hardware"]), (deployment["model"], deployment["precision"])
            chip, candidate = speeds.get(name), self.candidates.get(variant)
            if chip is None or candidate is None:
                continue
            parallel = Parallel(tp=int(deployment.get("devices") or 1))
            for row in rows:
                if row["deployment"] == deployment["deployment"] and row.get("tpot_s") and row.get("batch_size"):
                    one = ratio(
                        prior, candidate, chip, parallel, row["batch_size"], workload_of(row), row["tpot_s"],
                        self.profiles.get(candidate.anatomy.model),
                    )  # fmt: skip
                    found.setdefault(name, {}).setdefault(candidate.anatomy.model, []).append(one)
        return {name: Own(ratios, f"{sum(map(len, ratios.values()))} own runs") for name, ratios in found.items()}

    def calibrate(
        self, speeds: Mapping[str, Speeds | None], reference: str | None = None
    ) -> tuple[dict[str, Calibration], list[Row]]:
        """See :func:`calibrate_from`."""
        return calibrate_from(
            self.deployments, self.candidates, self.metrics, speeds, self.machines, reference, self.profiles
        )
