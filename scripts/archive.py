"""Make the archive of a campaign.

input: everything that it should hold (accuracy names the accuracy files); output: archive;
params.archive: results, name, config, deployments, catalogue, redraw ({"charts", "report"}: params of those rules), and
optionally title, licence, steps_limit_bytes.
"""

import logging

from moecap.archive import collect, make_archive
from moecap.workflow import script

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.archive)
    results, deployments = params.pop("results"), params["deployments"]
    files = collect(results, deployments, job.input.get("accuracy", []))
    summary = make_archive(results, job.output.archive, params.pop("name"), files=files, **params)
    logging.info("archive: %s", summary)
