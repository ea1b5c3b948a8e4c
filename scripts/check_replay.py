"""Hold a deployment's replayed routing against routers that were read inside the decode itself.

Input:  decoded, schedule (of the runs whose routers were read), points and requests of the timed runs, routing (their
        replay), anatomy.
Output: table (schema: moecap/checks/replay_check.py).
"""

from pathlib import Path

from moecap.checks.replay_check import check, in_words
from moecap.io import read_json, read_parquet, write_parquet
from moecap.jobs.workflow import script
from moecap.model.structure import Anatomy
from moecap.provenance import provenance
from moecap.routing.store import RoutingStore

with script(snakemake) as job:  # noqa: F821
    name = Path(job.output.table).stem
    table = check(
        name,
        *(read_parquet(job.input[kind]) for kind in ("decoded", "schedule", "points", "requests")),
        RoutingStore([job.input.routing]),
        Anatomy.from_json(read_json(job.input.anatomy)),
    )
    write_parquet(table, job.output.table, {**provenance(deployment=name), "note": in_words(table.to_pylist())})
