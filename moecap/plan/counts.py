"""Bytes and FLOP of a decode step and of a prefill, and the time that a roofline makes of them.

Expected distinct experts of ``n`` tokens under uniform routing are ``E (1 − (1 − k/E)^n)``; a routing profile (how
often each expert is used) gives ``Σ 1 − (1 − p_e)^n``, which is less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecap.errors import MoecapError
from moecap.metrics.routing_analysis import expected_unique
from moecap.metrics.utilization import (
    complete_bytes,
    complete_flops,
    moe_kinds,
    printed_activated_bytes,
    printed_kv_bytes,
    printed_model_bytes,
)
from moecap.model.reads import entries_cached, entries_read, per_cache
from moecap.model.reads import pairs as causal_pairs
from moecap.model.structure import Anatomy, Cache
from moecap.plan.target import Target, Workload

ACTIVATION_BYTES = 2


def expected_unique_experts(
    anatomy: Anatomy, tokens: np.ndarray, profile: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Expected distinct experts that ``tokens`` tokens reach, shape (len(tokens), MoE layers).

    Args:
        tokens: how many tokens are routed together, shape (n,).
        profile: per MoE layer the probability that a token uses each expert, shape (experts,), summing to top-k; None:
            uniform routing, the closed form ``E (1 − (1 − k/E)^n)``, which no other routing exceeds.
    """
    tokens = np.asarray(tokens, dtype=np.float64)[:, None]
    kinds = moe_kinds(anatomy)
    if profile is None:
        return expected_unique(tokens, np.array([k.experts for k in kinds]), np.array([k.top_k for k in kinds]))
    if len(profile) != len(kinds):
        raise MoecapError(f"The routing profile has {len(profile)} layers, {anatomy.model} {len(kinds)} MoE layers.")
    columns = [(1.0 - (1.0 - np.clip(p, 0.0, 1.0)) ** tokens).sum(axis=1) for p in profile]
    return np.stack(columns, axis=1) if columns else np.zeros((len(tokens), 0))


def routing_profile(analysis: Iterable[Mapping[str, Any]]) -> list[np.ndarray] | None:
    """The routing profile in a routing analysis: per MoE layer the share of tokens that chose each expert.

    Args:
        analysis: rows of :data:`moecap.metrics.routing_analysis.ANALYSIS_SCHEMA`; all datasets together, by their
        tokens.

    Returns:
        Arrays of shape (experts,), in the order of the layers; None where the analysis has none.
    """
    chosen: dict[int, dict[int, float]] = {}
    tokens: dict[int, dict[str, float]] = {}
    for row in analysis:
        if row["table"] == "expert":
            layer = chosen.setdefault(row["layer"], {})
            layer[row["expert"]] = layer.get(row["expert"], 0.0) + row["activations"]
            tokens.setdefault(row["layer"], {})[row["dataset"]] = row["tokens"]
    if not chosen:
        return None
    return [
        np.array([n for _, n in sorted(experts.items())]) / sum(tokens[layer].values())
        for layer, experts in sorted(chosen.items())
    ]


def _read_by_one(anatomy: Anatomy, context: float) -> np.ndarray:
    """Entries of each cache that one request's next token reads at a context, shape (caches,)."""
    return per_cache(anatomy, lambda cache: entries_read(cache, context - 1, 1))


def kv_copies(cache: Cache, devices: int) -> float:
    """How often a cache is held over the devices: copied where there are fewer KV heads than devices."""
    return max(1.0, devices / cache.heads) if cache.heads else 1.0


def _copied(anatomy: Anatomy, entries: np.ndarray, devices: int) -> np.ndarray:
    """Entries scaled by the copies of each cache, so that the bytes come out as all devices together read them."""
    return entries * per_cache(anatomy, lambda cache: kv_copies(cache, devices))


@dataclass(frozen=True)
class Steps:
    """Bytes and FLOP of a decode step and of a prefill, per batch size; arrays of shape (batch sizes,)."""

    batch: np.ndarray
    decode_bytes: np.ndarray
    decode_dense_bytes: np.ndarray
    decode_flops: np.ndarray
    prefill_bytes: np.ndarray
    prefill_flops: np.ndarray
    printed_bytes: np.ndarray
    printed_dense_bytes: np.ndarray
    kv_bytes: np.ndarray
    request_bytes: float
    unique_experts: np.ndarray


