"""Metrics of a deployment: latency, throughput and utilization per dataset × batch size, with intervals.

Definitions (all times are of the request's or the engine's own clock):

- *TTFT*, time to first token: ``first_token_s - arrival_s`` of a request, queueing included; mean over requests.
- *TPOT*, time per output token: ``(finished_s - first_token_s) / (output tokens - 1)`` of a request with at least two
  output tokens; mean over requests.
- *ITL*, inter-token latency: the time between two tokens of one request; mean over all such gaps.
- *T_token* of equations (2), (4) and (7): generated tokens over wall time (``output_tokens_per_s``); the rate that
  counts prompt tokens too is ``total_tokens_per_s``.
- Utilizations come from the step table: bytes and FLOP of all steps over the time of all steps (never a mean of the
  steps' ratios), decode and prefill apart. Within a phase T_token is that phase's tokens over that phase's time. The
  time, bytes and FLOP of a step that computed both are split in proportion to the tokens; ``mixed_step_share`` says how
  many such steps there were.

Intervals are 95%. Latencies and utilizations: a bootstrap over repeats and, within a repeat, over requests or over
blocks of consecutive steps (steps are autocorrelated), widened by √(R/(R-1)) because R repeats understate how much
repeats vary. Rates: Student's t over the repeats' logarithms; null with a single repeat.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.columns import performance
from moecap.columns.base import schema
from moecap.columns.cost import ENERGY
from moecap.columns.deployment import DEPLOYMENT, POINT, PROVENANCE, STATUS
from moecap.columns.performance import PERFORMANCE, UTILIZATION
from moecap.errors import MoecapError
from moecap.metrics.utilization import (
    complete_bytes,
    complete_flops,
    peak_flops_of,
    printed_activated_bytes,
    printed_flops_per_token,
    printed_kv_bytes,
    printed_model_bytes,
    printed_sparse_flops_per_token,
    split_by_tier,
)
from moecap.provenance import digest

if TYPE_CHECKING:
    from moecap.model.structure import Anatomy

log = logging.getLogger(__name__)

PHASES = ("decode", "prefill")
BYTES = ("mbu", "s_mbu", "mbu_complete", "s_mbu_complete")
FLOPS = ("mfu", "s_mfu", "mfu_complete", "s_mfu_complete")
TIERS = ("hbm", "pcie", "dram", "ssd")
AMOUNTS = ("steps", "time_s", "tokens", *BYTES, *FLOPS, "kv", "unique_experts")
DRAWS = 1000
CHUNK = 1 << 16

# Student's t, two-sided 95%, for 1 to 30 degrees of freedom.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


METRICS_SCHEMA = schema(
    [
        "deployment dataset batch_size status workload repeats disturbed_repeats",
        "external_cpu_share cpu_steal_share other_gpu_processes",
        "requests prompt_tokens generated_tokens wall_s ttft_s± tpot_s± itl_s±",
        "ttft_p50_s ttft_p99_s itl_p50_s itl_p99_s output_tokens_per_s± total_tokens_per_s±",
        "steps decode_steps prefill_steps mixed_steps mixed_step_share step_time_share",
        "cached_tokens preempted_tokens recomputed_tokens",
        *(
            name
            for phase in PHASES
            for name in (
                *(f"{phase}_{utilization}±" for utilization in (*BYTES, *FLOPS)),
                *(f"{phase}_step_s", f"{phase}_tokens_per_s"),
            )
        ),
        "mfu s_mfu mbu_over_s_mbu± utilization_above_one utilizations_above_one",
        "peak_bytes_per_s peak_flops compute_dtype peak_source layers moe_layers weight_bytes",
        "device_weight_bytes offloaded_weight_bytes moved_bytes_per_step",
        *(f"{phase}_{name}_bytes" for phase in PHASES for name in (*BYTES, "kv")),
        "unique_experts decode_component_bytes decode_tiers",
        *(f"decode_{tier}_utilization" for tier in TIERS),
        "energy_j power_w± energy_source joules_per_token",
        "engine engine_version libraries hardware_fingerprint seed start_unix_s",
    ],
    *(DEPLOYMENT, POINT, STATUS, PERFORMANCE, UTILIZATION, performance.BYTES, ENERGY, PROVENANCE),
)


# ---------------------------------------------------------------- peaks


@dataclass(frozen=True)
class Peaks:
    """What utilizations are relative to, over all devices.

    Attributes:
        bytes_per_s: peak memory bandwidth.
        flops: dense peak of ``compute_dtype``; None where none is known (MFU and S-MFU are then null).
        tiers: bandwidth of each memory tier (``hbm``, ``dram``, ``pcie``, ``ssd``), where weights are offloaded.
        device: the tier of the devices' own memory: ``hbm``; ``dram`` where the device is the CPU.
    """

    bytes_per_s: float
    flops: float | None
    compute_dtype: str = "bf16"
    source: str = "measured"
    tiers: Mapping[str, float | None] = field(default_factory=dict)
    device: str = "hbm"


def peaks_of(
    machine: Mapping[str, Any],
    compute_dtype: str,
    devices: int = 1,
    catalogue: Mapping[str, Any] | None = None,
    tiers: Mapping[str, float | None] | None = None,
    device: str = "hbm",
) -> Peaks:
    """The peaks of ``devices`` devices: the data sheet's where the catalogue has them, else the calibrated machine's.

    Args:
        machine: what calibration wrote: ``read_bandwidth_bytes_per_s``, ``peak_flops`` {dtype: FLOP/s}.
        compute_dtype: the type that the GEMMs run in (``bf16`` for W4A16, ``int8`` for W8A8).
        devices: how many devices hold the model; the machine's figures are of one.
        catalogue: of one device: ``bytes_per_s`` and ``flops`` {dtype: dense FLOP/s or null}, and optionally their
            weakest ``status``, which the source then says; None: use ``machine``.
        tiers: bandwidths of memory tiers, passed on.
        device: the tier of the devices' own memory, whose bandwidth is the peak where ``tiers`` does not say.

    Raises:
        MoecapError: no bandwidth, or one that is not positive. A missing peak of ``compute_dtype`` is no error: it is
            logged, and the utilizations that need it are null.
    """
    if catalogue is not None:
        bandwidth, flops = catalogue.get("bytes_per_s"), catalogue.get("flops") or {}
        source = f"catalogue ({catalogue['status']})" if catalogue.get("status") else "catalogue"
    else:
        bandwidth, flops = machine.get("read_bandwidth_bytes_per_s"), machine.get("peak_flops") or {}
        source = "measured"
    name = machine.get("hardware") or "the hardware"
    if not bandwidth or not bandwidth > 0:
        raise MoecapError(
            f"The peak memory bandwidth of {name} is {bandwidth!r}; a positive figure is needed. Calibrate the "
            "machine, or add the bandwidth with its source to its hardware catalogue entry."
        )
    try:
        peak: float | None = devices * peak_flops_of(flops, compute_dtype, str(name))
    except MoecapError as error:
        log.warning("MFU and S-MFU are left empty: %s", error)
        peak = None
    bandwidth = devices * float(bandwidth)
    known = {**tiers, device: tiers.get(device) or bandwidth} if tiers else {}
    return Peaks(bandwidth, peak, compute_dtype, source, known, device)


def replication_of(anatomy: Anatomy, tensor_parallel: int = 1) -> dict[str, float]:
    """How many copies of each component the ranks of a tensor-parallel group read together in a step.

    What is split over ranks is read once; KV of fewer heads than ranks, a compressed KV, routers and norms are kept,
    and read, more than once. (Pipeline stages hold different layers; expert parallelism places whole experts: once.)
    """
    from moecap.model.parallel import per_device

    if tensor_parallel == 1:
        return {}
    ranks = per_device(anatomy, tp=tensor_parallel).kinds
    names = {
        "attention": "attention_bytes",
        "shared_experts": "shared_bytes",
        "dense_mlp": "dense_mlp_bytes",
        "router": "router_bytes",
        "norms": "norm_bytes",
        "kv": "kv_bytes_per_token",
        "state": "state_bytes",
    }
    copies = {}
    for component, name in names.items():
        once = sum(kind.count * getattr(kind, name) for kind in anatomy.kinds)
        together = tensor_parallel * sum(kind.count * getattr(kind, name) for kind in ranks)
        if once:
            copies[component] = together / once
    return copies


# ---------------------------------------------------------------- from steps to amounts


@dataclass
class Amounts:
    """What the steps of one run (one repeat) moved and computed, per phase.

    Attributes:
        phases: phase → array (steps of the phase in order, ``AMOUNTS``), each weighted by the phase's share of tokens.
        components: phase → component → bytes in all steps, complete count, weighted alike.
        counts: column of the step table → its sum, and numbers of steps.
    """

    phases: dict[str, np.ndarray]
    components: dict[str, dict[str, float]]
    counts: dict[str, float]


def step_amounts(
    steps: pa.Table, anatomy: Anatomy, replication: Mapping[str, float] | None = None
) -> dict[tuple[str, int, int], Amounts]:
    """Bytes and FLOP of every step of a step table, by point (dataset, batch size, repeat).

    Args:
        steps: rows of :data:`moecap.metrics.steps.STEP_SCHEMA`.
        anatomy: the model's sizes.
        replication: component → copies that are read over all devices (KV heads or routers that tensor parallelism
            replicates); 1 where nothing is said. Complete counts only.
    """
    from moecap.metrics.steps import points_of

    return {key: _amounts(part, anatomy, replication or {}) for key, part in points_of(steps)}


def _amounts(table: pa.Table, anatomy: Anatomy, replication: Mapping[str, float]) -> Amounts:
    if (np.diff(table.column("step").to_numpy()) <= 0).any():
        table = table.sort_by("step")
    chunks = [_chunk_amounts(table.slice(at, CHUNK), anatomy, replication) for at in range(0, table.num_rows, CHUNK)]
    phases = {phase: np.concatenate([c[0][phase] for c in chunks]) for phase in PHASES}
    components: dict[str, dict[str, float]] = {phase: {} for phase in PHASES}
    for _, part in chunks:
        for phase in PHASES:
            for name, value in part[phase].items():
                components[phase][name] = components[phase].get(name, 0.0) + value
    prefill, decode = table.column("prefill_tokens").to_numpy(), table.column("decode_tokens").to_numpy()
    counts = {
        "steps": table.num_rows,
        "prefill_steps": int((prefill > 0).sum()),
        "decode_steps": int((decode > 0).sum()),
        "mixed_steps": int(((prefill > 0) & (decode > 0)).sum()),
        "step_time_s": float(table.column("wall_s").to_numpy().sum()),
        **{
            name: int(table.column(name).to_numpy().sum(dtype=np.int64))
            for name in ("cached_tokens", "preempted_tokens", "recomputed_tokens")
        },
    }
    return Amounts(phases, components, counts)


def _chunk_amounts(
    table: pa.Table, anatomy: Anatomy, replication: Mapping[str, float]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    rows = table.num_rows
    unique = _matrix(table, "unique_experts", len(anatomy.moe_layers))
    context = _matrix(table, "context_tokens", len(anatomy.caches))
    pairs = _matrix(table, "attention_pairs", len(anatomy.caches))
    tokens_of = {phase: table.column(f"{phase}_tokens").to_numpy().astype(np.float64) for phase in PHASES}
    tokens = tokens_of["decode"] + tokens_of["prefill"]
    time_s = table.column("wall_s").to_numpy()
    if not (time_s > 0).all() or not (tokens > 0).all():
        at = int(np.flatnonzero(~((time_s > 0) & (tokens > 0)))[0])
        raise MoecapError(
            f"Step {table.column('step')[at]} of the step table computed {tokens[at]:.0f} tokens in {time_s[at]} s; "
            "both must be positive. Delete the step table to have it made again from the schedule."
        )
    requests = table.column("running_requests").to_numpy()

    kv = np.asarray(printed_kv_bytes(anatomy, context))
    read = complete_bytes(anatomy, tokens=tokens, requests=requests, context_tokens=context, unique_experts=unique)
    read = {name: value * replication.get(name, 1.0) for name, value in read.items()}
    every = np.array([anatomy.layer_kinds[i].experts for i in anatomy.moe_layers])
    dense = complete_bytes(anatomy, tokens=tokens[:1], requests=requests[:1], context_tokens=context[:1])
    dense_experts = dense["routed_experts"][0] * replication.get("routed_experts", 1.0)
    s_mbu_complete = sum(read.values())
    computed = complete_flops(anatomy, tokens=tokens, requests=requests, attention_pairs=pairs)
    s_mfu_complete = sum(computed.values())
    dense_flops = complete_flops(
        anatomy, tokens=tokens, requests=requests, attention_pairs=pairs, dense=True
    )["routed_experts"]  # fmt: skip
    columns = {
        "steps": np.ones(rows),
        "time_s": time_s,
        "tokens": tokens,
        "mbu": printed_model_bytes(anatomy) + kv,
        "s_mbu": printed_activated_bytes(anatomy, unique) + kv,
        "mbu_complete": s_mbu_complete - read["routed_experts"] + dense_experts,
        "s_mbu_complete": s_mbu_complete,
        "mfu": tokens * printed_flops_per_token(anatomy),
        "s_mfu": tokens * printed_sparse_flops_per_token(anatomy),
        "mfu_complete": s_mfu_complete - computed["routed_experts"] + dense_flops,
        "s_mfu_complete": s_mfu_complete,
        "kv": kv,
        "unique_experts": unique.mean(axis=1) if len(every) else np.zeros(rows),
    }
    values = np.stack([columns[name] for name in AMOUNTS], axis=1)
    phases, components = {}, {}
    for phase in PHASES:
        share = tokens_of[phase] / tokens
        phases[phase] = (values * share[:, None])[share > 0]
        components[phase] = {name: float(share @ np.broadcast_to(v, rows)) for name, v in read.items()}
    return phases, components


def _lists(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A column of lists of numbers: all values, and where each row's begin and how many they are."""
    column = table.column(name).combine_chunks()
    count = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.flatten().to_numpy(zero_copy_only=False), np.cumsum(count) - count, count


