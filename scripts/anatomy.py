"""What a model is made of: sizes per layer and component.

input: manifest (its folder is the checkpoint; absent: counted from the catalogue); output: anatomy (JSON), table
(Parquet); params.model: model, precision, and optionally kv_dtype_bytes, catalogue.
"""

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from moecap.io import write_json, write_parquet
from moecap.jobs.workflow import script
from moecap.model.counted import anatomy

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.model)
    catalogue, kv_dtype_bytes = params.get("catalogue"), params.get("kv_dtype_bytes")
    if manifest := job.input.get("manifest"):
        found = anatomy(Path(manifest).parent, name=params["model"], kv_dtype_bytes=kv_dtype_bytes, catalogue=catalogue)
    else:
        found = anatomy(params["model"], params["precision"], kv_dtype_bytes=kv_dtype_bytes, catalogue=catalogue)
    found = replace(found, precision=params["precision"])
    logging.info("%s %s: %d parameters, %d bytes", found.model, found.precision, found.total_params, found.weight_bytes)
    write_json(found.to_json(), job.output.anatomy)
    write_parquet(pa.Table.from_pylist(found.table()), job.output.table, {"model": found.model, **params})