def steps(
    anatomy: Anatomy,
    batch_sizes: Sequence[int],
    workload: Workload,
    devices: int = 1,
    profile: Sequence[np.ndarray] | None = None,
) -> Steps:
    """Count a decode step in the middle of the output, and the prefill of the whole batch."""
    batch = np.asarray(batch_sizes, dtype=np.float64)
    if batch.size == 0 or (batch < 1).any():
        raise MoecapError(f"Batch sizes must be at least 1; given: {list(batch_sizes)}.")
    middle = workload.prompt_tokens + workload.output_tokens / 2
    context = _read_by_one(anatomy, middle)
    copied = batch[:, None] * _copied(anatomy, context, devices)
    unique = expected_unique_experts(anatomy, batch, profile)
    given = {"tokens": batch, "requests": batch, "context_tokens": copied}
    read = sum(complete_bytes(anatomy, **given, unique_experts=unique).values())
    dense = sum(complete_bytes(anatomy, **given).values())
    flops = sum(
        complete_flops(anatomy, tokens=batch, requests=batch, attention_pairs=batch[:, None] * context).values()
    )

    prompt = batch * workload.prompt_tokens
    cached = per_cache(anatomy, lambda cache: entries_read(cache, 0, workload.prompt_tokens))
    pairs = per_cache(anatomy, lambda cache: causal_pairs(cache, 0, workload.prompt_tokens))
    prefill_read = sum(
        complete_bytes(
            anatomy,
            tokens=prompt,
            requests=batch,
            context_tokens=batch[:, None] * _copied(anatomy, cached, devices),
            unique_experts=expected_unique_experts(anatomy, prompt, profile),
        ).values()
    )
    prefill_flops = sum(
        complete_flops(anatomy, tokens=prompt, requests=batch, attention_pairs=batch[:, None] * pairs).values()
    )
    longest = workload.prompt_tokens + workload.output_tokens
    kept = _copied(anatomy, per_cache(anatomy, lambda cache: entries_cached(cache, longest)), devices)
    kv = np.asarray(printed_kv_bytes(anatomy, batch[:, None] * context))
    return Steps(
        batch=batch,
        decode_bytes=np.asarray(read),
        decode_dense_bytes=np.asarray(dense),
        decode_flops=np.asarray(flops),
        prefill_bytes=np.asarray(prefill_read),
        prefill_flops=np.asarray(prefill_flops),
        printed_bytes=np.asarray(printed_activated_bytes(anatomy, unique)) + kv,
        printed_dense_bytes=printed_model_bytes(anatomy) + kv,
        kv_bytes=kv,
        request_bytes=float(printed_kv_bytes(anatomy, kept)) + anatomy.state_bytes,
        unique_experts=unique.mean(axis=1) if unique.shape[1] else np.zeros(len(batch)),
    )


def roofline_s(read_bytes: np.ndarray, flops: np.ndarray, target: Target) -> np.ndarray:
    """The longer of reading and computing, over all devices together, in s."""
    compute = 0.0 if target.flops is None else flops / (target.devices * target.flops)
    return np.maximum(read_bytes / (target.devices * target.bytes_per_s), compute)


def links_s(anatomy: Anatomy, tokens: np.ndarray, target: Target) -> np.ndarray:
    """Time of tensor parallelism's two all-reduces per layer, as a ring over the links; 0 where no link is known."""
    if target.devices == 1 or not target.link_bytes_per_s:
        return np.zeros(len(tokens))
    message = tokens * anatomy.hidden_size * ACTIVATION_BYTES
    return 2 * anatomy.layers * 2 * (target.devices - 1) / target.devices * message / target.link_bytes_per_s


def required_bytes_per_s(
    anatomy: Anatomy, tpot_s: float, batch_size: int = 1, context: int = 0, dense: bool = False
) -> float:
    """Bandwidth that a TPOT asks for (§4.4): by S-MBU's count (eq. 3), or with ``dense`` by MBU's (eq. 1).

    Mixtral-8x22B in bf16 at 100 ms and batch 1: 2.8 TB/s by MBU, 0.78 TB/s by S-MBU with the paper's round figures.
    """
    read = _counted_bytes(anatomy, np.array([float(batch_size)]), context, dense)
    return float(read[0] / tpot_s)


def _counted_bytes(anatomy: Anatomy, batch: np.ndarray, context: float, dense: bool) -> np.ndarray:
    kv = np.asarray(printed_kv_bytes(anatomy, batch[:, None] * _read_by_one(anatomy, context)))
    if dense:
        return printed_model_bytes(anatomy) + kv
    return np.asarray(printed_activated_bytes(anatomy, expected_unique_experts(anatomy, batch))) + kv
