"""How wrong costing the GPUs alone would be, for servers of the catalogue.

output: hosts. params.hosts: names (entries of the catalogue), hardware (slice of it), settings (the `cost` part of the
config).
"""

from moecap import hardware
from moecap.cost import hosts_table
from moecap.io import write_parquet
from moecap.provenance import provenance
from moecap.workflow import script

with script(snakemake) as job:  # noqa: F821
    params = job.params.hosts
    table = hosts_table(hardware.from_slice(params["hardware"]), params["names"], params["settings"])
    write_parquet(table, job.output.hosts, provenance())
