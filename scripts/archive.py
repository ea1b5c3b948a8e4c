"""Make the archive of a campaign.

input: everything that it should hold; accuracy, anatomy, samples, machines name the files of those kinds;
output: archive; params.archive: results, name, config, deployments, catalogue, redraw ({"charts", "report"}: params of
those rules), and optionally title, licence, steps_limit_bytes.
"""

import logging

from moecap.archive.pack import collect, make_archive
from moecap.jobs.workflow import script
from moecap.paths import Paths, fill

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.archive)
    results, deployments = params.pop("results"), params["deployments"]
    inputs = {kind: list(job.input.get(kind, [])) for kind in ("anatomy", "samples", "machines")}
    analyses = Paths(results).routing_analysis
    inputs["routing_analysis"] = [fill(analyses, deployment=row["deployment"]) for row in deployments]
    redraw = {**params.pop("redraw"), "inputs": inputs}
    tables = [table["path"] for table in redraw["report"].get("tables", [])]
    files = collect(results, deployments, job.input.get("accuracy", []), tables)
    name = params.pop("name")
    summary = make_archive(results, job.output.archive, name, files=files, redraw=redraw, **params)
    logging.info("archive: %s", summary)
