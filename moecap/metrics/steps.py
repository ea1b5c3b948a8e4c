"""The step table: one row per engine step, joined from a timed run's schedule and the routing of its sequences.

The schedule says which positions of which requests a step computed; routing says which experts each position was sent
to. Together they give what equation (3) asks for, exactly: the union of the experts of the tokens in the step, layer by
layer, and the KV that was read. Chunked prefill, prefill mixed with decode, prefix-cache hits and preempted requests
that are computed again are rows like any other.

A position is a *prefill* token while it lies in the prompt, or while a preempted request computes again what it had;
it is a *decode* token otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moecap.errors import MoecapError
from moecap.io import METADATA_KEY, atomic_path
from moecap.model.reads import entries_read
from moecap.model.reads import pairs as attention_pairs

if TYPE_CHECKING:
    from moecap.model.structure import Anatomy

POINT = ("dataset", "batch_size", "repeat")
SCHEDULE_LISTS = ("request", "first_position", "tokens", "cached_tokens")
SCHEDULE_COLUMNS = (*POINT, "step", "start_s", "wall_s", *SCHEDULE_LISTS, "preempted")
REQUEST_COLUMNS = (*POINT, "request", "sequence_sha256", "prompt_token_ids", "output_token_ids")

# A block of steps is joined at a time: its expert ids and its table of experts seen stay in the processor's cache.
BLOCK_IDS = 1 << 19
BLOCK_SEEN_BYTES = 1 << 21


def _field(name: str, dtype: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, dtype, nullable=False, metadata={"unit": unit, "meaning": meaning})


def _list(dtype: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", dtype, nullable=False))


STEP_SCHEMA = pa.schema(
    [
        _field("dataset", pa.string(), "", "dataset of the point"),
        _field("batch_size", pa.int32(), "1", "batch size of the point"),
        _field("repeat", pa.int32(), "1", "repeat of the point"),
        _field("step", pa.int32(), "1", "number of the engine step in its run"),
        _field("start_s", pa.float64(), "s", "start of the step, from the start of the run"),
        _field("wall_s", pa.float64(), "s", "wall time of the step"),
        _field("prefill_tokens", pa.int32(), "1", "prompt tokens computed, those computed again included"),
        _field("decode_tokens", pa.int32(), "1", "tokens computed beyond the prompt"),
        _field("cached_tokens", pa.int32(), "1", "tokens that the prefix cache spared, of requests admitted here"),
        _field("preempted_tokens", pa.int32(), "1", "tokens whose KV was dropped by preemption in this step"),
        _field("recomputed_tokens", pa.int32(), "1", "tokens computed that had been computed before"),
        _field("running_requests", pa.int32(), "1", "requests that the step computed tokens for"),
        _field(
            "context_tokens", _list(pa.int64()), "1", "KV entries read, over requests, per cache of each kind of layer"
        ),
        _field(
            "attention_pairs",
            _list(pa.int64()),
            "1",
            "causal query-key pairs over requests, per cache of each kind of layer",
        ),
        _field("routed_tokens", pa.int32(), "1", "tokens routed in each MoE layer, padding excluded"),
        _field("unique_experts", _list(pa.int16()), "1", "distinct routed experts used, per MoE layer"),
    ]
)


class Routing(Protocol):
    """What the join needs of :class:`moecap.routing.store.RoutingStore`."""

    def experts(self, sequence_sha256: str) -> np.ndarray:
        """Expert ids of a sequence, integers of shape (tokens, MoE layers, top-k)."""


def step_table(
    schedule: pa.Table, requests: pa.Table, routing: Routing | None, anatomy: Anatomy, source: str = "the schedule"
) -> pa.Table:
    """The step table of all points at once; see :func:`step_batches`."""
    batches = list(step_batches(schedule, requests, routing, anatomy, source))
    return pa.concat_tables(batches) if batches else STEP_SCHEMA.empty_table()


def step_batches(
    schedule: pa.Table, requests: pa.Table, routing: Routing | None, anatomy: Anatomy, source: str = "the schedule"
) -> Iterator[pa.Table]:
    """Join schedule and routing, one table of ``STEP_SCHEMA`` per point (dataset × batch size × repeat), in order.

    Args:
        schedule: one row per engine step (``SCHEDULE_COLUMNS``); the lists of a row run in parallel over its requests.
        requests: one row per request (``REQUEST_COLUMNS``).
        routing: expert ids by sequence; None for a dense model.
        anatomy: the model that the sequences were routed by.
        source: name of the schedule's file, for messages.

    Raises:
        MoecapError: a step that is empty or takes no time, an unknown request, positions that skip what was never
            computed, a routing whose layers, top-k or expert ids do not fit the model, a sequence without routing.
    """
    _require_columns(schedule, SCHEDULE_COLUMNS, source)
    _require_columns(requests, REQUEST_COLUMNS, "the table of requests")
    _check_routing(routing, anatomy)
    by_point = dict(points_of(requests))
    for key, steps in points_of(schedule):
        where = f"{source}, dataset {key[0]!r}, batch size {key[1]}, repeat {key[2]}"
        if key not in by_point:
            raise MoecapError(f"{where}: the point has steps but no requests; both come from the same timed run.")
        run = _Run(steps, by_point[key], where)
        yield _table(key, run, routing, anatomy)


def write_steps(
    batches: Iterable[pa.Table], path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> int:
    """Write step tables as they come, a row group each, atomically; returns the number of steps."""
    import json

    schema = STEP_SCHEMA
    if metadata is not None:
        schema = schema.with_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True, default=str).encode()})
    steps = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(batch.replace_schema_metadata(schema.metadata), row_group_size=1 << 17)
            steps += batch.num_rows
    return steps


def read_steps(path: str | os.PathLike[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The step table in parts: all steps of one point (dataset × batch size × repeat) at a time.

    Raises:
        MoecapError: the file is missing, truncated, or no step table.
    """
    wanted = None if columns is None else [*POINT, *(c for c in columns if c not in POINT)]
    _check_file(path, wanted or STEP_SCHEMA.names)
    held: list[pa.Table] = []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=wanted)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise _broken(path, error) from error
            for key, part in points_of(table):
                if held and next(points_of(held[-1].slice(0, 1)))[0] != key:
                    yield pa.concat_tables(held)
                    held = []
                held.append(part)
    if held:
        yield pa.concat_tables(held)


