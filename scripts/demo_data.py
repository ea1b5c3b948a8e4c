"""Generate the demo's problems: train, and a test for each of its two tasks.

params: seed. The manifest, with every file's size and sha256, is written last.
"""

from pathlib import Path

from moecap.checkpoints.demo import write_data
from moecap.jobs.workflow import script

with script(snakemake) as job:  # noqa: F821
    write_data(Path(job.output.manifest).parent, job.params.seed)
