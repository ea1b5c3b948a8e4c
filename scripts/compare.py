"""Lay two archives side by side.

input: a, b (archives); output: table (Parquet), markdown, html.
"""

from moecap.io import atomic_path, write_parquet
from moecap.jobs.workflow import script, tell
from moecap.report.compare import compare

with script(snakemake) as job:  # noqa: F821
    found = compare(job.input.a, job.input.b)
    write_parquet(found.table, job.output.table, {"a": found.name_a, "b": found.name_b, "counts": found.counts()})
    for path, text in ((job.output.markdown, found.markdown()), (job.output.html, found.html())):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    counts = ", ".join(f"{n} {verdict}" for verdict, n in found.counts().items())
    tell(f"From {found.name_a} to {found.name_b}: {counts}. See {job.output.html}")
