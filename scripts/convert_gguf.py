"""Make a GGUF variant of a bf16 checkpoint; params.recipe: type (Q8_0, Q4_0, Q4_K_M, BF16, F32)."""

from pathlib import Path

from moecap.checkpoints.gguf_variant import make
from moecap.engines.environments import interpreter
from moecap.jobs.workflow import script

with script(snakemake) as job:  # noqa: F821
    model, precision = job.wildcards.variant.split("/")
    make(
        interpreter("engine-llamacpp", "xllamacpp"),
        Path(job.input.manifest).parent,
        Path(job.output.manifest).parent,
        job.params.recipe["type"],
        facts={"model": model, "precision": precision},
    )
