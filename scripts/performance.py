"""Time the points (dataset × batch size) of one deployment.

Input:  manifest (the checkpoint's manifest.json, beside its files), machine (results/machine/{hardware}.json),
        data (the demo data's manifest, where a dataset is the demo's).
Params: run = Campaign.performance_params: deployment (a row), datasets {name: task, output_tokens, …}, data_files,
        engine (catalogue entry), precision, settings (repeats, warmup, requests_per_repeat, output_tokens), seed,
        trust_remote_code; optional: spool (folder), else beside the outputs in the results tree.
Output: points, requests, schedule (schemas: moecap/measure/performance.py).
"""

from pathlib import Path

from moecap.jobs.workflow import record_path, script, tell
from moecap.measure.performance import run_job

with script(snakemake) as job:  # noqa: F821
    results = Path(job.output.points).parents[2]
    run_job(
        job.params.run,
        manifest=job.input.manifest,
        machine=job.input.machine,
        demo_data=next(iter(job.input.get("data", [])), None),
        outputs={name: job.output[name] for name in ("points", "requests", "schedule")},
        spool=job.params.get("spool", results / "spool" / "points"),
        failure=record_path(job),
        threads=job.threads,
        progress=tell,
    )
