"""Timed points of a deployment: throughput, latency and schedule, untraced.

A point is dataset × batch size, run ``repeats`` times after ``warmup`` runs that do not count. A batch of B requests is
submitted together to an engine that can run B of them at a time. All points that are not in the spool share one engine
load; each repeat goes into the spool as soon as it is measured.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from moecap import io
from moecap.checkpoints.files import checkpoint_sha256
from moecap.engines import equality
from moecap.engines.base import LOAD_S, Engine, EngineSpec, Request, RunResult, library_versions, spec_of
from moecap.engines.base import load as load_engine
from moecap.engines.catalogue import EngineEntry, known_mismatch
from moecap.engines.tokens import sequence_hash
from moecap.errors import MoecapError, PermanentError
from moecap.hardware import load as machine_load
from moecap.hardware.energy import window as energy_window
from moecap.hardware.load import Load
from moecap.jobs import failures, processes
from moecap.measure.online import Online, client_version, point_columns, saturated_at
from moecap.measure.spool import Spool, key_of
from moecap.measure.workload import Workload, requests_sha256

log = logging.getLogger(__name__)

# Part of every key: raise it when what is measured, or how, changes, so that old entries are no longer used.
PROTOCOL = 2
STALL_S = 900.0
# Smaller checkpoints are hashed before they are loaded; a larger one would take minutes.
VERIFY_BYTES = 2 * 2**30


def _field(name: str, dtype: pa.DataType, meaning: str, unit: str | None = None, nullable: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable, {"meaning": meaning, **({"unit": unit} if unit else {})})


def _ints(name: str, meaning: str) -> pa.Field:
    return _field(name, pa.list_(pa.field("item", pa.int32(), nullable=False)), meaning)


_POINT = [
    _field("dataset", pa.string(), "dataset of the catalogue"),
    _field("batch_size", pa.int32(), "requests submitted together", "requests"),
    _field("repeat", pa.int32(), "number of the timed run of this point, from 0"),
]

POINTS = pa.schema(
    [
        *_POINT,
        _field("workload", pa.string(), "what was served, in words"),
        _field("start_unix_s", pa.float64(), "when the run started", "s"),
        _field("wall_s", pa.float64(), "from submission to the last token, summed over waves", "s"),
        _field("requests", pa.int32(), "requests served", "requests"),
        _field("prompt_tokens", pa.int64(), "tokens of all prompts", "tokens"),
        _field("generated_tokens", pa.int64(), "tokens generated", "tokens"),
        _field("load_id", pa.string(), "which load of the engine measured it"),
        _field("engine", pa.string(), "engine of the catalogue"),
        _field("engine_version", pa.string(), "as installed"),
        _field("libraries", pa.string(), "versions of the libraries behind it, JSON"),
        _field("hardware", pa.string(), "fingerprint of the machine, JSON"),
        _field("seed", pa.int64(), "decides which prompts are served, in which order"),
        _field("energy_j", pa.float64(), "measured energy of the timed window; null: not measurable here", "J", True),
        _field("power_w", pa.float64(), "mean power of the timed window; null: not measurable here", "W", True),
        _field("energy_source", pa.string(), "nvml or rapl; null: not measured", nullable=True),
        _field("spool_key", pa.string(), "key of the spool entry"),
        _field("max_num_seqs", pa.int32(), "requests that the engine could run at a time", "requests"),
        _field("schedule_kind", pa.string(), "exact: as the engine said; estimated: from arrival times"),
        _field("weights_as", pa.string(), "stored: as in the checkpoint; else the dtype they were converted to"),
        _field(
            "weights_by_tier",
            pa.string(),
            "bytes of weights by where they are kept, JSON; null: not counted by this engine",
            nullable=True,
        ),
        _field(
            "moved_per_step",
            pa.string(),
            "bytes of offloaded weights that every step moves, by where they are read, JSON; null: none, or not alike",
            nullable=True,
        ),
        _field(
            "external_cpu_share",
            pa.float64(),
            "share of the machine's CPU time that other processes used meanwhile; null: not measurable",
            "1",
            True,
        ),
        _field(
            "cpu_steal_share",
            pa.float64(),
            "share of the machine's CPU time that a hypervisor gave to others; null: not measurable",
            "1",
            True,
        ),
        _field(
            "other_gpu_processes",
            pa.int32(),
            "processes other than the engine's on its GPUs; null: no GPU, or not told",
            None,
            True,
        ),
        _field(
            "disturbed",
            pa.bool_(),
            f"others used more than {machine_load.DISTURBED_SHARE:.0%} of the CPU time, or a GPU, in the best of "
            "two tries; null: measured before this was looked at",
            None,
            True,
        ),
        _field("load", pa.string(), "online: requests arrived while others were served; null: offline", None, True),
        _field("concurrency", pa.int32(), "online: requests kept in flight", "requests", True),
        _field("request_rate", pa.float64(), "online: requests per second, arriving at random (Poisson)", "1/s", True),
        _field("window_start_s", pa.float64(), "online: when the steady window began; tokens are its own", "s", True),
        _field("window_end_s", pa.float64(), "online: when the steady window ended", "s", True),
        _field(
            "window_drift", pa.float64(), "online: tokens of the window's second half over its first, - 1", "1", True
        ),
        _field(
            "client_tokens_per_s",
            pa.float64(),
            "online: what the client takes of a server that does nothing",
            "1/s",
            True,
        ),
        _field(
            "saturates", pa.bool_(), "online: more in flight added too little, so that the sweep ended here", None, True
        ),
    ]
)

REQUESTS = pa.schema(
    [
        *_POINT,
        _field("request", pa.int32(), "number of the request in its run, from 0"),
        _field("sequence_sha256", pa.string(), "hash of prompt and output, under which its routing is kept"),
        _ints("prompt_token_ids", "token ids of the prompt"),
        _ints("output_token_ids", "token ids generated"),
        _field("arrival_s", pa.float64(), "when it was submitted, from the start of the run", "s"),
        _field("first_token_s", pa.float64(), "when its first token arrived, from the start of the run", "s"),
        _field("finished_s", pa.float64(), "when its last token arrived, from the start of the run", "s"),
        _field(
            "token_times_s",
            pa.list_(pa.field("item", pa.float64(), nullable=False)),
            "when each token arrived, from the start of the run",
            "s",
        ),
        _field("finish_reason", pa.string(), "as the engine said", nullable=True),
    ]
)

SCHEDULE = pa.schema(
    [
        *_POINT,
        _field("step", pa.int32(), "number of the step in its run, from 0"),
        _field("start_s", pa.float64(), "from the start of the run", "s"),
        _field("wall_s", pa.float64(), "what the step added to the requests' waiting", "s"),
        _ints("request", "requests of which the step computed tokens"),
        _ints("first_position", "first position computed, per request"),
        _ints("tokens", "tokens computed, per request"),
        _ints("cached_tokens", "tokens found in the prefix cache when the request was admitted in this step, or 0"),
        _ints("preempted", "requests that lost their KV cache in this step"),
    ]
)

TABLES = {"points": POINTS, "requests": REQUESTS, "schedule": SCHEDULE}


@dataclass(frozen=True)
class Point:
    """A dataset at a batch size."""

    dataset: str
    batch_size: int


@dataclass(frozen=True)
class Settings:
    """How a point is timed. ``requests`` per timed run: None for one batch, else as many full batches as reach it.
    ``online``: how requests arrive; None: a batch together."""

    repeats: int = 3
    warmup: int = 1
    requests: int | None = None
    seed: int = 1
    online: Online | None = None

    def waves(self, batch_size: int) -> int:
        """Batches in one timed run."""
        return 1 if self.requests is None or self.online else -(-max(self.requests, batch_size) // batch_size)

    def prompts_needed(self, batch_size: int) -> int:
        """Prompts that all repeats and the warm-up of a point use, each of them once."""
        if self.online is not None:
            return self.online.requests(batch_size, self.requests) * self.repeats + batch_size * self.warmup
        return batch_size * (self.waves(batch_size) * self.repeats + self.warmup)

    def batches(self, workload: Workload, batch_size: int, repeat: int) -> list[list[Request]]:
        """The requests of a timed run, wave by wave; online there is one."""
        if self.online is not None:
            count = self.online.requests(batch_size, self.requests)
            return [workload.stream(count, repeat * count, batch_size)]
        waves = self.waves(batch_size)
        return [workload.batch(batch_size, repeat * waves + wave) for wave in range(waves)]


@dataclass
class Measurement:
    """What :func:`measure` returns: the three tables, and how many runs were measured now and found in the spool."""

    points: pa.Table
    requests: pa.Table
    schedule: pa.Table
    measured: int
    reused: int
    loads: int = 0


@dataclass(frozen=True)
class _Run:
    point: Point
    repeat: int
    facts: dict[str, Any]

    @property
    def key(self) -> str:
        return key_of(self.facts)


def measure(
    points: Sequence[Point],
    spec: EngineSpec,
    workloads: Mapping[str, Workload],
    spool: Spool,
    *,
    manifest_sha256: str,
    hardware: Mapping[str, Any],
    settings: Settings | None = None,
    name: str = "deployment",
    failure_path: str | Path | None = None,
    check_machine: Callable[[], None] | None = None,
    progress: Callable[[str], None] = log.info,
    load: Callable[[EngineSpec], AbstractContextManager[Engine]] = load_engine,
    energy: Callable[..., AbstractContextManager[Any]] = energy_window,
    stall_s: float = STALL_S,
    load_s: float = LOAD_S,
    watchdog_s: float = 5.0,
) -> Measurement:
    """Measure what the spool lacks of ``points`` and put all of them together.

    Args:
        spec: the engine and what it loads; ``max_num_seqs`` and ``context_tokens`` are set here.
        workloads: dataset -> its prompts.
        manifest_sha256: hash of the checkpoint's files.
        hardware: fingerprint of the machine (:func:`moecap.hardware.machine.fingerprint`).
        name: the deployment's, for messages.
        failure_path: JSON file that says why it failed, and whether trying again may help; removed on success.
        check_machine: raises where this machine is not the one that the deployment names. Called before the engine is
            loaded, and only if something has to be measured.
        progress: takes one line per measured run.
        load: stands in for :func:`moecap.engines.base.load` in tests.
        energy: stands in for :func:`moecap.hardware.energy.window`.
        stall_s: seconds without a step after which the engine counts as hung; the process ends itself.
        load_s: the same for loading.
        watchdog_s: how often that is looked at.

    Raises:
        PermanentError: a point cannot be measured, and trying again would not help. The other points were measured.
        MoecapError: a point failed in a way that may be different next time. What was measured before is kept.
    """
    settings = settings or Settings()
    runs = list(_plan(points, spec, workloads, settings, manifest_sha256, hardware))
    found = {run.key: tables for run in runs if (tables := spool.get(run.key)) is not None}
    missing = [run for run in runs if run.key not in found]
    reused = len(found)
    loads = 0
    failed_points: list[dict[str, Any]] = []
    if missing:
        progress(f"{name}: {reused} of {len(runs)} timed runs are in the spool, {len(missing)} to measure")
    clock = _Clock(len(missing))
    sweep = _Sweep(runs, settings)
    session = _Session(spec, workloads, settings, spool, hardware, load, energy)
    while missing:
        loads += 1
        try:
            if check_machine is not None:
                check_machine()
            with Watchdog(name, failure_path, watchdog_s, progress) as dog:
                dog.load_s, dog.stall_s = load_s, stall_s
                for run, tables, line in session.measure(
                    missing, dog, clock, lambda point: sweep.is_over(point, found)
                ):
                    found[run.key] = tables
                    progress(f"{name}: {line} ({clock.done()})")
            missing = []
        except Exception as error:
            failed = getattr(error, "_moecap_run", None)
            failure = describe_failure(error, name, failed)
            failed_points.append(failure)
            failures.record_failures(failure_path, failed_points)
            if failed is None or failure["class"] != "permanent":
                raise _as_moecap_error(error, failure) from error
            # The engine may be in any state: go on with the other points in a fresh one.
            log.exception("point %s failed for good", failed.point)
            progress(f"{failure['message']} The other points are measured in a fresh engine.")
            missing = [run for run in missing if run.key not in found and run.point != failed.point]
    if failed_points:
        raise PermanentError(failed_points[0]["message"])
    if failure_path is not None:
        failures.end(failure_path)
    kept = [run for run in runs if not sweep.is_over(run.point, found)]
    tables = sweep.marked(assemble(found[run.key] for run in kept), found)
    for dataset, size in sweep.ends(found).items():
        progress(f"{name}: {dataset}: throughput saturates at {size} requests in flight; the sweep ends there")
    return Measurement(**tables, measured=len(kept) - reused, reused=reused, loads=loads)


def assemble(entries: Iterator[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """The tables of spool entries, one below the other."""
    columns: dict[str, list[pa.Table]] = {name: [schema.empty_table()] for name, schema in TABLES.items()}
    for entry in entries:
        for name, schema in TABLES.items():
            columns[name].append(_as(entry[name], schema))
    return {name: pa.concat_tables(tables).combine_chunks() for name, tables in columns.items()}


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """An entry in today's schema; what was not looked at when it was measured is null."""
    for field in schema:
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def _plan(
    points: Sequence[Point],
    spec: EngineSpec,
    workloads: Mapping[str, Workload],
    settings: Settings,
    manifest_sha256: str,
    hardware: Mapping[str, Any],
) -> Iterator[_Run]:
    """Every timed run, in the order in which they are measured, with the facts that it depends on."""
    common = {
        "protocol": PROTOCOL,
        "checkpoint": manifest_sha256,
        "engine": {
            key: value
            for key, value in asdict(spec).items()
            # Where the checkpoint lies does not matter; room for more or longer requests does not change a run.
            if key not in ("checkpoint", "max_num_seqs", "context_tokens", "environment", "load_s", "log_path")
        },
        "libraries": library_versions(),
        "hardware": dict(hardware),
    }
    online = {} if settings.online is None else {"client": client_version()}
    for point in points:
        workload = workloads[point.dataset]
        if settings.online is not None:
            online["arrivals"] = str(settings.online.arrivals(point.batch_size))
        for repeat in range(settings.repeats):
            batches = settings.batches(workload, point.batch_size, repeat)
            facts = {
                **common,
                "dataset": point.dataset,
                "workload": _in_words(workload, point.batch_size, settings),
                "requests": [requests_sha256(batch) for batch in batches],
                "output_tokens": workload.output_tokens,
                "batch_size": point.batch_size,
                "repeat": repeat,
                "warmup": settings.warmup,
                "seed": settings.seed,
                **({"online": dict(online)} if online else {}),
            }
            yield _Run(point, repeat, facts)


