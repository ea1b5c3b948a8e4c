"""Train the demo model.

params: train ({"seed"}, optionally "steps"); one thread: more hardly help so small a model, stall
where other work runs beside, and the same number gives the same tensors on every machine size.
"""

from pathlib import Path

from moecap.checkpoints.demo import train
from moecap.jobs.workflow import script

with script(snakemake) as job:  # noqa: F821
    train(
        Path(job.output.manifest).parent,
        Path(job.input.data).parent,
        seed=job.params.train["seed"],
        steps=job.params.train.get("steps"),
        threads=1,
        facts={"model": "demo-moe", "precision": "bf16"},
    )