# ---------------------------------------------------------------- one point


class _Run:
    """The schedule of one point as flat arrays over entries (step × request), checked.

    Attributes:
        steps: number of steps; ``offsets``: entries of step s are ``offsets[s]:offsets[s + 1]``.
        request: index into ``sequences`` of each entry; first, tokens, cached: of each entry.
    """

    def __init__(self, table: pa.Table, requests: pa.Table, where: str) -> None:
        self.where = where
        number = table.column("step").to_numpy()
        if (np.diff(number) <= 0).any():
            order = np.argsort(number, kind="stable")
            table, number = table.take(pa.array(order)), number[order]
            if (np.diff(number) == 0).any():
                raise MoecapError(f"{where}: step {number[:-1][np.diff(number) == 0][0]} occurs twice.")
        self.number, self.steps = number, len(number)
        self.start_s = table.column("start_s").to_numpy()
        self.wall_s = table.column("wall_s").to_numpy()
        self._refuse(
            ~((self.wall_s > 0) & np.isfinite(self.wall_s)),
            "wall_s",
            self.wall_s,
            "takes no time; a step's wall_s is positive",
        )
        self._refuse(~np.isfinite(self.start_s), "start_s", self.start_s, "has no start")

        self.offsets, entries = _flatten(table, where)
        counts = np.diff(self.offsets)
        self._refuse(counts == 0, "request", counts, "is empty: it computed no request. Leave such steps out")
        self.first, self.tokens, self.cached = (entries[c].astype(np.int64) for c in SCHEDULE_LISTS[1:])
        self.step = np.repeat(np.arange(self.steps), counts)
        self._refuse_entry(self.tokens <= 0, "tokens", self.tokens, "must be at least 1")
        self._refuse_entry(self.first < 0, "first_position", self.first, "must not be negative")
        self._refuse_entry(self.cached < 0, "cached_tokens", self.cached, "must not be negative")

        ids = requests.column("request").to_numpy()
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        if (np.diff(self._ids) == 0).any():
            raise MoecapError(f"{where}: request {self._ids[:-1][np.diff(self._ids) == 0][0]} occurs twice.")
        requests = requests.take(pa.array(order))
        self.sequences = requests.column("sequence_sha256").to_pylist()
        self.prompt_tokens = pc.list_value_length(requests.column("prompt_token_ids")).to_numpy()
        self.request = self._index_of(entries["request"])
        lost = table.column("preempted").combine_chunks()
        self.preempted_step = np.repeat(np.arange(self.steps), pc.list_value_length(lost).fill_null(0).to_numpy())
        self.preempted = self._index_of(lost.flatten().to_numpy(zero_copy_only=False))
        self._check_positions()

    def _index_of(self, request: np.ndarray) -> np.ndarray:
        index = np.searchsorted(self._ids, request)
        unknown = (index >= len(self._ids)) | (self._ids[np.minimum(index, len(self._ids) - 1)] != request)
        if unknown.any():
            raise MoecapError(
                f"{self.where}: request {request[unknown][0]} is scheduled, but not in the table of requests."
            )
        return index

    def _refuse(self, bad: np.ndarray, column: str, values: np.ndarray, what: str) -> None:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise MoecapError(
                f"{self.where}: step {self.number[at]} {what} ({column} is {values[at]}); {int(bad.sum())} such "
                "step(s). The file was left as it is; measure the point again."
            )

    def _refuse_entry(self, bad: np.ndarray, column: str, values: np.ndarray, what: str) -> None:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise MoecapError(
                f"{self.where}: step {self.number[self.step[at]]}: `{column}` is {values[at]}, it {what}. The file was "
                "left as it is; measure the point again."
            )

    @cached_property
    def by_request(self) -> np.ndarray:
        """The order of entries by request, then step."""
        return np.argsort(self.request, kind="stable")

    @cached_property
    def computed_before(self) -> np.ndarray:
        """Of each entry's request: the tokens that it had computed at most, before this step."""
        order = self.by_request
        request, end = self.request[order], (self.first + self.tokens)[order]
        stride = int(end.max(initial=0)) + 1
        highest = np.maximum.accumulate(end + request * stride) - request * stride
        before = np.empty_like(highest)
        before[:1] = 0
        before[1:] = np.where(request[1:] == request[:-1], highest[:-1], 0)
        result = np.empty_like(before)
        result[order] = before
        return result

    def _check_positions(self) -> None:
        gap = self.first - self.computed_before
        bad = gap > self.cached
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise MoecapError(
                f"{self.where}: step {self.number[self.step[at]]} computes request {self._ids[self.request[at]]} from "
                f"position {self.first[at]}, but only {self.computed_before[at]} of its tokens were computed before "
                f"and {self.cached[at]} came from the prefix cache: the schedule lacks steps. Measure the point again."
            )

    @cached_property
    def recomputed(self) -> np.ndarray:
        """Tokens of each entry that had been computed before."""
        return np.clip(self.computed_before - self.first, 0, self.tokens)

    @cached_property
    def prefill(self) -> np.ndarray:
        """Prefill tokens of each entry: positions in the prompt, or computed again after a preemption."""
        prompt = self.prompt_tokens[self.request].astype(np.int64)
        restarted = np.zeros(len(self.sequences), dtype=bool)
        restarted[self.preempted] = True
        restarted[self.request[(self.first < prompt) & (self.computed_before > prompt)]] = True
        limit = np.where(restarted[self.request], np.maximum(prompt, self.computed_before), prompt)
        return np.clip(limit - self.first, 0, self.tokens)

    @cached_property
    def preempted_tokens(self) -> np.ndarray:
        """Per step: computed tokens of the requests that were preempted in it."""
        result = np.zeros(self.steps, dtype=np.int64)
        if len(self.preempted):
            order = self.by_request
            key = self.request[order] * (self.steps + 1) + self.step[order]
            last = np.searchsorted(key, self.preempted * (self.steps + 1) + self.preempted_step) - 1
            entry = order[np.maximum(last, 0)]
            same = (last >= 0) & (self.request[entry] == self.preempted)
            np.add.at(result, self.preempted_step, np.where(same, (self.first + self.tokens)[entry], 0))
        return result

    def per_step(self, values: np.ndarray) -> np.ndarray:
        """Sum over the entries of each step; shape (steps,)."""
        return np.add.reduceat(values, self.offsets[:-1]) if self.steps else np.zeros(0, dtype=np.int64)


