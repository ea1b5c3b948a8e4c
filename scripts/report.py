"""Write report.html: tables, charts and words from the CAP table and what lies beside it.

input: cap; optionally anatomy, routing_analysis, machines, samples (lists of files); output: report;
params.report: reference (deployment that others are compared with), failures (folder of failure records), tables (list
of {title, note, path, columns}: further Parquet tables to show where they exist), title, campaign, logs: all
optional.
"""

from moecap.io import atomic_path
from moecap.jobs.workflow import script
from moecap.report.inputs import read_inputs
from moecap.report.page import render_report

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.report)
    inputs = read_inputs(
        job.input.cap,
        machines=job.input.get("machines", []),
        anatomies=job.input.get("anatomy", []),
        routing=job.input.get("routing_analysis", []),
        samples=job.input.get("samples", []),
        failures=params.get("failures"),
        tables=params.get("tables", []),
        reference=params.get("reference"),
        title=params.get("title"),
        campaign=params.get("campaign"),
        logs=params.get("logs"),
    )
    with atomic_path(job.output.report) as path:
        path.write_text(render_report(inputs), encoding="utf-8")
