"""The step table, the metrics and the routing analysis of a deployment.

input: points, requests, schedule, routing, anatomy, machine; output: steps, metrics, routing_analysis;
params.metrics: deployment (its id), compute_dtype, and optionally devices, tensor_parallel, peaks ({"bytes_per_s",
"flops": {dtype: dense FLOP/s}} of one device, from the catalogue; absent: the calibrated machine's), offload (tier,
the tier of the device's own memory, and the engine's arguments on it), tiers ({memory tier: bytes/s}), seed.
"""

import logging
import time
from pathlib import Path

from moecap.io import read_json, read_parquet, write_parquet
from moecap.jobs.workflow import script
from moecap.metrics import steps
from moecap.metrics.peaks import peaks_of, replication_of
from moecap.metrics.routing_analysis import analysis_table
from moecap.metrics.table import metrics_table
from moecap.model.offload import placement_of
from moecap.model.structure import Anatomy
from moecap.routing import store as routing

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.metrics)
    deployment = params["deployment"]
    anatomy = Anatomy.from_json(read_json(job.input.anatomy))
    points, requests = read_parquet(job.input.points), read_parquet(job.input.requests)
    schedule = read_parquet(job.input.schedule, list(steps.SCHEDULE_COLUMNS))
    store = routing.read(job.input.routing, anatomy) if anatomy.moe_layers else None
    provenance = {"deployment": deployment, "params": params}

    started = time.perf_counter()
    batches = steps.step_batches(schedule, requests, store, anatomy, str(job.input.schedule))
    count = steps.write_steps(batches, job.output.steps, provenance)
    size, spent = Path(job.output.steps).stat().st_size, time.perf_counter() - started
    logging.info("%s: %d steps joined and written in %.2f s, %d bytes", deployment, count, spent, size)

    offload = params.get("offload")
    parallelism = {f"{kind}_parallel": params.get(f"{kind}_parallel", 1) for kind in ("tensor", "pipeline", "expert")}
    peaks = peaks_of(
        read_json(job.input.machine),
        params["compute_dtype"],
        params.get("devices", 1),
        params.get("peaks"),
        params.get("tiers"),
        offload["device"] if offload else "hbm",
    )
    metrics = metrics_table(
        points,
        requests,
        steps.read_steps(job.output.steps),
        anatomy,
        peaks,
        deployment=deployment,
        replication=replication_of(anatomy, params.get("tensor_parallel", 1)),
        placement=offload
        and placement_of(anatomy, offload["arguments"], offload["tier"], device=offload["device"], **parallelism),
        slo=params.get("slo"),
        seed=params.get("seed", 0),
    )
    analysis = analysis_table(store, requests, steps.read_steps(job.output.steps), anatomy)
    write_parquet(analysis, job.output.routing_analysis, provenance)
    write_parquet(metrics, job.output.metrics, provenance)
