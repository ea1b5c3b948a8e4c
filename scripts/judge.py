"""Judge a deployment's answers against a baseline's, and score them.

params: judge (judging: of the dataset; judge: of the config, null: nobody judges; trust_remote_code).
Outputs: a table of one row and, beside it, every game. Each judgment is kept in the spool as it comes.
"""

from pathlib import Path

import pyarrow as pa

from moecap.accuracy.arena.kept import Kept
from moecap.accuracy.arena.run import JUDGED_SCHEMA, judge_answers, skipped
from moecap.accuracy.arena.settings import Judge, Judging
from moecap.errors import PermanentError
from moecap.io import read_parquet, write_parquet
from moecap.jobs.workflow import results_of, script, tell
from moecap.measure.workload import load_tokenizer
from moecap.paths import Paths, fill
from moecap.provenance import provenance

with script(snakemake) as job:  # noqa: F821
    names = {name: job.wildcards[name] for name in ("model", "precision", "engine", "dataset")}
    params = job.params.judge
    if params["judge"] is None:
        row, games = skipped()
        tell(f"{' '.join(names.values())}: {row['note']}")
    else:
        judge = Judge.model_validate(params["judge"])
        if names["dataset"] not in judge.baselines:
            raise PermanentError(f"`judge.baselines` of the config names no file of answers for {names['dataset']}.")
        tokenizer = load_tokenizer(Path(job.input.manifest).parent, params["trust_remote_code"])
        row, games = judge_answers(
            read_parquet(job.input.samples).to_pylist(),
            Judging.model_validate(params["judging"]),
            judge,
            judge.baselines[names["dataset"]],
            Kept(fill(Paths(results_of(job)).judgments, **names)),
            lambda text: len(tokenizer(text)["input_ids"]),
            tell,
        )
    write_parquet(games, job.output.games, provenance(**names))
    write_parquet(pa.Table.from_pylist([names | row], schema=JUDGED_SCHEMA), job.output.judged, provenance(**names))