def _flatten(table: pa.Table, where: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The parallel lists of a schedule as flat arrays, and where each step begins in them."""
    flat: dict[str, np.ndarray] = {}
    offsets: np.ndarray | None = None
    for name in SCHEDULE_LISTS:
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        own = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        if offsets is not None and not np.array_equal(own, offsets):
            at = int(np.flatnonzero(np.diff(own) != np.diff(offsets))[0])
            raise MoecapError(
                f"{where}: in step {table.column('step')[at]} the list `{name}` has {lengths[at]} entries, `request` "
                f"has {np.diff(offsets)[at]}; they run in parallel."
            )
        offsets = own
        values = column.flatten()
        if values.null_count:
            raise MoecapError(f"{where}: a list `{name}` holds a null.")
        flat[name] = values.to_numpy(zero_copy_only=False)
    assert offsets is not None
    return offsets, flat


def _table(key: tuple[str, int, int], run: _Run, routing: Routing | None, anatomy: Anatomy) -> pa.Table:
    steps, caches = run.steps, anatomy.caches
    prefill = run.per_step(run.prefill)
    total = run.per_step(run.tokens)
    context = np.empty((steps, len(caches)), dtype=np.int64)
    pairs = np.empty_like(context)
    for index, (_, cache) in enumerate(caches):
        context[:, index] = run.per_step(entries_read(cache, run.first, run.tokens))
        pairs[:, index] = run.per_step(attention_pairs(cache, run.first, run.tokens))
    unique = _unique_experts(run, routing, anatomy)
    columns = {
        "dataset": pa.array([key[0]]).take(pa.array(np.zeros(steps, dtype=np.int8))),
        "batch_size": np.full(steps, key[1]),
        "repeat": np.full(steps, key[2]),
        "step": run.number,
        "start_s": run.start_s,
        "wall_s": run.wall_s,
        "prefill_tokens": prefill,
        "decode_tokens": total - prefill,
        "cached_tokens": run.per_step(run.cached),
        "preempted_tokens": run.preempted_tokens,
        "recomputed_tokens": run.per_step(run.recomputed),
        "running_requests": np.diff(run.offsets),
        "context_tokens": context,
        "attention_pairs": pairs,
        "routed_tokens": total if anatomy.moe_layers else np.zeros(steps, dtype=np.int64),
        "unique_experts": unique,
    }
    return pa.table([_array(columns[field.name], field.type) for field in STEP_SCHEMA], schema=STEP_SCHEMA)


def _array(values: Any, dtype: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if values.ndim == 1:
        return pa.array(values, dtype)
    rows, width = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), dtype.value_type), type=dtype)


# ---------------------------------------------------------------- experts


@dataclass(frozen=True)
class _Block:
    steps: slice
    entries: slice


def _unique_experts(run: _Run, routing: Routing | None, anatomy: Anatomy) -> np.ndarray:
    """Distinct experts per step and MoE layer, shape (steps, MoE layers), int16."""
    layers = len(anatomy.moe_layers)
    result = np.zeros((run.steps, layers), dtype=np.int16)
    if not layers or routing is None:
        return result
    sequences = _Sequences(run, routing, anatomy)
    padded = -(-anatomy.experts // 64) * 64
    for block in _blocks(run, layers * anatomy.top_k, layers * padded):
        entries = block.entries
        rows, row_of_entry = sequences.rows(entries)
        tokens = run.tokens[entries]
        step = np.repeat(run.step[entries] - block.steps.start, tokens)
        row = np.repeat(row_of_entry - np.concatenate(([0], np.cumsum(tokens)[:-1])), tokens) + np.arange(len(step))
        result[block.steps] = count_unique(rows, row, step, block.steps.stop - block.steps.start, padded)
    return result


def count_unique(ids: np.ndarray, row: np.ndarray, step: np.ndarray, steps: int, experts: int) -> np.ndarray:
    """Distinct experts per step and layer: a table of experts seen is filled, and its bits are counted.

    Args:
        ids: expert ids, integers of shape (rows, layers, top-k).
        row: which row of ``ids`` each token has, shape (tokens,).
        step: which step each token belongs to, 0 to ``steps - 1``, shape (tokens,).
        steps: number of steps.
        experts: every id is below; a multiple of 64.

    Returns:
        Shape (steps, layers), uint16.
    """
    layers, top_k = ids.shape[1:]
    seen = np.zeros(steps * layers * experts, dtype=bool)
    in_layer = np.arange(layers, dtype=np.intp) * experts
    per_chunk = max(BLOCK_IDS // (layers * top_k), 1)
    for begin in range(0, len(row), per_chunk):
        chunk = slice(begin, begin + per_chunk)
        base = step[chunk, None] * (layers * experts) + in_layer
        seen[(ids[row[chunk]] + base[:, :, None]).ravel()] = True
    words = np.packbits(seen).view(np.uint64).reshape(steps, layers, experts // 64)
    return np.bitwise_count(words).sum(axis=-1, dtype=np.uint16)


def _blocks(run: _Run, ids_per_token: int, seen_per_step: int) -> Iterator[_Block]:
    """Runs of steps that are joined together; a step is never divided."""
    ends = np.cumsum(run.per_step(run.tokens)) * ids_per_token
    most_steps = max(BLOCK_SEEN_BYTES // seen_per_step, 1)
    begin = 0
    while begin < run.steps:
        done = ends[begin - 1] if begin else 0
        fits = int(np.searchsorted(ends, done + BLOCK_IDS, side="right"))
        end = min(max(fits, begin + 1), begin + most_steps, run.steps)
        yield _Block(slice(begin, end), slice(int(run.offsets[begin]), int(run.offsets[end])))
        begin = end


class _Sequences:
    """Routing of the requests that are running; a sequence is dropped after its request's last step."""

    def __init__(self, run: _Run, routing: Routing, anatomy: Anatomy) -> None:
        self._run, self._routing, self._anatomy = run, routing, anatomy
        self._held: dict[int, np.ndarray] = {}
        self._last = np.zeros(len(run.sequences), dtype=np.int64)
        np.maximum.at(self._last, run.request, np.arange(len(run.request)))
        self._limits = np.array([anatomy.layer_kinds[layer].experts for layer in anatomy.moe_layers])
        ends = np.zeros(len(run.sequences), dtype=np.int64)
        np.maximum.at(ends, run.request, run.first + run.tokens)
        self._ends = ends

    def rows(self, entries: slice) -> tuple[np.ndarray, np.ndarray]:
        """Expert ids of the block's tokens, and the row of each entry's first token in them."""
        run = self._run
        request, first = run.request[entries], run.first[entries]
        order = np.argsort(request, kind="stable")
        starts = np.flatnonzero(np.diff(request[order], prepend=-1))
        low = np.minimum.reduceat(first[order], starts)
        high = np.maximum.reduceat((first + run.tokens[entries])[order], starts)
        names = request[order][starts]
        parts = [self._sequence(int(n))[a:b] for n, a, b in zip(names, low, high, strict=True)]
        at = np.concatenate(([0], np.cumsum(high - low)[:-1]))
        group = np.searchsorted(names, request)
        for name in names[self._last[names] < entries.stop]:
            self._held.pop(int(name), None)
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)), at[group] + first - low[group]

    def _sequence(self, request: int) -> np.ndarray:
        found = self._held.get(request)
        if found is None:
            name = self._run.sequences[request]
            # A copy, so that holding one sequence does not hold the row group that it came in.
            found = np.array(self._routing.experts(name))
            self._check(found, name, int(self._ends[request]))
            self._held[request] = found
        return found

    def _check(self, ids: np.ndarray, name: str, end: int) -> None:
        where, anatomy = f"{self._run.where}, sequence {name[:12]}", self._anatomy
        expected = (len(anatomy.moe_layers), anatomy.top_k)
        if ids.ndim != 3 or ids.shape[1:] != expected:
            raise MoecapError(
                f"{where}: its routing has shape {ids.shape}; {anatomy.model} needs (tokens, {expected[0]} MoE layers, "
                f"top-{expected[1]}). It was traced with another model."
            )
        if len(ids) < end:
            raise MoecapError(
                f"{where}: its routing covers {len(ids)} tokens, the schedule computed {end}. Replay the sequences of "
                "this run again."
            )
        if not ids.size:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or (high >= self._limits.min() and (ids.max(axis=(0, 2)) >= self._limits).any()):
            raise MoecapError(
                f"{where}: expert ids {low} to {high}; {anatomy.model} has experts 0 to "
                f"{int(self._limits.min()) - 1}. It was traced with another model."
            )


