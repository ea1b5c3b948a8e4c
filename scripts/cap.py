"""Join metrics, accuracy and cost into results/cap.parquet.

input: metrics, accuracy, cost: lists of Parquet files; output: cap;
params.cap: deployments (rows of the deployment table), failures (folder of failure records, optional), reference and
thresholds of the classes (as in the config's `cap`), provenance (more of it for the file's metadata, optional).
"""

from moecap.cap.classes import classify_table
from moecap.cap.table import cap_table
from moecap.io import read_parquet, write_parquet
from moecap.jobs.failures import read_failures
from moecap.jobs.workflow import script
from moecap.provenance import provenance

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.cap)
    metrics, accuracy, cost = (
        [read_parquet(path) for path in job.input.get(name, [])] for name in ("metrics", "accuracy", "cost")
    )
    failures = read_failures(params["failures"]) if params.get("failures") else []
    made = provenance(**params.get("provenance", {}))
    table = cap_table(params["deployments"], metrics, accuracy, cost, failures, made)
    write_parquet(classify_table(table, params), job.output.cap)
