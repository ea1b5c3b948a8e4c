"""Bytes and FLOP of every step of a step table, per phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.errors import MoecapError
from moecap.metrics.steps import points_of
from moecap.metrics.utilization import (
    complete_bytes,
    complete_flops,
    printed_activated_bytes,
    printed_flops_per_token,
    printed_kv_bytes,
    printed_model_bytes,
    printed_sparse_flops_per_token,
)

if TYPE_CHECKING:
    from moecap.model.structure import Anatomy


PHASES = ("decode", "prefill")
BYTES = ("mbu", "s_mbu", "mbu_complete", "s_mbu_complete")
FLOPS = ("mfu", "s_mfu", "mfu_complete", "s_mfu_complete")
AMOUNTS = ("steps", "time_s", "tokens", *BYTES, *FLOPS, "kv", "unique_experts")
CHUNK = 1 << 16


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


def lists(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A column of lists of numbers: all values, and where each row's begin and how many they are."""
    column = table.column(name).combine_chunks()
    count = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.flatten().to_numpy(zero_copy_only=False), np.cumsum(count) - count, count


def _matrix(table: pa.Table, name: str, width: int) -> np.ndarray:
    """A column of lists of ``width`` numbers as an array (rows, width)."""
    flat, _, count = lists(table, name)
    if (count != width).any():
        raise MoecapError(
            f"The step table's {name} have {count[count != width][0]} entries per step; the model's anatomy asks for "
            f"{width}. The step table belongs to another model."
        )
    return flat.reshape(table.num_rows, width)
