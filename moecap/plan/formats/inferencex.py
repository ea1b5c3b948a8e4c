"""InferenceX's aggregated results (``agg_*.json``): one object per point, times in s.

``tp`` is the number of GPUs; with ``dp_attention`` attention is data-parallel over the same GPUs. Power, where it was
recorded and found valid, is that of all GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moecap.plan.formats.file import File
from moecap.plan.points import Point, number, text, whole

NAME = "InferenceX result"


def sniff(file: File) -> bool:
    """Whether its objects name hardware, framework and concurrency."""
    return bool(file.records) and all({"hw", "framework", "conc"} <= set(r) for r in file.records)


def read(file: File) -> Iterator[Point]:
    """One point per object."""
    for index, row in enumerate(file.records):
        row = {**row, **(row.get("metrics") or {})}
        devices, tp, dp, ep = _parallelism(row)
        output = number(row, "output_tput_per_gpu")
        decode = whole(row, "num_decode_gpu") or devices
        draft = text(row, "spec_decoding")
        valid = row.get("power_valid", 1) not in (0, False, "0", "false")
        power = number(row, "avg_total_gpu_power_w") or _times(number(row, "avg_power_w"), devices)
        yield Point(
            source=f"{file.name}#{index}",
            format=NAME,
            model=text(row, "model", "infmax_model_prefix"),
            hardware=text(row, "hw"),
            engine=text(row, "framework"),
            engine_version=text(row, "image"),
            precision=text(row, "precision"),
            devices=devices,
            tp=tp,
            dp=dp,
            ep=ep,
            concurrency=number(row, "conc"),
            prompt_tokens=number(row, "isl"),
            output_tokens=number(row, "osl"),
            ttft_s=number(row, "mean_ttft"),
            tpot_s=number(row, "mean_tpot"),
            e2e_s=number(row, "mean_e2el"),
            output_tokens_per_s=_times(output, decode),
            power_w=power if valid else None,
            joules_per_token=number(row, "joules_per_output_token") if valid else None,
            speculative=None if draft is None else draft.lower() not in ("none", "false"),
            disaggregated=_true(row.get("disagg")),
            date=text(row, "date"),
        )


def _parallelism(row: Mapping[str, Any]) -> tuple[int | None, int | None, int | None, int | None]:
    if _true(row.get("disagg")) or _true(row.get("is_multinode")):
        pools = [whole(row, key) or 0 for key in ("num_prefill_gpu", "num_decode_gpu")]
        return (sum(pools) or None), None, None, None
    devices, ep = whole(row, "tp"), whole(row, "ep") or 1
    if devices is None:
        return None, None, None, ep
    apart = _true(row.get("dp_attention"))
    return devices, (1 if apart else devices), (devices if apart else 1), ep


def _true(value: Any) -> bool:
    return str(value).lower() in ("true", "1")


def _times(value: float | None, factor: int | None) -> float | None:
    return value * factor if value is not None and factor else None
