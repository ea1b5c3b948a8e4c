"""Evaluate a checkpoint's accuracy on a dataset with lm-eval.

params: settings (dataset, engine: catalogue entries; data_files, limit, seed, trust_remote_code, tensor_parallel).
Outputs: a table of one row and, beside it, every answer.
"""

from pathlib import Path

import pyarrow as pa

from moecap.accuracy.evaluate import ROW_SCHEMA, evaluate
from moecap.checkpoints.demo import local_data
from moecap.checkpoints.files import checkpoint_sha256
from moecap.checkpoints.hub import check_checkpoint
from moecap.io import read_json, write_parquet
from moecap.jobs.workflow import results_of, script
from moecap.provenance import provenance

with script(snakemake) as job:  # noqa: F821
    settings = job.params.settings
    files = settings.get("data_files") or (
        local_data(str(job.input.data), job.wildcards.dataset) if job.input.data else None
    )
    checkpoint = Path(job.input.manifest).parent
    check_checkpoint(checkpoint)
    row, samples = evaluate(
        checkpoint,
        settings["dataset"],
        settings["engine"],
        data_files=files,
        limit=settings.get("limit"),
        tensor_parallel=settings.get("tensor_parallel", 1),
        pipeline_parallel=settings.get("pipeline_parallel", 1),
        seed=settings["seed"],
        trust_remote_code=settings.get("trust_remote_code", False),
        spool=Path(results_of(job), "spool", "answers"),
        checkpoint_sha256=checkpoint_sha256(read_json(job.input.manifest)),
    )
    names = {name: job.wildcards[name] for name in ("model", "precision", "engine", "dataset")}
    facts = provenance(**names, seed=settings["seed"])
    write_parquet(samples, job.output.samples, facts)
    write_parquet(pa.Table.from_pylist([names | row], schema=ROW_SCHEMA), job.output.accuracy, facts)