def _in_words(workload: Workload, batch_size: int, settings: Settings) -> str:
    if settings.online is None:
        return workload.describe(batch_size, settings.waves(batch_size))
    count = settings.online.requests(batch_size, settings.requests)
    return f"{workload.describe(count)}, {settings.online.arrivals(batch_size)}"


@dataclass(frozen=True)
class _Sweep:
    """Where a sweep over concurrencies ends: what lies beyond is not measured."""

    runs: Sequence[_Run]
    settings: Settings

    def ends(self, found: Mapping[str, Mapping[str, pa.Table]]) -> dict[str, int]:
        """Dataset -> the concurrency at which throughput saturates, as far as it was measured."""
        if self.settings.online is None:
            return {}
        sizes: dict[str, list[int]] = {}
        for run in self.runs:
            sizes.setdefault(run.point.dataset, []).append(run.point.batch_size)

        def rate(dataset: str, size: int) -> float | None:
            tables = [found.get(run.key) for run in self.runs if run.point == Point(dataset, size)]
            rows = [table["points"].to_pylist()[0] for table in tables if table is not None]
            if len(rows) < len(tables):
                return None
            return sum(row["generated_tokens"] for row in rows) / sum(row["wall_s"] for row in rows)

        distinct = {dataset: sorted(set(values)) for dataset, values in sizes.items()}
        return saturated_at(distinct, rate, self.settings.online.saturation_gain)

    def is_over(self, point: Point, found: Mapping[str, Mapping[str, pa.Table]]) -> bool:
        end = self.ends(found).get(point.dataset)
        return end is not None and point.batch_size > end

    def marked(self, tables: dict[str, pa.Table], found: Mapping[str, Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
        """The tables, with the points at which a sweep ended told."""
        if self.settings.online is None:
            return tables
        ends, points = self.ends(found), tables["points"]
        where = [ends.get(row["dataset"]) == row["batch_size"] for row in points.to_pylist()]
        at = points.schema.get_field_index("saturates")
        points = points.set_column(at, points.schema.field(at), pa.array(where, pa.bool_()))
        return {**tables, "points": points}


@dataclass(frozen=True)
class _Session:
    """What every load of the engine has in common."""

    spec: EngineSpec
    workloads: Mapping[str, Workload]
    settings: Settings
    spool: Spool
    hardware: Mapping[str, Any]
    load: Callable[[EngineSpec], AbstractContextManager[Engine]]
    energy: Callable[..., AbstractContextManager[Any]]

    def measure(
        self, runs: Sequence[_Run], dog: Watchdog, clock: _Clock, is_over: Callable[[Point], bool]
    ) -> Iterator[tuple[_Run, dict[str, pa.Table], str]]:
        """One engine load; yields every run once it is in the spool. An error carries its run as ``_moecap_run``."""
        wanted = {run.point for run in runs}
        context = max(self.workloads[point.dataset].context_tokens for point in wanted)
        spec = replace(
            self.spec,
            max_num_seqs=max(point.batch_size for point in wanted),
            context_tokens=-(-context // 64) * 64,
        )
        load_id = uuid.uuid4().hex
        dog.watch(dog.load_s, "loading the engine")
        with self.load(spec) as engine:
            processes.note()  # the engine's own ones too: should this one be killed, the next start ends them
            clock.start()
            warm: Point | None = None
            ceiling: float | None = None
            for run in runs:
                if is_over(run.point):
                    continue
                dog.watch(dog.stall_s, f"{run.point.dataset} at batch size {run.point.batch_size}", engine)
                try:
                    if warm != run.point:
                        ceiling = self._warm_up(engine, run.point)
                        warm = run.point
                    results, others = self._undisturbed(engine, run)
                    workload = self.workloads[run.point.dataset]
                    tables = _tables(run, results, workload, engine, load_id, self.hardware, others)
                    if self.settings.online is not None:
                        arrivals = self.settings.online.arrivals(run.point.batch_size)
                        tables["points"] = _with(tables["points"], point_columns(results[0], arrivals, ceiling))
                    self.spool.put(run.facts, tables)
                except Exception as error:
                    error._moecap_run = run  # type: ignore[attr-defined]
                    raise
                dog.watch(None)
                yield run, tables, _line(run, results, self.settings, others)
            dog.watch(dog.load_s, "shutting the engine down")

    def _warm_up(self, engine: Engine, point: Point) -> float | None:
        """Offline. Online runs have their own; the client is then measured alone, and its ceiling is returned."""
        if self.settings.online is not None:
            (requests,) = self.settings.batches(self.workloads[point.dataset], point.batch_size, 0)
            return engine.client_tokens_per_s(requests, self.settings.online.arrivals(point.batch_size))
        for number in range(self.settings.warmup):
            engine.run(self.workloads[point.dataset].warmup(point.batch_size, number))
        return None

    def _undisturbed(self, engine: Engine, run: _Run) -> tuple[list[RunResult], Load]:
        """A timed run, and others' work on the machine meanwhile; if that was felt, the calmer of two."""
        tries = [self._watched(engine, run)]
        if tries[0][1].disturbed:
            log.warning("%s, repeat %d: %s; timed once more", run.point, run.repeat + 1, tries[0][1])
            tries.append(self._watched(engine, run))
        return min(tries, key=lambda found: found[1].weight)

    def _watched(self, engine: Engine, run: _Run) -> tuple[list[RunResult], Load]:
        if engine.spec.device == "remote":  # who works on this machine says nothing of the one that serves
            return self._time(engine, run), Load()
        with machine_load.window(gpu=engine.spec.device != "cpu") as watch:
            results = self._time(engine, run)
        return results, watch.load

    def _time(self, engine: Engine, run: _Run) -> list[RunResult]:
        """One result per wave."""
        size, workload = run.point.batch_size, self.workloads[run.point.dataset]
        batches = self.settings.batches(workload, size, run.repeat)
        if self.settings.online is not None:
            # The client's own start and end are in what it takes: energy of the steady window is not to be had.
            warmup = [request for n in range(self.settings.warmup) for request in workload.warmup(size, n)]
            return [engine.run_online(batches[0], self.settings.online.arrivals(size), warmup)]
        device = "cpu" if engine.spec.device == "cpu" else "gpu"
        return [engine.run(batch, lambda: self.energy(device)) for batch in batches]


def _line(run: _Run, results: Sequence[RunResult], settings: Settings, others: Load) -> str:
    tokens = sum(len(request.output_token_ids) for result in results for request in result.requests)
    wall = sum(result.wall_s for result in results)
    return (
        f"{run.point.dataset} at batch size {run.point.batch_size}, repeat {run.repeat + 1} of {settings.repeats}: "
        f"{tokens / wall:,.0f} tokens/s" + (f" (disturbed, {others})" if others.disturbed else "")
    )


def _tables(
    run: _Run,
    results: Sequence[RunResult],
    workload: Workload,
    engine: Engine,
    load_id: str,
    hardware: Mapping[str, Any],
    others: Load,
) -> dict[str, pa.Table]:
    """The three tables of one run. Waves follow each other on one time axis, without the pauses between them."""
    point = {"dataset": run.point.dataset, "batch_size": run.point.batch_size, "repeat": run.repeat}
    requests: list[dict[str, Any]] = []
    schedule: list[dict[str, Any]] = []
    offset = 0.0
    for result in results:
        first = len(requests)
        for record in result.requests:
            times = [offset + t for t in record.token_times_s]
            requests.append(
                {
                    **point,
                    "request": len(requests),
                    "sequence_sha256": sequence_hash([*record.prompt_token_ids, *record.output_token_ids]),
                    "prompt_token_ids": record.prompt_token_ids,
                    "output_token_ids": record.output_token_ids,
                    "arrival_s": offset + record.arrival_s,
                    "first_token_s": times[0],
                    "finished_s": times[-1],
                    "token_times_s": times,
                    "finish_reason": record.finish_reason,
                }
            )
        for step in result.steps:
            schedule.append(
                {
                    **point,
                    "step": len(schedule),
                    "start_s": offset + step.start_s,
                    "wall_s": step.wall_s,
                    "request": [first + request for request in step.request],
                    "first_position": step.first_position,
                    "tokens": step.tokens,
                    "cached_tokens": step.cached_tokens,
                    "preempted": [first + request for request in step.preempted],
                }
            )
        offset += result.wall_s
    row = {
        **point,
        "workload": run.facts["workload"],
        "start_unix_s": results[0].start_unix_s,
        "wall_s": offset,
        "requests": len(requests),
        "prompt_tokens": sum(len(r["prompt_token_ids"]) for r in requests),
        "generated_tokens": sum(len(r["output_token_ids"]) for r in requests),
        "load_id": load_id,
        "engine": engine.spec.name,
        "engine_version": engine.version,
        "libraries": json.dumps(engine.libraries, sort_keys=True),
        "hardware": json.dumps(dict(hardware), sort_keys=True),
        "seed": run.facts["seed"],
        **_energy_columns([result.window for result in results]),
        "spool_key": run.key,
        "max_num_seqs": engine.spec.max_num_seqs,
        "schedule_kind": engine.schedule,
        "weights_as": engine.weights_as,
        "weights_by_tier": _json(engine.weights_by_tier),
        "moved_per_step": _json(engine.moved_per_step),
        "external_cpu_share": others.external_share,
        "cpu_steal_share": others.steal_share,
        "other_gpu_processes": others.other_gpu_processes,
        "disturbed": others.disturbed,
    }
    return {
        "points": pa.Table.from_pylist([row], POINTS),
        "requests": pa.Table.from_pylist(requests, REQUESTS),
        "schedule": pa.Table.from_pylist(schedule, SCHEDULE),
    }


def _json(value: Mapping[str, int] | None) -> str | None:
    return None if value is None else json.dumps(dict(value), sort_keys=True)


def _with(table: pa.Table, values: Mapping[str, Any]) -> pa.Table:
    """The table of one row with these values in it."""
    return pa.Table.from_pylist([{**table.to_pylist()[0], **values}], table.schema)


def _energy_columns(windows: Sequence[Any]) -> dict[str, Any]:
    """Energy over all windows; null unless every one was measured."""
    if not windows or any(w is None or w.energy_j is None for w in windows):
        return {"energy_j": None, "power_w": None, "energy_source": None}
    joules, seconds = sum(w.energy_j for w in windows), sum(w.elapsed_s for w in windows)
    return {"energy_j": joules, "power_w": joules / seconds, "energy_source": windows[0].source}


class _Clock:
    """How much is left, from the time that the runs so far took."""

    def __init__(self, total: int) -> None:
        self.total, self.finished, self.began, self.base = total, 0, time.monotonic(), 0

    def start(self) -> None:
        """An engine is loaded: what comes now is what the rest will take."""
        self.began, self.base = time.monotonic(), self.finished

    def done(self) -> str:
        self.finished += 1
        left = self.total - self.finished
        if not left:
            return f"{self.finished} of {self.total}"
        estimate = (time.monotonic() - self.began) / (self.finished - self.base) * left
        return f"{self.finished} of {self.total}, about {_duration(estimate)} left"


def _duration(seconds: float) -> str:
    """
    >>> _duration(5), _duration(200), _duration(9000)
    ('5 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# -- failures ---------------------------------------------------------------------------------------------------------


def describe_failure(error: BaseException, name: str, run: _Run | None = None) -> dict[str, Any]:
    """What a failure record says: ``class``, ``message`` (one paragraph), ``error``, and the point that failed."""
    point = {"dataset": run.point.dataset, "batch_size": run.point.batch_size, "repeat": run.repeat} if run else None
    where = f"{name}, {point['dataset']} at batch size {point['batch_size']}" if point else f"{name}"
    told = failures.record_of(error)
    return {"deployment": name, **told, "message": f"{where}: {told['message']}", "point": point}


def _as_moecap_error(error: Exception, failure: Mapping[str, Any]) -> MoecapError:
    if not isinstance(error, MoecapError):
        log.exception("the engine failed", exc_info=error)
    kind = PermanentError if failure["class"] == "permanent" else MoecapError
    after = "" if kind is PermanentError else " What was measured so far is kept; starting again measures the rest."
    return kind(f"{failure['message']}{after}")


class Watchdog:
    """Ends this process when the engine stops making progress: a hung collective waits for ever, a slow one does not.
    So does a client whose engine, in a process of its own, was killed.

    It looks at the engine's ``beat`` (the time of its last step) a few times a minute from a thread. On a stall it
    writes every thread's stack to standard error, leaves a transient failure behind, kills the engine's processes and
    exits with status 75 (try again). A step that hangs in native code without giving Python's lock back stops that
    thread too: behind it stands a timer of ``faulthandler`` that needs no lock, a little later. `watch` itself sets it,
    since the thread may not get another turn.
    """

    load_s = LOAD_S
    stall_s = STALL_S

    def __init__(
        self,
        name: str,
        failure_path: str | Path | None = None,
        interval_s: float = 5.0,
        say: Callable[[str], None] = log.error,
    ) -> None:
        self.name, self.failure_path, self.interval_s, self.say = name, failure_path, interval_s, say
        self._limit: float | None = None
        self._what = ""
        self._since = time.monotonic()
        self._engine: Engine | None = None
        self._stop = threading.Event()
        self._timer = threading.Lock()  # what is watched and the timer behind it change together
        self._thread = threading.Thread(target=self._loop, name="moecap-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def watch(self, limit_s: float | None, what: str = "", engine: Engine | None = None) -> None:
        """From now on, allow ``limit_s`` seconds without progress; None: do not watch."""
        with self._timer:
            self._limit, self._what, self._engine, self._since = limit_s, what, engine, time.monotonic()
            self._set_timer()

    def _set_timer(self) -> None:
        if self._limit is None:
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(self._limit + 12 * self.interval_s, exit=True, file=2)

    def idle_s(self) -> float:
        """Seconds since the last progress."""
        beat = self._engine.beat if self._engine is not None else 0.0
        return time.monotonic() - max(self._since, beat)

    def _loop(self) -> None:
        while not self._stop.wait(self.interval_s):
            with self._timer:
                if self._limit is None:
                    continue
                if self._engine is not None and (dead := self._engine.died()):
                    self._give_up(f"the engine died: {dead}", "Died")
                if self.idle_s() > self._limit:
                    self._give_up(f"no progress for {self._limit:.0f} s; the engine hangs and was ended", "Stall")
                self._set_timer()

    def _give_up(self, why: str, error: str) -> None:
        message = (
            f"{self.name}, {self._what}: {why}. What was measured so far is kept; starting again measures the rest."
        )
        failure = {"deployment": self.name, "class": "transient", "message": message, "error": error, "point": None}
        failures.record_failures(self.failure_path, [failure])
        self.say(message)
        faulthandler.dump_traceback(all_threads=True)
        import psutil

        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(75)


# -- the job ----------------------------------------------------------------------------------------------------------


def engine_spec(
    name: str, entry: Mapping[str, Any], deployment: Mapping[str, Any], checkpoint: str | Path, **more: Any
) -> EngineSpec:
    """An engine's spec from its catalogue entry and a row of the deployment table."""
    parallelism = ("tensor_parallel", "pipeline_parallel", "expert_parallel", "data_parallel")
    return spec_of(
        name,
        entry,
        checkpoint,
        offload=deployment.get("offload", "none"),
        **{key: int(deployment.get(key, 1)) for key in parallelism},
        **more,
    )


def _check_checkpoint(checkpoint: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a damaged checkpoint before an engine stumbles over it: by its structure, a small one by every byte."""
    from moecap.checkpoints.hub import check_checkpoint, verify_manifest

    check_checkpoint(checkpoint)
    if manifest.get("size_bytes", VERIFY_BYTES) < VERIFY_BYTES:
        try:
            verify_manifest(checkpoint)
        except MoecapError as error:  # the same bytes are there the next time
            raise PermanentError(str(error)) from error


def prepare_workloads(
    datasets: Mapping[str, Mapping[str, Any]],
    batch_sizes: Sequence[int],
    settings: Settings,
    checkpoint: str | Path,
    *,
    data_files: Mapping[str, Mapping[str, str]] | None = None,
    output_tokens: int | None = None,
    input_tokens: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Workload]:
    """The prompts of every dataset, tokenized by the checkpoint's tokenizer.

    Args:
        datasets: name -> ``task``, ``output_tokens``, ``num_fewshot``, ``chat_template`` of its catalogue entry.
        data_files: dataset -> split -> local file.
        output_tokens: in place of every dataset's own.
        input_tokens: length of every prompt, made of the dataset's text; None: its prompts as they are.
    """
    from moecap.measure import workload

    tokenizer = workload.load_tokenizer(checkpoint, trust_remote_code)
    limit = workload.context_limit(checkpoint)
    needed = max(settings.prompts_needed(batch_size) for batch_size in batch_sizes)
    found = {}
    for name, entry in datasets.items():
        chat = bool(entry.get("chat_template"))
        prompts = workload.task_prompts(
            entry.get("task") or name,
            data_files=(data_files or {}).get(name),
            num_fewshot=entry.get("num_fewshot"),
            seed=settings.seed,
            chat_template=workload.chat_renderer(tokenizer) if chat else None,
        )
        found[name] = workload.build(
            name,
            prompts,
            # A chat template writes its own special tokens.
            lambda text, special=not chat: tokenizer(text, add_special_tokens=special)["input_ids"],
            count=len(prompts),
            output_tokens=output_tokens or entry.get("output_tokens") or workload.DEFAULT_OUTPUT_TOKENS,
            needed=needed,
            seed=settings.seed,
            context_limit=limit,
            input_tokens=input_tokens,
        )
    return found


def _online(deployment: Mapping[str, Any], given: Mapping[str, Any]) -> Online | None:
    if deployment.get("load", "offline") != "online":
        return None
    known = {key: given[key] for key in ("rounds", "saturation_gain") if key in given}
    return Online(**known, request_rate=deployment.get("request_rate"))


def run_job(
    run: Mapping[str, Any],
    *,
    manifest: str | Path,
    machine: str | Path,
    outputs: Mapping[str, str | Path],
    spool: str | Path,
    demo_data: str | Path | None = None,
    failure: str | Path | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = log.info,
) -> Measurement:
    """What ``scripts/performance.py`` does: from files and plain params to the three tables of a deployment.

    Args:
        run: ``deployment``, ``datasets``, ``data_files``, ``engine``, ``precision``, ``settings``, ``seed``,
            ``trust_remote_code``.
        manifest: the checkpoint's manifest; the checkpoint is its folder.
        demo_data: manifest of the demo's data files, which lie beside it.
        failure: where a failure and its class are written.
        threads: CPU threads for an engine that runs on the CPU.
    """
    from moecap.checkpoints.demo import local_data
    from moecap.engines.capabilities import check_can_serve, this_machine
    from moecap.hardware import machine as machines
    from moecap.provenance import provenance

    deployment, entry = run["deployment"], run["engine"]
    name = deployment["deployment"]
    given = run.get("settings") or {}
    settings = Settings(
        repeats=given.get("repeats", Settings.repeats),
        warmup=given.get("warmup", Settings.warmup),
        requests=given.get("requests_per_repeat"),
        seed=run.get("seed", Settings.seed),
        online=_online(deployment, given.get("online") or {}),
    )
    checkpoint = Path(manifest).parent
    facts_of_checkpoint = io.read_json(manifest)
    expected = io.read_json(machine)
    data_files = dict(run.get("data_files") or {})
    if demo_data is not None:
        for dataset in run["datasets"]:
            if dataset not in data_files and (files := local_data(demo_data, dataset)):
                data_files[dataset] = files
    parallelism = {key: value for key, value in deployment.items() if key.endswith("_parallel")}

    def check_machine() -> None:
        _check_checkpoint(checkpoint, facts_of_checkpoint)
        wanted: dict[str, Any] = {"fingerprint": expected["fingerprint"]}
        if entry["device"] != "cpu":
            nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)
            wanted |= {"gpu_names": expected["fingerprint"]["gpus"], "gpus": -(-int(deployment["devices"]) // nodes)}
        machines.check_is(wanted, machines.detect(), deployment["hardware"])
        check_can_serve(
            EngineEntry.model_validate(entry),
            run.get("precision") or deployment["precision"],
            this_machine(deployment["hardware"]),
            engine=deployment["engine"],
            offload=deployment.get("offload", "none"),
            **parallelism,
        )

    workloads = prepare_workloads(
        run["datasets"],
        deployment["batch_sizes"],
        settings,
        checkpoint,
        data_files=data_files,
        output_tokens=given.get("output_tokens"),
        input_tokens=(given.get("online") or {}).get("input_tokens") if settings.online else None,
        trust_remote_code=run.get("trust_remote_code", False),
    )
    spec = engine_spec(
        deployment["engine"],
        entry,
        deployment,
        checkpoint,
        seed=settings.seed,
        threads=threads if entry["device"] == "cpu" else None,
        trust_remote_code=run.get("trust_remote_code", False),
    )
    timeouts = entry.get("timeouts") or {}
    capabilities = EngineEntry.model_validate(entry).capabilities
    wrong = known_mismatch(capabilities, io.read_json(checkpoint / "config.json"))
    if wrong is not None:
        raise PermanentError(
            f"{name}: engine {deployment['engine']} computes this model as another ({wrong.config}): {wrong.reason} "
            f"({wrong.source}). Serve it with another engine."
        )
    result = measure(
        [Point(dataset, batch) for dataset in deployment["datasets"] for batch in deployment["batch_sizes"]],
        spec,
        workloads,
        Spool(spool),
        manifest_sha256=checkpoint_sha256(facts_of_checkpoint),
        hardware=expected["fingerprint"],
        settings=settings,
        name=name,
        failure_path=failure,
        check_machine=check_machine,
        progress=progress,
        stall_s=timeouts.get("stall_s", STALL_S),
        load_s=timeouts.get("load_s", LOAD_S),
    )
    if capabilities.tolerance_nats is not None:
        served = (
            result.requests.select(["prompt_token_ids", "output_token_ids"]).slice(0, equality.SEQUENCES).to_pydict()
        )
        found = equality.check(
            deployment["engine"],
            checkpoint,
            served["prompt_token_ids"],
            served["output_token_ids"],
            capabilities.tolerance_nats,
            trust_remote_code=spec.trust_remote_code,
        )
        progress(f"{name}: {found.equal} of {found.tokens} greedy tokens are those of Transformers in fp32")
    facts = provenance(
        deployment=name,
        measured=result.measured,
        reused=result.reused,
        left_out={dataset: workload.left_out for dataset, workload in workloads.items()},
    )
    for table, path in outputs.items():
        io.write_parquet(getattr(result, table), path, facts)
    return result
