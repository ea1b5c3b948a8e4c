"""Serve a deployment's timed batches again and read its routers inside the decode.

Input:  manifest (its folder is the checkpoint), requests (of the timed runs).
Params: run = Campaign.trace_decode_params: deployment (a row), engine (catalogue entry), engine_version, seed,
        trust_remote_code.
Output: decoded, schedule (schemas: moecap/routing/decode_trace.py).
"""

from moecap.jobs.workflow import script
from moecap.routing.decode_trace import run_job

with script(snakemake) as job:  # noqa: F821
    run_job(
        job.params.run,
        manifest=job.input.manifest,
        requests=job.input.requests,
        outputs={name: job.output[name] for name in ("decoded", "schedule")},
        threads=job.threads,
    )
