"""Bring a checkpoint to its place: downloaded from the hub and verified, or linked from a folder.

params: source ({"hub", "revision"} or {"path"}); the site's file may name a cache that campaigns share;
wildcards: variant (model/precision); output: manifest, written last.
"""

from pathlib import Path

from moecap.checkpoints.hub import fetch
from moecap.cluster.site import shared_cache
from moecap.jobs.workflow import script

with script(snakemake) as job:  # noqa: F821
    model, precision = job.wildcards.variant.split("/")
    fetch(
        job.params.source,
        Path(job.output.manifest).parent,
        cache=shared_cache(job.config),
        facts={"model": model, "precision": precision},
    )
