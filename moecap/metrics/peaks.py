"""What utilizations are relative to: the peaks of all devices, and what their ranks read more than once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError
from moecap.metrics.utilization import (
    peak_flops_of,
)

if TYPE_CHECKING:
    from moecap.model.structure import Anatomy


log = logging.getLogger(__name__)


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
