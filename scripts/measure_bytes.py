"""Bytes of a decode step, counted op by op while Transformers executes it, beside the predicted ones.

input: manifest (its folder is the checkpoint), anatomy; output: table (schema: moecap/checks/byte_check.py);
params.run: model, precision, seed, trust_remote_code.
"""

import logging
from pathlib import Path

from moecap.checks.byte_check import check_checkpoint, disagreements, table
from moecap.io import read_json, write_parquet
from moecap.jobs.workflow import script
from moecap.model.structure import Anatomy
from moecap.provenance import provenance

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.run)
    rows = check_checkpoint(
        Path(job.input.manifest).parent,
        Anatomy.from_json(read_json(job.input.anatomy)),
        seed=params["seed"],
        threads=job.threads,
        trust_remote_code=params["trust_remote_code"],
    )
    for line in disagreements(rows):
        logging.warning("predicted and measured bytes differ: %s", line)
    write_parquet(table(rows), job.output.table, provenance(params=params))
