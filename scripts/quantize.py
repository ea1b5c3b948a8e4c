"""Quantize a bf16 checkpoint with llmcompressor, in its own environment.

params: recipe and heldout (see moecap.checkpoints.recipe), python (the interpreter that has llmcompressor); input.data:
the manifest of the demo's data, where the recipe calibrates on it or the variant is judged on it. The site's file may
name a cache that campaigns share.
"""

from pathlib import Path

from moecap.checkpoints.demo import TRAIN_FILE
from moecap.checkpoints.quantize import make
from moecap.cluster.site import shared_cache
from moecap.jobs.workflow import script

with script(snakemake) as job:  # noqa: F821
    model, precision = job.wildcards.variant.split("/")
    data = Path(str(job.input.data)).parent if job.input.data else None
    heldout = job.params.heldout
    make(
        job.params.python,
        Path(job.input.manifest).parent,
        Path(job.output.manifest).parent,
        job.params.recipe,
        cache=shared_cache(job.config),
        calibration_file=data / TRAIN_FILE if data and job.params.recipe.get("calibration_dataset") else None,
        heldout=heldout,
        heldout_file=data / f"{heldout['dataset']}.jsonl" if data and heldout and heldout.get("dataset") else None,
        threads=job.threads,
        trust_remote_code=job.params.get("trust_remote_code", False),
        facts={"model": model, "precision": precision},
    )
