"""Draw every chart that there is data for, into one folder: NAME.html (interactive, offline), NAME.svg, NAME.png.

input: cap, routing_analysis (list of Parquet files, optional); output: charts (the folder);
params.charts: reference (deployment that the radar measures against), formats (optional; default html, svg, png).
"""

import logging

from moecap.charts.standard import routing_of, write_all
from moecap.io import read_parquet
from moecap.jobs.workflow import script

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.charts)
    routing = routing_of(job.input.get("routing_analysis", []))
    left_out = write_all(
        read_parquet(job.input.cap), job.output.charts, params.get("reference"), routing, params.get("formats")
    )
    for name, reason in left_out.items():
        logging.info("%s is not drawn: %s", name, reason)
