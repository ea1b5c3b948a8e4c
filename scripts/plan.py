"""Predict deployments that need not be owned: results/plan.parquet.

input: anatomy (JSON files), cap (accuracy per model and precision), hardware (the catalogue); optionally metrics
(Parquet files) and machines (JSON files): then hardware that was measured is calibrated, and the error of one
deployment's calibration on the others goes into the metadata (`cross_check`), as do the `answers`.
params.plan: deployments (rows), and optionally systems, devices, batch_sizes, workload {prompt_tokens, output_tokens},
settings (the `cost` part of the config), limits {tpot_s, ttft_s, accuracy}, reference, compute_dtypes (by precision).
"""

from pathlib import Path

from moecap import hardware
from moecap.io import read_json, read_parquet, write_parquet
from moecap.planner import Candidate, Workload, answer, calibrate_from, compute_dtype, plan
from moecap.provenance import provenance
from moecap.structure import Anatomy
from moecap.workflow import script

with script(snakemake) as job:  # noqa: F821
    params = job.params.plan
    files = [Path(p) for p in job.input.get("hardware", [])]
    folder = next((p.parent for p in files if p.name == "hardware.yaml"), None)
    catalogue = hardware.from_slice(params["hardware"]) if params.get("hardware") else hardware.load(folder)
    accuracy: dict[tuple[str, str], float] = {}
    for row in read_parquet(job.input.cap, ["model", "precision", "accuracy"]).to_pylist():
        if row["accuracy"] is not None:  # the hardest dataset: a limit has to hold on each
            key = (row["model"], row["precision"])
            accuracy[key] = min(row["accuracy"], accuracy.get(key, 1.0))
    candidates = {}
    for path in job.input.anatomy:
        found = Anatomy.from_json(read_json(path))
        key = (found.model, found.precision)
        dtype = params.get("compute_dtypes", {}).get(found.precision) or compute_dtype(found.precision)
        candidates[key] = Candidate(found, dtype, accuracy.get(key))
    machines = {Path(p).stem: read_json(p) for p in job.input.get("machines", [])}
    metrics = [row for p in job.input.get("metrics", []) for row in read_parquet(p).to_pylist()]
    calibrations, checks = calibrate_from(
        params["deployments"], candidates, metrics, catalogue, machines, params.get("reference")
    )
    used = {d["hardware"] for d in params["deployments"]}
    own = [name for name in used if not catalogue.find(name).detect or name in machines]
    table = plan(
        list(candidates.values()),
        catalogue,
        params.get("systems") or sorted({*own, *(n for n, gpu in catalogue.gpus.items() if gpu.price)}),
        params.get("devices") or [1, 2, 4, 8],
        params.get("batch_sizes") or [1, 4, 16, 64, 256],
        Workload(**params.get("workload", {})),
        params.get("settings"),
        calibrations,
        machine=next((m for n, m in machines.items() if n in own), None),
    )
    answers = answer(table, **params.get("limits", {}))
    write_parquet(table, job.output.plan, {**provenance(), "answers": answers, "cross_check": checks})
