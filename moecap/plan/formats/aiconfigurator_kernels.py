"""aiconfigurator's measured kernels (``moe_perf.parquet``, or the same as CSV): latency of a fused MoE op in ms."""

from __future__ import annotations

from collections.abc import Iterator

from moecap.plan.formats.file import File
from moecap.plan.points import KernelPoint, number, text, whole

NAME = "aiconfigurator kernel table"
_NEEDED = {"moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "latency"}


def sniff(file: File) -> bool:
    """Whether the table has its columns."""
    return file.columns >= _NEEDED


def read(file: File) -> Iterator[KernelPoint]:
    """One point per row with a latency above zero."""
    for line, row in enumerate(file.rows, 2):
        sizes = {key: whole(row, key) for key in ("num_tokens", "hidden_size", "inter_size", "num_experts", "topk")}
        latency = number(row, "latency", 1e-3)
        if None in sizes.values() or not latency:
            continue
        yield KernelPoint(
            source=f"{file.name}:{line}",
            format=NAME,
            hardware=text(row, "sys", "device") or "",
            dtype=text(row, "moe_dtype") or "",
            tokens=sizes["num_tokens"] or 0,
            hidden_size=sizes["hidden_size"] or 0,
            expert_width=sizes["inter_size"] or 0,
            experts=sizes["num_experts"] or 0,
            top_k=sizes["topk"] or 0,
            tp=whole(row, "moe_tp_size") or 1,
            ep=whole(row, "moe_ep_size") or 1,
            routing=text(row, "distribution") or "balanced",
            kernel=text(row, "kernel_source"),
            engine=(text(row, "framework") or "").lower() or None,
            engine_version=text(row, "version"),
            latency_s=latency,
            power_w=number(row, "power"),
        )
