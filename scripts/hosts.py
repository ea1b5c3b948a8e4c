"""How wrong costing the GPUs alone would be, for servers of the catalogue.

output: hosts. params.hosts: names (entries of the catalogue), hardware (slice of it), settings (the `cost` part of the
config).
"""

from moecap.cost.table import hosts_table
from moecap.hardware import catalogue as hardware
from moecap.io import write_parquet
from moecap.jobs.workflow import script
from moecap.provenance import provenance

with script(snakemake) as job:  # noqa: F821
    params = job.params.hosts
    table = hosts_table(hardware.from_slice(params["hardware"]), params["names"], params["settings"])
    write_parquet(table, job.output.hosts, provenance())