def _check_routing(routing: Routing | None, anatomy: Anatomy) -> None:
    for kind in anatomy.kinds:
        if kind.experts and not 0 < kind.top_k <= kind.experts:
            raise MoecapError(
                f"{anatomy.model}: top_k is {kind.top_k} of {kind.experts} experts; allowed are 1 to {kind.experts}."
            )
    if any(kind.stack == "encoder" for kind in anatomy.kinds):
        raise MoecapError(
            f"{anatomy.model} has an encoder, which runs once per request and is no part of a decode step; a step "
            "table does not represent that. Its anatomy can be counted, its utilization cannot."
        )
    if not anatomy.moe_layers:
        return
    if routing is None:
        raise MoecapError(f"{anatomy.model} has {len(anatomy.moe_layers)} MoE layers: their routing is needed.")
    layers = getattr(routing, "layers", None)
    if layers is not None and not getattr(routing, "empty", False) and tuple(layers) != anatomy.moe_layers:
        raise MoecapError(
            f"The routing has MoE layers {list(layers)}, {anatomy.model} has {list(anatomy.moe_layers)}: it was traced "
            "with another model. The file was left as it is; delete it to have the sequences replayed."
        )


def points_of(table: pa.Table) -> Iterator[tuple[tuple[str, int, int], pa.Table]]:
    """(dataset, batch size, repeat) and the rows of that point, in order of first appearance."""
    if not table.num_rows:
        return
    columns = [table.column(name).combine_chunks() for name in POINT]
    codes = [pc.dictionary_encode(c.cast(pa.string()) if i == 0 else c) for i, c in enumerate(columns)]
    code = np.zeros(table.num_rows, dtype=np.int64)
    for column in codes:
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        code = code * (len(column.dictionary) + 1) + column.indices.to_numpy(zero_copy_only=False)
    changes = np.flatnonzero(np.diff(code)) + 1
    if len(changes) + 1 == len(np.unique(code)):  # every point lies in one piece: slices, no copies
        bounds = [0, *changes.tolist(), table.num_rows]
        pieces = [table.slice(a, b - a) for a, b in pairwise(bounds)]
    else:
        _, first = np.unique(code, return_index=True)
        pieces = [table.filter(pa.array(code == code[at])) for at in np.sort(first)]
    for piece in pieces:
        yield tuple(piece.column(name)[0].as_py() for name in POINT), piece


def _check_file(path: str | os.PathLike[str], columns: Iterable[str]) -> None:
    """Raise unless ``path`` is a Parquet file with a readable footer and these columns."""
    try:
        names = pq.read_schema(path).names
    except FileNotFoundError as error:
        raise MoecapError(f"{path} does not exist.") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _broken(path, error) from error
    missing = [c for c in columns if c not in names]
    if missing:
        raise MoecapError(f"{path} is no step table: it has no column {', '.join(missing)}; it has {', '.join(names)}.")


def _broken(path: str | os.PathLike[str], error: Exception) -> MoecapError:
    return MoecapError(
        f"{path} is not a complete Parquet file ({str(error).splitlines()[0]}). It was left as it is; delete it to "
        "have it made again."
    )


def _require_columns(table: pa.Table, columns: Iterable[str], what: str) -> None:
    missing = [c for c in columns if c not in table.schema.names]
    if missing:
        raise MoecapError(f"{what} has no column {', '.join(missing)}; it has {', '.join(table.schema.names)}.")
