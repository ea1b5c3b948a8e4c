"""Draw charts and report again from an archive.

input: archive; output: cap, charts (folder), report: beside each other.
"""

import logging
from pathlib import Path

from moecap.jobs.workflow import script, tell
from moecap.report.redraw import redraw

with script(snakemake) as job:  # noqa: F821
    found = redraw(job.input.archive, Path(job.output.report).parent)
    for name, why in found["not_drawn"].items():
        logging.info("%s is not drawn: %s", name, why)
    tell(f"{found['report']} is drawn from {found['name']} (sha256 {found['sha256']}), every file of which is intact.")
