"""Predict deployments that need not be owned: results/plan.parquet, and its answers in words.

input: anatomy (JSON files), cap (accuracy per model and precision), hardware (the catalogue), metrics and
routing_analysis (Parquet files), machines (JSON files): hardware that was measured is calibrated by it. output: plan,
answers (text; also printed). params.plan: deployments (rows), compute_dtypes (by precision), reference (deployment to
calibrate on), settings (the `cost` part of the config), and of its `plan` part systems, devices, batch_sizes, workload,
limits. The answers and how wrong the calibration is elsewhere go into the table's metadata too.
"""

from moecap.hardware import catalogue as hardware
from moecap.io import atomic_path, write_parquet
from moecap.jobs.workflow import script, tell
from moecap.plan.answers import answer
from moecap.plan.cross_check import cross_check_in_words
from moecap.plan.measured import Measured, accuracies
from moecap.plan.search import plan
from moecap.plan.target import Workload
from moecap.plan.words import in_words
from moecap.provenance import provenance

#: Whose prior predictions rest on, for hardware that is in the catalogue.
ENGINE = "vllm"

with script(snakemake) as job:  # noqa: F821
    params = job.params.plan
    catalogue = hardware.load(hardware.layers_of(job.input.hardware))
    measured = Measured.read(
        params["deployments"],
        job.input.anatomy,
        job.input.get("metrics", []),
        job.input.get("machines", []),
        job.input.get("routing_analysis", []),
        accuracies(job.input.cap),
        params.get("compute_dtypes"),
        params.get("reference"),
    )
    used = {d["hardware"] for d in params["deployments"]}
    calibrations, checks = measured.calibrate({n: catalogue.find(n).speeds for n in used}, params.get("reference"))
    own = [name for name in used if catalogue.find(name).speeds is not None or name in measured.machines]
    table = plan(
        list(measured.candidates.values()),
        catalogue,
        params.get("systems") or sorted({*own, *(n for n, gpu in catalogue.gpus.items() if gpu.price)}),
        params["devices"],
        params["batch_sizes"],
        Workload(**params["workload"]),
        params["settings"],
        calibrations,
        machine=next((m for n, m in measured.machines.items() if catalogue.find(n).speeds is None), None),
        profiles=measured.profiles,
        engine=ENGINE,
        own=measured.own_runs({n: catalogue.find(n).speeds for n in used}, ENGINE),
    )
    answers = answer(table, **params["limits"])
    write_parquet(table, job.output.plan, {**provenance(), "answers": answers, "cross_check": checks})
    text = in_words({**answers, "cross_check": cross_check_in_words(checks) if checks else None})
    with atomic_path(job.output.answers) as path:
        path.write_text(text + "\n")
    tell(text)
