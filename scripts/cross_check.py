"""How wrong the planner is here: calibrated on one deployment, held against what all of them were measured at.

input: anatomy (JSON files), metrics and routing_analysis (Parquet files), machines (JSON files); output: cross_check.
params.cross_check: deployments (rows), speeds (hardware: what the catalogue says that it can do, or null where it is
measured), compute_dtypes (by precision), reference (deployment to calibrate on).
"""

import pyarrow as pa

from moecap.hardware.systems import Speeds
from moecap.io import write_parquet
from moecap.jobs.workflow import script
from moecap.plan.cross_check import CROSS_CHECK_SCHEMA, cross_check_in_words
from moecap.plan.measured import Measured
from moecap.provenance import provenance

with script(snakemake) as job:  # noqa: F821
    params = job.params.cross_check
    measured = Measured.read(
        params["deployments"],
        job.input.anatomy,
        job.input.metrics,
        job.input.machines,
        job.input.routing_analysis,
        compute_dtypes=params["compute_dtypes"],
        reference=params["reference"],
    )
    speeds = {name: found and Speeds(**found) for name, found in params["speeds"].items()}
    _, rows = measured.calibrate(speeds, params["reference"])
    table = pa.Table.from_pylist(rows, schema=CROSS_CHECK_SCHEMA)
    write_parquet(table, job.output.cross_check, {**provenance(), "note": cross_check_in_words(rows)})
