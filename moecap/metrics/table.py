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

Intervals are 95% (:mod:`moecap.metrics.intervals`).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from moecap.columns import performance
from moecap.columns.base import schema
from moecap.columns.cost import ENERGY
from moecap.columns.deployment import DEPLOYMENT, POINT, PROVENANCE, STATUS
from moecap.columns.performance import PERFORMANCE, UTILIZATION
from moecap.errors import MoecapError
from moecap.metrics import online
from moecap.metrics.amounts import AMOUNTS, BYTES, FLOPS, PHASES, Amounts, step_amounts
from moecap.metrics.intervals import DRAWS, bootstrap_sums, rate, with_interval
from moecap.metrics.latency import LATENCIES, end_to_end, latencies, times_of
from moecap.metrics.peaks import Peaks
from moecap.metrics.steps import points_of
from moecap.metrics.utilization import (
    printed_flops_per_token,
    printed_sparse_flops_per_token,
    split_by_tier,
)
from moecap.provenance import digest

if TYPE_CHECKING:
    from moecap.model.structure import Anatomy


log = logging.getLogger(__name__)
TIERS = ("hbm", "pcie", "dram", "ssd")
METRICS_SCHEMA = schema(
    [
        "deployment dataset batch_size load concurrency request_rate status schedule workload",
        "repeats disturbed_repeats",
        "goodput_requests_per_s± window_s window_drift client_tokens_per_s saturates",
        "external_cpu_share cpu_steal_share other_gpu_processes",
        "requests prompt_tokens generated_tokens wall_s ttft_s± tpot_s± itl_s±",
        "e2e_s±",
        *(f"{name}_p{percent}" for name in LATENCIES for percent in performance.PERCENTILES),
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
    slo: Mapping[str, float] | None = None,
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
        (:func:`moecap.metrics.utilization.split_by_tier`).
        slo: limits (``ttft_s``, ``tpot_s``, ``e2e_s``) that a request has to hold to count into goodput.
        seed, draws: of the bootstrap.

    Returns:
        A table of ``METRICS_SCHEMA``; null where a quantity was not measured or does not exist (no decode tokens).

    Raises:
        MoecapError: a run without requests, a wall time that is not positive, steps of a point that is not there.
    """
    windows = online.windows_of(points)
    amounts: dict[tuple[str, int, int], Amounts] = {}
    for part in [steps] if isinstance(steps, pa.Table) else steps:
        found = step_amounts(online.steps_within(part, windows), anatomy, replication)
        twice = sorted(set(found) & set(amounts))
        if twice:
            raise MoecapError(f"The steps of point {twice[0]} come in two parts; a point's steps belong together.")
        amounts.update(found)
    by_point = {key: online.requests_within(part, windows.get(key)) for key, part in points_of(requests)}
    measured: dict[tuple[str, int, int], dict[str, Any]] = {}
    for key, part in points_of(points):
        if part.num_rows > 1:
            raise MoecapError(f"The table of points has {part.num_rows} rows for {key}; one is expected.")
        measured[key] = part.to_pylist()[0]
    for what, named in (("steps", amounts.keys()), ("requests", by_point.keys())):
        unknown = [key for key in named if key not in measured]
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
        row.update(online.columns([measured[key] for key in keys]))
        row.update(_goodput([measured[key] for key in keys], [by_point.get(key) for key in keys], slo))
        times = [times_of(by_point[key]) for key in keys if key in by_point]
        row.update(latencies(times, rng, draws))
        row.update(_utilizations([amounts[key] for key in keys if key in amounts], peaks, row, anatomy, rng, draws))
        row.update(end_to_end(times, rng, draws))
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
        "schedule": _schedule(points),
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


def _schedule(points: Sequence[Mapping[str, Any]]) -> str | None:
    """Of several repeats the weaker; None: none says."""
    kinds = {p["schedule_kind"] for p in points if p.get("schedule_kind")}
    return "estimated" if "estimated" in kinds else next(iter(kinds), None)


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
    result = rate("output_tokens_per_s", generated, wall)
    result |= rate("total_tokens_per_s", generated + [p["prompt_tokens"] for p in points], wall)
    energy = [p["energy_j"] for p in points if p.get("energy_j") is not None]
    if len(energy) == len(points):
        result |= rate("power_w", np.array(energy, dtype=float), wall)
        result["energy_j"] = float(np.sum(energy))
        result["joules_per_token"] = result["energy_j"] / generated.sum() if generated.sum() else None
    elif all(p.get("power_w") is not None for p in points):
        result |= rate("power_w", np.array([p["power_w"] for p in points]) * wall, wall)
    return result


def _goodput(
    points: Sequence[Mapping[str, Any]], parts: Sequence[pa.Table | None], slo: Mapping[str, float] | None
) -> dict[str, Any]:
    """Requests per second that hold every limit; null where none is given, and offline."""
    if not slo or any(part is None for part in parts) or not all(p.get("load") for p in points):
        return {}
    well = np.array([online.served_well(part, slo) for part in parts if part is not None], dtype=float)
    return rate("goodput_requests_per_s", well, np.array([p["wall_s"] for p in points]))


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
                result |= with_interval(f"{phase}_{name}", value, ratio, len(arrays))
        steps = total[at["steps"]]
        result |= {f"{phase}_{name}_bytes": total[at[name]] / steps for name in (*BYTES, "kv")}
        result[f"{phase}_step_s"] = total[at["time_s"]] / steps
        # A phase's share of a mixed step's tokens is the phase's tokens: weighted tokens add up to them.
        result[f"{phase}_tokens_per_s"] = total[at["tokens"]] / total[at["time_s"]]
        if phase == "decode":
            value, ratio = total[at["mbu"]] / total[at["s_mbu"]], drawn[:, at["mbu"]] / drawn[:, at["s_mbu"]]
            result |= with_interval("mbu_over_s_mbu", value, ratio, len(arrays))
            result["unique_experts"] = total[at["unique_experts"]] / steps if anatomy.moe_layers else None
            mean = {
                name: sum(run.components[phase][name] for run in runs) / steps for name in runs[0].components[phase]
            }
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


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
