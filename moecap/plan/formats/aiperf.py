"""AIPerf's ``profile_export_aiperf.json``: an object of metrics, each with its unit, average and percentiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moecap.plan.formats.file import File
from moecap.plan.points import Point, number, text, whole

NAME = "AIPerf result"
_SECONDS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "us": 1e-6, "ns": 1e-9}


def sniff(file: File) -> bool:
    """Whether it has AIPerf's metrics as objects."""
    return bool(file.records) and all(isinstance(_metrics(r).get("inter_token_latency"), Mapping) for r in file.records)


def read(file: File) -> Iterator[Point]:
    """One point per run."""
    for index, record in enumerate(file.records):
        metrics = _metrics(record)
        config = record.get("input_config") or {}
        endpoint, load = config.get("endpoint") or {}, config.get("loadgen") or {}
        names = endpoint.get("model_names") or record.get("models") or []
        failed = _average(metrics, "error_request_count")
        yield Point(
            source=f"{file.name}#{index}",
            format=NAME,
            model=str(names[0]) if names else text(record, "model"),
            hardware=text(record, "hardware"),
            engine=text(record, "engine"),
            precision=text(record, "precision"),
            devices=whole(record, "devices"),
            concurrency=number(load, "concurrency"),
            request_rate=number(load, "request_rate"),
            prompt_tokens=_average(metrics, "input_sequence_length"),
            output_tokens=_average(metrics, "output_sequence_length"),
            ttft_s=_average(metrics, "time_to_first_token", seconds=True),
            tpot_s=_average(metrics, "inter_token_latency", seconds=True),
            e2e_s=_average(metrics, "request_latency", seconds=True),
            output_tokens_per_s=_average(metrics, "output_token_throughput"),
            date=text(record, "start_time"),
            notes=f"{failed:.0f} requests failed" if failed else None,
        )


def _metrics(record: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = record.get("records")
    return inner if isinstance(inner, Mapping) else record


def _average(metrics: Mapping[str, Any], name: str, seconds: bool = False) -> float | None:
    value = metrics.get(name)
    if not isinstance(value, Mapping):
        return None
    scale = _SECONDS.get(str(value.get("unit", "ms")).lower(), 1e-3) if seconds else 1.0
    return number(value, "avg", scale)
