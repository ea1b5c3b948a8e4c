"""Cost of a deployment's measured points: results/cost/{deployment}.parquet.

input: metrics, machine (what calibration found). params.cost: deployment (row of the deployment table; or deployments,
several rows), hardware (slice of the catalogue), settings (the `cost` part of the config).
"""

from moecap.cost.table import cost_table
from moecap.hardware import catalogue as hardware
from moecap.io import read_json, read_parquet, write_parquet
from moecap.jobs.workflow import script
from moecap.provenance import provenance

with script(snakemake) as job:  # noqa: F821
    params = job.params.cost
    deployments = params.get("deployments") or [params["deployment"]]
    machine = read_json(job.input.machine) if job.input.get("machine") else None
    table = cost_table(
        read_parquet(job.input.metrics),
        deployments,
        hardware.from_slice(params["hardware"]),
        params["settings"],
        machine,
    )
    write_parquet(table, job.output.cost, provenance(deployments=[d["deployment"] for d in deployments]))
