"""Decoding with a part of the experts in the host's memory or on SSDs: what the tiers allow at most.

A step reads the distinct experts of its tokens, wherever they lie. Those on a slower tier are read there (and
multiplied there, as KTransformers does, or moved over PCIe, as vLLM's offload does); either way the tier's bandwidth
bounds the step:

    step ≥ max(bytes on the GPUs / their bandwidth, bytes in the tier / its bandwidth)

A placement that puts frequently used experts on the GPUs reads fewer from the tier; uniform use is assumed unless a
share says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moecap.errors import MoecapError
from moecap.hardware.catalogue import Hardware
from moecap.hardware.systems import Speeds
from moecap.model.structure import Anatomy
from moecap.plan.anatomies import anatomy_of
from moecap.plan.names import hardware_entry, known_names, model_entry, plain, precision_entry
from moecap.plan.points import OffloadPoint
from moecap.plan.target import Workload
from moecap.plan.terms import Parallel, terms


def step_bound_s(
    anatomy: Anatomy,
    speeds: Speeds,
    parallel: Parallel,
    concurrency: Sequence[float] | np.ndarray,
    workload: Workload,
    experts_on_gpu: float,
    tier_bytes_per_s: float,
) -> np.ndarray:
    """The least time of a decode step with that share of experts on the GPUs, in s, shape (concurrencies,).

    Args:
        tier_bytes_per_s: of the slower tier, all of it together: the host's memory where the processor multiplies, PCIe
            where weights are moved, the SSDs' where they lie there.

    Raises:
        MoecapError: a share outside 0 to 1, a bandwidth that is not positive.
    """
    if not 0 <= experts_on_gpu <= 1 or tier_bytes_per_s <= 0:
        raise MoecapError(
            f"Offload: {experts_on_gpu:g} of the experts on the GPUs, {tier_bytes_per_s:g} B/s of the tier; a share of "
            "0 to 1 and a positive bandwidth are needed."
        )
    roomy = Speeds(1e15, speeds.memory_bytes_per_s, speeds.peak_flops, speeds.link_bytes_per_s, speeds.pcie_bytes_per_s)
    found = terms(anatomy, roomy, parallel, concurrency, workload)
    experts = found.read_bytes - _without_experts(anatomy, roomy, parallel, concurrency, workload)
    away = experts * (1 - experts_on_gpu)
    here = (found.read_bytes - away) / parallel.devices / speeds.memory_bytes_per_s
    return np.maximum(here, away / tier_bytes_per_s)


def _without_experts(
    anatomy: Anatomy,
    speeds: Speeds,
    parallel: Parallel,
    concurrency: Sequence[float] | np.ndarray,
    workload: Workload,
) -> np.ndarray:
    none = [np.zeros(k.experts) for k in anatomy.layer_kinds if k.experts]
    return terms(anatomy, speeds, parallel, concurrency, workload, profile=none).read_bytes


@dataclass(frozen=True)
class Tier:
    """Where experts lie that are not on the devices: their bandwidth together, and which share is on the devices."""

    bytes_per_s: float
    experts_on_gpu: float

    def __post_init__(self) -> None:
        if not 0 <= self.experts_on_gpu <= 1 or not self.bytes_per_s > 0:
            raise MoecapError(
                f"Offload: {self.experts_on_gpu:g} of the experts on the GPUs, {self.bytes_per_s:g} B/s of the tier; a "
                "share of 0 to 1 and a positive bandwidth are needed."
            )

    @property
    def note(self) -> str:
        """What a row of a plan rests on."""
        return (
            f"{1 - self.experts_on_gpu:.0%} of the experts are read at {self.bytes_per_s / 1e9:,.4g} GB/s: a bound, "
            "which engines stay well below"
        )


def offloaded(
    figures: Mapping[str, np.ndarray],
    anatomy: Anatomy,
    speeds: Speeds,
    parallel: Parallel,
    workload: Workload,
    tier: Tier,
) -> dict[str, np.ndarray]:
    """A roofline's figures (:func:`moecap.plan.predict.predict`) with a part of the experts on a slower tier.

    The devices hold so much less; a step takes what :func:`step_bound_s` says, a prefill at least as long as reading
    the tier's experts once. Utilizations of the devices' bandwidth are null: they no longer bound the step.
    """
    batch = figures["batch_size"]
    tpot = step_bound_s(anatomy, speeds, parallel, batch, workload, tier.experts_on_gpu, tier.bytes_per_s)
    experts = sum(kind.count * kind.experts * kind.expert_bytes for kind in anatomy.kinds)
    away = experts * (1 - tier.experts_on_gpu)
    ttft = np.maximum(figures["ttft_s"], away / tier.bytes_per_s)
    needed = figures["needed_bytes"] - away
    request = (figures["needed_bytes"] - anatomy.weight_bytes) / batch
    room = np.maximum(figures["available_bytes"] - (anatomy.weight_bytes - away), 0.0)
    nothing = dict.fromkeys(("s_mbu", "s_mbu_complete", "mbu", "s_mfu"), np.full(len(batch), np.nan))
    return {
        **figures,
        **nothing,
        "tpot_s": tpot,
        "tpot_dense_s": np.maximum(tpot, away / tier.bytes_per_s),
        "ttft_s": ttft,
        "output_tokens_per_s": batch * workload.output_tokens / (ttft + (workload.output_tokens - 1) * tpot),
        "needed_bytes": needed,
        "fits": needed <= figures["available_bytes"],
        "largest_batch": np.floor(room / np.maximum(request, 1.0)),
    }


def processor_bytes_per_s(printed: str) -> float | None:
    """Memory bandwidth of the processors that a row names (``2x EPYC 9355``: both together); None: not known."""
    sockets = re.match(r"(\d+)x", printed)
    for name, facts in known_names()["processors"].items():
        if name in plain(printed):
            return float(facts["memory_bytes_per_s"]) * (int(sockets.group(1)) if sockets else 1)
    return None


def offload_report(
    points: Sequence[OffloadPoint], hardware: Hardware, catalogue: str | Path | None = None
) -> dict[str, Any]:
    """Measured decode rates against the tiers' bound; ``skipped``: reason → rows that could not be held against it.

    ``held`` counts the rows at or below their bound; ``reached`` is the median of measured over bound.
    """
    rows: list[dict[str, Any]] = []
    skipped: dict[str, int] = {}
    for point in points:
        try:
            rows.append(_held_against(point, hardware, catalogue))
        except MoecapError as error:
            skipped[str(error)] = skipped.get(str(error), 0) + 1
    reached = [row["measured_tokens_per_s"] / row["bound_tokens_per_s"] for row in rows]
    return {
        "points": len(rows),
        "held": sum(r <= 1 for r in reached),
        "reached": float(np.median(reached)) if reached else None,
        "rows": rows,
        "skipped": skipped,
    }


def _held_against(point: OffloadPoint, hardware: Hardware, catalogue: str | Path | None) -> dict[str, Any]:
    folder = str(catalogue) if catalogue is not None else None
    model, gpu = model_entry(point.model, folder), hardware_entry(point.hardware, hardware)
    precision = precision_entry(point.precision.split(" ")[0], model)
    bandwidth = processor_bytes_per_s(point.processor)
    if not model or not gpu or not precision or not bandwidth:
        raise MoecapError("the model, the GPU, the precision or the processor is not known")
    if point.concurrency is None or point.decode_tokens_per_s is None:
        raise MoecapError("it does not say how many requests there were")
    speeds = hardware.find(gpu).speeds
    if speeds is None:
        raise MoecapError(f"the speeds of {gpu} are not catalogued")
    prompt = point.prompt_tokens or 512
    bound = step_bound_s(
        anatomy_of(model, precision, folder),
        speeds,
        Parallel(tp=point.devices),
        [point.concurrency],
        Workload(round(prompt), 128),
        point.experts_on_gpu,
        bandwidth,
    )
    return {
        "source": point.source,
        "model": model,
        "hardware": gpu,
        "processor": point.processor,
        "experts_on_gpu": point.experts_on_gpu,
        "measured_tokens_per_s": point.decode_tokens_per_s,
        "bound_tokens_per_s": float(point.concurrency / bound[0]),
    }
