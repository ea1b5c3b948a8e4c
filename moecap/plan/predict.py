"""Times, throughput, memory and utilizations of a deployment, from its counts and a calibration.

    step = slowdown × max(bytes / bandwidth, FLOP / peak) + links + overhead + per request × batch

Without a calibration, the result is what the hardware allows at most: an **upper bound**, and called so. The requests
of a batch start together, as in a timed run. Devices share a model by tensor parallelism; KV heads are copied where
there are fewer of them than devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moecap.metrics.utilization import printed_sparse_flops_per_token
from moecap.model.structure import Anatomy
from moecap.plan.counts import links_s, roofline_s, steps
from moecap.plan.target import USABLE_MEMORY, Target, Workload


@dataclass(frozen=True)
class Fit:
    """How a measured time exceeds the roofline: ``slowdown × roofline + overhead_s + per_request_s × batch``."""

    slowdown: float = 1.0
    overhead_s: float = 0.0
    per_request_s: float = 0.0
    spread: float = 0.0

    def time(self, roofline_s: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """The time that the fit predicts."""
        return self.slowdown * roofline_s + self.overhead_s + self.per_request_s * batch


@dataclass(frozen=True)
class Calibration:
    """Fits of decode steps and of prefills on one hardware; the default is the roofline itself."""

    decode: Fit = field(default_factory=Fit)
    prefill: Fit = field(default_factory=Fit)
    source: str = "none: the roofline itself, an upper bound of what the hardware allows"
    upper_bound: bool = True


UNCALIBRATED = Calibration()


def predict(
    anatomy: Anatomy,
    target: Target,
    batch_sizes: Sequence[int],
    workload: Workload,
    calibration: Calibration = UNCALIBRATED,
    profile: Sequence[np.ndarray] | None = None,
    usable_memory: float = USABLE_MEMORY,
) -> dict[str, np.ndarray]:
    """TPOT, TTFT, throughput, memory and utilizations per batch size; arrays of shape (batch sizes,).

    ``tpot_dense_s`` is the TPOT of somebody who thinks in MBU: every expert is read in every step.
    """
    counted = steps(anatomy, batch_sizes, workload, target.devices, profile)
    batch = counted.batch
    read, compute = counted.decode_bytes, counted.decode_flops
    prompt = batch * workload.prompt_tokens
    decode = roofline_s(read, compute, target) + links_s(anatomy, batch, target)
    dense = roofline_s(counted.decode_dense_bytes, compute, target) + links_s(anatomy, batch, target)
    prefill = roofline_s(counted.prefill_bytes, counted.prefill_flops, target) + links_s(anatomy, prompt, target)
    tpot = calibration.decode.time(decode, batch)
    ttft = calibration.prefill.time(prefill, batch)
    whole = ttft + (workload.output_tokens - 1) * tpot
    rate = batch * workload.output_tokens / whole
    bandwidth = target.devices * target.bytes_per_s
    needed = anatomy.weight_bytes + batch * counted.request_bytes
    available = usable_memory * target.devices * target.memory_bytes
    room = max(available - anatomy.weight_bytes, 0.0)
    largest = math.floor(room / counted.request_bytes) if counted.request_bytes else None
    flops = None if target.flops is None else target.devices * target.flops
    return {
        "batch_size": batch.astype(int),
        "tpot_s": tpot,
        "tpot_dense_s": calibration.decode.time(dense, batch),
        "ttft_s": ttft,
        "output_tokens_per_s": rate,
        "s_mbu": counted.printed_bytes / tpot / bandwidth,
        "s_mbu_complete": read / tpot / bandwidth,
        "mbu": counted.printed_dense_bytes / tpot / bandwidth,
        "s_mfu": np.full(len(batch), np.nan)
        if flops is None
        else batch / tpot * printed_sparse_flops_per_token(anatomy) / flops,
        "unique_experts": counted.unique_experts,
        "memory_bound": read / bandwidth >= (0.0 if flops is None else compute / flops),
        "needed_bytes": needed,
        "available_bytes": np.full(len(batch), available),
        "fits": needed <= available,
        "largest_batch": np.full(len(batch), np.nan if largest is None else float(largest)),
    }