def _matrix(table: pa.Table, name: str, width: int) -> np.ndarray:
    """A column of lists of ``width`` numbers as an array (rows, width)."""
    flat, _, count = _lists(table, name)
    if (count != width).any():
        raise MoecapError(
            f"The step table's {name} have {count[count != width][0]} entries per step; the model's anatomy asks for "
            f"{width}. The step table belongs to another model."
        )
    return flat.reshape(table.num_rows, width)


# ---------------------------------------------------------------- the table


def metrics_table(
    points: pa.Table,
    requests: pa.Table,
    steps: pa.Table | Iterable[pa.Table],
    anatomy: Anatomy,
    peaks: Peaks,
    *,
    deployment: str | None = None,
    replication: Mapping[str, float] | None = None,
    placement: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> pa.Table:
    """One row per dataset × batch size, over all its repeats.

    Args:
        points: one row per dataset × batch size × repeat.
        requests: one row per request.
        steps: the step table, whole or in parts (all steps of a point in one part).
        anatomy: the model's sizes.
        peaks: what utilizations are relative to.
        deployment: written into the first column.
        replication: see :func:`step_amounts`.
        placement: component → {memory tier: share}, for offloaded weights
        (:func:`moecap.metrics.utilization.split_by_tier`). seed, draws: of the bootstrap.

    Returns:
        A table of ``METRICS_SCHEMA``; null where a quantity was not measured or does not exist (no decode tokens).

    Raises:
        MoecapError: a run without requests, a wall time that is not positive, steps of a point that is not there.
    """
    from moecap.metrics.steps import points_of

    amounts: dict[tuple[str, int, int], Amounts] = {}
    for part in [steps] if isinstance(steps, pa.Table) else steps:
        found = step_amounts(part, anatomy, replication)
        twice = sorted(set(found) & set(amounts))
        if twice:
            raise MoecapError(f"The steps of point {twice[0]} come in two parts; a point's steps belong together.")
        amounts.update(found)
    by_point = dict(points_of(requests))
    measured: dict[tuple[str, int, int], dict[str, Any]] = {}
    for key, part in points_of(points):
        if part.num_rows > 1:
            raise MoecapError(f"The table of points has {part.num_rows} rows for {key}; one is expected.")
        measured[key] = part.to_pylist()[0]
    for what, keys in (("steps", amounts), ("requests", by_point)):
        unknown = [key for key in keys if key not in measured]
        if unknown:
            raise MoecapError(
                f"There are {what} of dataset {unknown[0][0]!r}, batch size {unknown[0][1]}, repeat {unknown[0][2]}, "
                "but that point is not in the table of points; the files are of different runs."
            )
    groups: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
    for key in sorted(measured):
        groups.setdefault(key[:2], []).append(key)
    rows = []
    for (dataset, batch_size), keys in groups.items():
        rng = np.random.default_rng([seed, *dataset.encode(), batch_size])
        row: dict[str, Any] = {"deployment": deployment, "dataset": dataset, "batch_size": batch_size}
        row.update(_recorded([measured[key] for key in keys]))
        row.update(_rates([measured[key] for key in keys]))
        row.update(_latencies([by_point.get(key) for key in keys], rng, draws))
        row.update(_utilizations([amounts[key] for key in keys if key in amounts], peaks, row, anatomy, rng, draws))
        row.update(_kept([measured[key] for key in keys]))
        moved = row["moved_bytes_per_step"]
        row.update(_tiers([amounts[key] for key in keys if key in amounts], placement, peaks, moved))
        rows.append(row | _above_one(row))
    return pa.Table.from_pylist([{k: _plain(v) for k, v in row.items()} for row in rows], schema=METRICS_SCHEMA)


def _recorded(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the timed runs noted, and what adds up over them."""

    def same(name: str) -> Any:
        values = {p.get(name) for p in points}
        if len(values) > 1:
            log.warning("%s differs between repeats: %s", name, ", ".join(map(str, sorted(values, key=str))))
        return next(iter(values)) if len(values) == 1 else None

    hardware = same("hardware")
    return {
        "status": "estimated" if any(p.get("schedule_kind") == "estimated" for p in points) else "measured",
        "repeats": len(points),
        **_others(points),
        "requests": sum(p["requests"] for p in points),
        "prompt_tokens": sum(p["prompt_tokens"] for p in points),
        "generated_tokens": sum(p["generated_tokens"] for p in points),
        "wall_s": sum(p["wall_s"] for p in points),
        "hardware_fingerprint": digest(hardware) if hardware else None,
        "start_unix_s": min((p["start_unix_s"] for p in points if p.get("start_unix_s") is not None), default=None),
        **{name: same(name) for name in ("workload", "engine", "engine_version", "libraries", "seed", "energy_source")},
    }


def _others(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What others did on the machine while the repeats were timed; null where no repeat says."""
    known = [p["disturbed"] for p in points if p.get("disturbed") is not None]
    worst = ("external_cpu_share", "cpu_steal_share", "other_gpu_processes")
    return {
        "disturbed_repeats": sum(known) if known else None,
        **{name: max((p[name] for p in points if p.get(name) is not None), default=None) for name in worst},
    }


def _rates(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tokens over wall time and energy over wall time: sums over repeats, interval from the repeats."""
    for point in points:
        if not point["wall_s"] > 0:
            raise MoecapError(
                f"Dataset {point['dataset']!r}, batch size {point['batch_size']}, repeat {point['repeat']}: wall_s is "
                f"{point['wall_s']}; it must be positive. Measure the point again."
            )
    wall = np.array([p["wall_s"] for p in points])
    generated = np.array([p["generated_tokens"] for p in points], dtype=float)
    result = _rate("output_tokens_per_s", generated, wall)
    result |= _rate("total_tokens_per_s", generated + [p["prompt_tokens"] for p in points], wall)
    energy = [p.get("energy_j") for p in points]
    if all(e is not None for e in energy):
        result |= _rate("power_w", np.array(energy, dtype=float), wall)
        result["energy_j"] = float(np.sum(energy))
        result["joules_per_token"] = result["energy_j"] / generated.sum() if generated.sum() else None
    elif all(p.get("power_w") is not None for p in points):
        result |= _rate("power_w", np.array([p["power_w"] for p in points]) * wall, wall)
    return result


def _rate(name: str, amount: np.ndarray, time_s: np.ndarray) -> dict[str, Any]:
    """Sum over sum, and Student's t interval of the repeats' logarithms around it."""
    rate = float(amount.sum() / time_s.sum())
    result: dict[str, Any] = {name: rate}
    n = len(amount)
    if n > 1 and (amount > 0).all():
        spread = np.log(amount / time_s).std(ddof=1) / math.sqrt(n)
        factor = math.exp((T95[n - 2] if n - 2 < len(T95) else 1.96) * spread)
        result |= {f"{name}_low": rate / factor, f"{name}_high": rate * factor}
    return result


def _latencies(parts: Sequence[pa.Table | None], rng: np.random.Generator, draws: int) -> dict[str, Any]:
    """TTFT, TPOT and ITL with intervals; (sum, count) pairs per request are resampled."""
    names = ("ttft_s", "tpot_s", "itl_s")
    runs: dict[str, list[np.ndarray]] = {name: [] for name in names}
    gaps_of_all: list[np.ndarray] = []
    for part in parts:
        if part is None:
            continue
        arrival, first, finished = (
            part.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
            for name in ("arrival_s", "first_token_s", "finished_s")
        )
        tokens = pc.list_value_length(part.column("output_token_ids")).fill_null(0).to_numpy(zero_copy_only=False)
        times, begin, count = _lists(part, "token_times_s")
        end = begin + count
        gaps = np.diff(times)
        gaps[begin[(begin > 0) & (begin < len(times))] - 1] = np.nan  # from one request to the next
        gaps_of_all.append(gaps[~np.isnan(gaps)])
        spans = np.zeros(len(count))
        some = count > 1
        spans[some] = times[end[some] - 1] - times[begin[some]]
        pairs = {
            "ttft_s": (first - arrival, ~np.isnan(first - arrival), np.ones(len(count))),
            "tpot_s": ((finished - first) / np.maximum(tokens - 1, 1), (tokens > 1), np.ones(len(count))),
            "itl_s": (spans, some, count - 1.0),
        }
        for name, (value, valid, weight) in pairs.items():
            valid = valid & ~np.isnan(value)
            if (value[valid] < 0).any() or (gaps < 0).any():
                raise MoecapError(
                    f"A request's {name} is negative: its times are out of order (arrival, first token, last token). "
                    "Measure the point again."
                )
            if valid.any():
                runs[name].append(np.stack([value, weight], axis=1)[valid])
    result: dict[str, Any] = {}
    for name, arrays in runs.items():
        if arrays:
            totals = sum(a.sum(axis=0) for a in arrays)
            drawn = bootstrap_sums(arrays, rng, draws, block=lambda n: 1)
            result |= _with_interval(name, totals[0] / totals[1], drawn[:, 0] / drawn[:, 1], len(arrays))
    everything = {"ttft": [a[:, 0] for a in runs["ttft_s"]], "itl": gaps_of_all}
    for name, arrays in everything.items():
        values = np.concatenate(arrays) if arrays else np.empty(0)
        if len(values):
            result[f"{name}_p50_s"], result[f"{name}_p99_s"] = np.percentile(values, [50, 99])
    return result


def _utilizations(
    runs: Sequence[Amounts],
    peaks: Peaks,
    row: Mapping[str, Any],
    anatomy: Anatomy,
    rng: np.random.Generator,
    draws: int,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "peak_bytes_per_s": peaks.bytes_per_s,
        "peak_flops": peaks.flops,
        "compute_dtype": peaks.compute_dtype,
        "peak_source": peaks.source,
        "layers": anatomy.layers,
        "moe_layers": len(anatomy.moe_layers),
        "weight_bytes": float(anatomy.weight_bytes),
    }
    if peaks.flops is not None:
        per_token = {"mfu": printed_flops_per_token(anatomy), "s_mfu": printed_sparse_flops_per_token(anatomy)}
        result |= {name: row["output_tokens_per_s"] * flops / peaks.flops for name, flops in per_token.items()}
    if runs:
        counts = {name: sum(run.counts[name] for run in runs) for name in runs[0].counts}
        step_time = counts.pop("step_time_s")
        result |= counts
        result["mixed_step_share"] = counts["mixed_steps"] / counts["steps"]
        result["step_time_share"] = step_time / row["wall_s"] if len(runs) == row["repeats"] else None
    at = {name: index for index, name in enumerate(AMOUNTS)}
    for phase in PHASES:
        arrays = [run.phases[phase] for run in runs if len(run.phases[phase])]
        if not arrays:
            continue
        total = sum(a.sum(axis=0) for a in arrays)
        drawn = bootstrap_sums(arrays, rng, draws)
        for names, peak in ((BYTES, peaks.bytes_per_s), (FLOPS, peaks.flops)):
            for name in names if peak else ():
                ratio = drawn[:, at[name]] / drawn[:, at["time_s"]] / peak
                value = total[at[name]] / total[at["time_s"]] / peak
                result |= _with_interval(f"{phase}_{name}", value, ratio, len(arrays))
        steps = total[at["steps"]]
        result |= {f"{phase}_{name}_bytes": total[at[name]] / steps for name in (*BYTES, "kv")}
        result[f"{phase}_step_s"] = total[at["time_s"]] / steps
        # A phase's share of a mixed step's tokens is the phase's tokens: weighted tokens add up to them.
        result[f"{phase}_tokens_per_s"] = total[at["tokens"]] / total[at["time_s"]]
        if phase == "decode":
            value, ratio = total[at["mbu"]] / total[at["s_mbu"]], drawn[:, at["mbu"]] / drawn[:, at["s_mbu"]]
            result |= _with_interval("mbu_over_s_mbu", value, ratio, len(arrays))
            result["unique_experts"] = total[at["unique_experts"]] / steps if anatomy.moe_layers else None
            names = runs[0].components[phase]
            mean = {name: sum(run.components[phase][name] for run in runs) / steps for name in names}
            result["decode_component_bytes"] = [{"component": k, "bytes": v} for k, v in mean.items() if v]
    return result


def _kept(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the engine kept the weights and what it moved in every step, as it counted them; null where it did not."""

    def same(name: str) -> dict[str, int] | None:
        values = {point.get(name) for point in points}
        if len(values) > 1:
            raise MoecapError(f"`{name}` differs between the repeats of a point: {sorted(map(str, values))}.")
        value = values.pop()
        return json.loads(value) if value else None

    kept, moved = same("weights_by_tier"), same("moved_per_step")
    return {
        "device_weight_bytes": kept["device"] if kept else None,
        "offloaded_weight_bytes": sum(kept.values()) - kept["device"] if kept else None,
        "moved_bytes_per_step": sum(moved.values()) if moved else None,
    }


def _tiers(
    runs: Sequence[Amounts],
    placement: Mapping[str, Mapping[str, float]] | None,
    peaks: Peaks,
    moved: float | None = None,
) -> dict[str, Any]:
    """Decode bytes and utilization per memory tier, where weights are offloaded.

    Args:
        moved: bytes of offloaded weights that a step moves whatever it needs of them; None: only what it needs.
    """
    if not placement or not any(len(run.phases["decode"]) for run in runs):
        return {}
    total = sum(run.phases["decode"].sum(axis=0) for run in runs)
    steps, time_s = total[AMOUNTS.index("steps")], total[AMOUNTS.index("time_s")]
    names = runs[0].components["decode"]
    read = {name: sum(run.components["decode"][name] for run in runs) for name in names}
    tiers = []
    for tier, needed in split_by_tier(read, placement, peaks.device).items():
        amount = needed
        if moved is not None and tier != peaks.device:
            amount = moved * steps
        elif moved is not None and tier == "dram":  # what comes from storage is written here, then read
            amount = needed + moved * steps
        peak = peaks.tiers.get(tier)
        utilization = float(amount) / time_s / peak if peak else None
        tiers.append({"tier": tier, "bytes": float(amount) / steps, "utilization": utilization})
    return {"decode_tiers": tiers, **{f"decode_{t['tier']}_utilization": t["utilization"] for t in tiers}}


def _above_one(row: Mapping[str, Any]) -> dict[str, Any]:
    """Which utilizations of a row exceed 1: they are said, never clipped."""
    names = [f"{phase}_{name}" for phase in PHASES for name in (*BYTES, *FLOPS)]
    names += ["mfu", "s_mfu", *(f"decode_{tier}_utilization" for tier in TIERS)]
    over = [name for name in names if (row.get(name) or 0) > 1]
    if over:
        log.warning(
            "dataset %s, batch size %s: %s above 1: bytes, time or peak are wrong, or a cache holds the model",
            row["dataset"],
            row["batch_size"],
            ", ".join(over),
        )
    return {"utilization_above_one": bool(over), "utilizations_above_one": over}


# ---------------------------------------------------------------- intervals


def block_length(steps: int) -> int:
    """Steps per bootstrap block: the square root of their number, so that blocks outlast the autocorrelation.

    >>> [block_length(n) for n in (1, 48, 10_000)]
    [1, 7, 100]
    """
    return max(1, round(math.sqrt(steps)))


def bootstrap_sums(
    runs: Sequence[np.ndarray],
    rng: np.random.Generator,
    draws: int = DRAWS,
    block: Callable[[int], int] = block_length,
) -> np.ndarray:
    """Resampled column sums: repeats are drawn with replacement, and within each, circular blocks of rows.

    Args:
        runs: per repeat an array (rows, columns); rows in order of time.
        rng, draws: of the resampling.
        block: rows → rows per block.

    Returns:
        Shape (draws, columns). A drawn repeat is scaled to the number of rows that it has, so that blocks which do
        not divide it evenly do not change its weight.
    """
    result = np.zeros((draws, runs[0].shape[1]))
    chosen = rng.integers(len(runs), size=(draws, len(runs)))
    for index, rows in enumerate(runs):
        n = len(rows)
        length = min(block(n), n)
        count = -(-n // length)
        sums = np.zeros((n + length, rows.shape[1]))
        np.cumsum(np.concatenate([rows, rows[: length - 1]]), axis=0, out=sums[1:])
        draw = np.repeat(np.arange(draws), (chosen == index).sum(axis=1))
        for begin in range(0, len(draw), 256):
            part = draw[begin : begin + 256]
            start = rng.integers(n, size=(len(part), count))
            drawn = (sums[start + length] - sums[start]).sum(axis=1) * (n / (count * length))
            np.add.at(result, part, drawn)
    return result


def _with_interval(name: str, value: float, drawn: np.ndarray, repeats: int) -> dict[str, float]:
    widen = math.sqrt(repeats / (repeats - 1)) if repeats > 1 else 1.0
    low, high = value + widen * (np.percentile(drawn, [2.5, 97.5]) - value)
    # Nothing here can be negative, and rounding must not put the value outside its own interval.
    low, high = min(max(low, 0.0), value), max(high, value)
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
