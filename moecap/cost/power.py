"""Power of a deployment: what was measured of it, the rest estimated."""

from __future__ import annotations

from dataclasses import dataclass

from moecap.hardware.systems import Power


@dataclass(frozen=True)
class Draw:
    """Power of a deployment and where it comes from."""

    power_w: float | None
    energy_source: str | None
    covers: str
    gpu_w: float | None
    status: str
    low_w: float | None = None
    high_w: float | None = None


def deployment_power(
    estimate: Power, measured_w: float | None = None, source: str | None = None, kind: str = "gpu"
) -> Draw:
    """Power of the whole deployment: measured where it was, the rest of it estimated, and said so.

    NVML counts the GPUs alone, so the host's estimate is added to it (``nvml + estimated host``); RAPL counts
    processors and memory, which of a system without GPUs is the whole.
    """
    host_w = sum(w for name, w in estimate.components.items() if name != "gpu" and w is not None)
    gpu_w = estimate.components.get("gpu")
    if measured_w is None:
        return Draw(
            estimate.total_w,
            "estimated" if estimate.total_w is not None else None,
            estimate.covers,
            gpu_w,
            estimate.status,
        )
    source = source or "given"
    if source == "nvml":
        if host_w:
            return Draw(measured_w + host_w, "nvml + estimated host", estimate.covers, measured_w, estimate.status)
        return Draw(measured_w, "nvml", "gpu", measured_w, "verified")
    if source == "rapl" and kind == "gpu" and gpu_w is not None:
        return Draw(measured_w + gpu_w, "rapl + estimated gpu", "gpu, cpu, dram", gpu_w, estimate.status)
    if source == "estimated":
        return Draw(measured_w, "estimated", estimate.covers, gpu_w, estimate.status)
    if source == "given":  # how much of it the GPUs draw is not known
        return Draw(measured_w, source, "everything", None, "assumption")
    return Draw(measured_w, source, "cpu, dram", None, "verified")
