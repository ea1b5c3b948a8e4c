"""Read which experts every token of the timed runs used, by replaying their sequences.

Input:  manifest (the checkpoint's manifest.json, beside its files), requests (requests.parquet of every deployment of
        this model and precision), anatomy (optional: the routing is held against it).
Params: replay = Campaign.replay_params: engine (catalogue entry), engine_version, trust_remote_code; optionally
        backend, tensor_parallel. cache (folder, optional): what was replayed before, not declared to Snakemake.
Output: routing (schema: moecap/routing/store.py).
"""

import logging
from pathlib import Path

from moecap.io import read_json
from moecap.jobs.workflow import script
from moecap.model.structure import Anatomy
from moecap.routing import replay

with script(snakemake) as job:  # noqa: F821
    output = Path(job.output.routing)
    # results/routing/{model}/{precision}.parquet -> results/spool/routing/{model}/{precision}
    cache = output.parents[2] / "spool" / "routing" / output.parent.name / output.stem
    anatomy = job.input.get("anatomy")
    report = replay.run_job(
        job.params.replay,
        checkpoint=Path(job.input.manifest).parent,
        requests=[job.input.requests] if isinstance(job.input.requests, str) else list(job.input.requests),
        output=output,
        cache=job.params.get("cache") or cache,
        threads=job.threads,
        anatomy=Anatomy.from_json(read_json(anatomy)) if anatomy else None,
    )
    logging.info("%s", report)
