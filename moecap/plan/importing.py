"""Public measurements as rows of a CAP table: cost from our catalogue, S-MBU and S-MFU estimated from counts.

What the row measured (latencies, throughput, power) is taken as printed; throughput that is not printed follows from
the latencies of the concurrency. Utilizations are estimates: routing was not recorded, so the distinct experts of a
step are those of uniform routing at most, and :data:`SKEW` fewer at least. Accuracy is not in such files and stays
null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.cap.table import to_table
from moecap.cost.deployment import deployment_cost
from moecap.cost.settings import settings
from moecap.errors import MoecapError
from moecap.hardware.catalogue import Hardware
from moecap.metrics.utilization import printed_activated_bytes, printed_model_bytes, printed_sparse_flops_per_token
from moecap.plan.cases import Case
from moecap.plan.counts import expected_unique_experts
from moecap.plan.target import compute_dtype

#: Skewed routing reaches up to this share fewer distinct experts than uniform routing.
SKEW = 0.25
ORIGIN = "imported"

Row = dict[str, Any]


def import_rows(cases: Iterable[Case], hardware: Hardware, cost: Mapping[str, Any] | None = None) -> list[Row]:
    """One row per case; of rows of one deployment that share a batch size, the latest stays."""
    given = settings(cost or {"region": "us-average"}, hardware)
    found: dict[tuple[Any, ...], Row] = {}
    for case in cases:
        row = _row(case, hardware)
        rate = row["output_tokens_per_s"]
        try:
            money = deployment_cost(
                hardware.find(case.hardware), case.parallel.devices, rate, given,
                power_w=case.point.power_w, energy_source="given" if case.point.power_w else None,
            )  # fmt: skip
        except MoecapError as error:
            money = {"price_notes": str(error)}
        key = (row["deployment"], row["workload"], row["batch_size"])
        if key not in found or (case.point.date or "") >= (found[key].get("_date") or ""):
            found[key] = {**money, **row, "_date": case.point.date}
    return list(found.values())


def import_table(rows: Sequence[Row], provenance: Mapping[str, Any]) -> pa.Table:
    """Rows as a CAP table, every one marked as imported."""
    return to_table([{k: v for k, v in row.items() if not k.startswith("_")} for row in rows], provenance)


def _row(case: Case, hardware: Hardware) -> Row:
    point, parallel = case.point, case.parallel
    batch = round(float(case.terms.concurrency[0]))
    name = f"{case.model}_{case.precision}_{case.engine}_{case.hardware}-x{parallel.devices}_{parallel}"
    return {
        "deployment": f"imported_{name}",
        "model": case.model,
        "precision": case.precision,
        "engine": case.engine,
        "engine_version": point.engine_version,
        "hardware": case.hardware,
        "devices": parallel.devices,
        "tensor_parallel": parallel.tp,
        "data_parallel": parallel.dp,
        "expert_parallel": parallel.ep,
        "pipeline_parallel": parallel.pp,
        "dataset": "synthetic",
        "workload": f"{case.workload.prompt_tokens}/{case.workload.output_tokens}",
        "batch_size": batch,
        "concurrency": float(case.terms.concurrency[0]),
        "status": ORIGIN,
        "origin": ORIGIN,
        "source": point.source,
        "ttft_s": point.ttft_s,
        "tpot_s": point.tpot_s,
        "output_tokens_per_s": throughput(case),
        "power_w": point.power_w,
        "joules_per_token": point.joules_per_token,
        **_utilizations(case, hardware),
    }


def throughput(case: Case) -> float | None:
    """Generated tokens per second: as printed, else from the latencies of the requests that are open."""
    point = case.point
    if point.output_tokens_per_s:
        return point.output_tokens_per_s
    if not point.tpot_s or not point.ttft_s:
        return None
    whole = point.ttft_s + (case.workload.output_tokens - 1) * point.tpot_s
    return float(case.terms.concurrency[0]) * case.workload.output_tokens / whole


def _utilizations(case: Case, hardware: Hardware) -> Row:
    speeds = hardware.find(case.hardware).speeds
    if speeds is None or not case.tpot_s:
        return {}
    anatomy, running = case.anatomy, case.terms.running[:1]
    unique = expected_unique_experts(anatomy, running)
    middle = case.workload.prompt_tokens + case.workload.output_tokens / 2
    kv = float(running[0]) * anatomy.kv_bytes_read(middle)
    bandwidth = case.parallel.devices * speeds.memory_bytes_per_s
    dtype = compute_dtype(case.precision)
    peak = speeds.peak_flops.get(dtype)

    def s_mbu(distinct: np.ndarray) -> float:
        return float((np.asarray(printed_activated_bytes(anatomy, distinct))[0] + kv) / case.tpot_s / bandwidth)

    found: Row = {
        "decode_s_mbu": s_mbu(unique),
        "decode_s_mbu_low": s_mbu(np.maximum(unique * (1 - SKEW), np.minimum(unique, anatomy.top_k))),
        "decode_s_mbu_high": s_mbu(unique),
        "decode_mbu": (printed_model_bytes(anatomy) + kv) / case.tpot_s / bandwidth,
        "unique_experts": float(unique.mean()) if unique.size else None,
        "compute_dtype": dtype,
        "peak_bytes_per_s": bandwidth,
    }
    if peak:
        rate = float(running[0]) / case.tpot_s
        found["decode_s_mfu"] = rate * printed_sparse_flops_per_token(anatomy) / (peak * case.parallel.devices)
        found["peak_flops"] = peak * case.parallel.devices
    return found
