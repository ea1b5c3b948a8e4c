"""The paper's printed tables as metrics and accuracy, where measured ones would be.

input: tables (config/paper/table*.csv). output: metrics, accuracy (Parquet).
"""

from pathlib import Path

from moecap.cap import paper
from moecap.io import write_parquet
from moecap.jobs.workflow import script
from moecap.provenance import provenance

with script(snakemake) as job:  # noqa: F821
    numbers = sorted(int(Path(path).stem.removeprefix("table")) for path in job.input.tables)
    rows = paper.read_tables(Path(job.input.tables[0]).parent, numbers)
    facts = provenance(source="MoE-CAP paper", tables=numbers)
    write_parquet(paper.metrics_table(rows), job.output.metrics, facts)
    write_parquet(paper.accuracy_table(rows), job.output.accuracy, facts)
