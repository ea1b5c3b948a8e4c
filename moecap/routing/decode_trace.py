"""Routers read inside the decode itself: what the replay of a timed run is held against.

The batches of a deployment's timed runs are served again, by the same engine, with hooks on its routers: a run of its
own, the timed one is never touched. :mod:`moecap.checks.replay_check` compares.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.engines.base import Request, RunResult, load
from moecap.engines.tokens import expert_id_dtype, sequence_hash
from moecap.engines.vllm.replay import attach, collect, label_rows
from moecap.errors import MoecapError
from moecap.io import read_parquet, write_parquet
from moecap.measure.performance import REQUESTS, SCHEDULE, engine_spec
from moecap.provenance import provenance

log = logging.getLogger(__name__)

#: Runs that are served again at each batch size, at the most.
MAX_RUNS = 8
#: Beside the requests of a run: the experts of every token of the sequence. Rows of tokens that no step computed (they
#: were found in the prefix cache) are zero.
DECODED = pa.schema(
    [
        *map(REQUESTS.field, ("dataset", "batch_size", "repeat", "request", "sequence_sha256")),
        *map(REQUESTS.field, ("prompt_token_ids", "output_token_ids")),
        pa.field("expert_ids", pa.binary(), metadata={"meaning": "as in a routing file: (tokens, MoE layers, top-k)"}),
    ]
)


class Tracer:
    """Puts hooks on the routers of a loaded engine, for good: time nothing with it afterwards.

    Args:
        engine: vLLM in this process, in one piece.

    Attributes:
        layers, top_k, n_experts: of its routers.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        (shape,) = engine.apply_model(attach)
        self.layers, self.top_k, self.n_experts = tuple(shape["layers"]), shape["top_k"], shape["n_experts"]

    def run(
        self, requests: Sequence[Request], dataset: str, batch_size: int, repeat: int
    ) -> tuple[pa.Table, pa.Table, RunResult]:
        """Serve ``requests`` together.

        Returns:
            Tables (schemas: ``DECODED``, :data:`moecap.measure.performance.SCHEDULE`), and what the engine said.

        Raises:
            MoecapError: what the hooks saw is not what the engine's schedule says.
        """
        self._engine.apply_model(collect)
        result = self._engine.run(requests)
        (steps,) = self._engine.apply_model(collect)
        if len(steps) != len(result.steps):
            raise MoecapError(f"The engine's schedule has {len(result.steps)} steps, and {len(steps)} were seen.")
        sequences = tokens_of(result)
        dtype = expert_id_dtype(self.n_experts)
        experts = [np.zeros((len(tokens), len(self.layers), self.top_k), dtype=dtype) for tokens in sequences]
        for seen, step in zip(steps, result.steps, strict=True):
            labels = label_rows(seen, step.request, step.first_position, step.tokens, sequences)
            ids = np.stack([seen.experts[layer] for layer in self.layers], axis=1)
            for row, (request, position) in enumerate(zip(labels, seen.positions, strict=True)):
                experts[request][position] = ids[row]
        point = {"dataset": dataset, "batch_size": batch_size, "repeat": repeat}
        decoded = [
            {
                **point,
                "request": number,
                "sequence_sha256": sequence_hash(sequences[number]),
                "prompt_token_ids": record.prompt_token_ids,
                "output_token_ids": record.output_token_ids,
                "expert_ids": experts[number].tobytes(),
            }
            for number, record in enumerate(result.requests)
        ]
        names = [name for name in SCHEDULE.names if name not in (*point, "step")]
        schedule = [
            {**point, "step": number, **{name: getattr(step, name) for name in names}}
            for number, step in enumerate(result.steps)
        ]
        return (
            pa.Table.from_pylist(decoded, schema=DECODED),
            pa.Table.from_pylist(schedule, schema=SCHEDULE),
            result,
        )


def tokens_of(result: RunResult) -> list[list[int]]:
    """Prompt and output of each request."""
    return [[*record.prompt_token_ids, *record.output_token_ids] for record in result.requests]


def batches(requests: pa.Table, max_runs: int = MAX_RUNS) -> list[tuple[str, int, int, list[Request]]]:
    """(dataset, batch size, repeat, requests) of timed runs, of every dataset in turn; the first batch of each run.

    Args:
        requests: of the timed runs (schema: :data:`moecap.measure.performance.REQUESTS`).
        max_runs: of a batch size.
    """
    columns = ["dataset", "batch_size", "repeat", "request", "prompt_token_ids", "output_token_ids"]
    order = [(key, "ascending") for key in ("batch_size", "repeat", "dataset", "request")]
    runs: dict[int, dict[tuple[int, str], list[Request]]] = {}
    for row in requests.select(columns).sort_by(order).to_pylist():
        run = runs.setdefault(row["batch_size"], {}).setdefault((row["repeat"], row["dataset"]), [])
        if len(run) < row["batch_size"]:
            run.append(Request(tuple(row["prompt_token_ids"]), len(row["output_token_ids"])))
    return [
        (dataset, batch_size, repeat, run)
        for batch_size, found in runs.items()
        for (repeat, dataset), run in list(found.items())[:max_runs]
    ]


def trace(
    engine: Any,
    runs: Iterable[tuple[str, int, int, Sequence[Request]]],
    say: Callable[[str], None] = log.info,
) -> tuple[pa.Table, pa.Table]:
    """Serve ``runs`` with hooks: what they decoded (``DECODED``) and their schedule."""
    tracer = Tracer(engine)
    decoded, schedules = [DECODED.empty_table()], [SCHEDULE.empty_table()]
    for dataset, batch_size, repeat, run in runs:
        table, schedule, result = tracer.run(run, dataset, batch_size, repeat)
        decoded.append(table)
        schedules.append(schedule)
        say(f"{dataset} at batch size {batch_size}, repeat {repeat}: {result.wall_s:.2f} s with hooks")
    return pa.concat_tables(decoded), pa.concat_tables(schedules)


def run_job(
    run: Mapping[str, Any],
    *,
    manifest: str | os.PathLike[str],
    requests: str | os.PathLike[str],
    outputs: Mapping[str, str | os.PathLike[str]],
    threads: int | None = None,
) -> None:
    """What ``scripts/trace_decode.py`` does: load a deployment's engine, :func:`trace`, write both tables.

    Args:
        run: ``deployment`` (its row), ``engine`` (catalogue entry), ``seed``, ``trust_remote_code``.
        manifest: the checkpoint's manifest; the checkpoint is its folder.
        requests: of the timed runs.
        outputs: where ``decoded`` and ``schedule`` go.
    """
    deployment, entry = run["deployment"], run["engine"]
    timed = read_parquet(requests)
    tokens = [pc.list_value_length(timed[name]) for name in ("prompt_token_ids", "output_token_ids")]
    spec = engine_spec(
        deployment["engine"],
        entry,
        deployment,
        Path(manifest).parent,
        max_num_seqs=pc.max(timed["batch_size"]).as_py(),
        context_tokens=pc.max(pc.add(*tokens)).as_py(),
        seed=run["seed"],
        threads=threads,
        trust_remote_code=run["trust_remote_code"],
    )
    with load(spec) as engine:
        decoded, schedule = trace(engine, batches(timed))
    facts = provenance(deployment=deployment["deployment"])
    write_parquet(decoded, outputs["decoded"], facts)
    write_parquet(schedule, outputs["schedule"], facts)
