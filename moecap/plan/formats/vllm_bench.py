"""``vllm bench serve --save-result``: one JSON object per run, times in ms.

What it ran on is not in it, unless ``--metadata`` said so (``hardware=``, ``gpu_count=``/``devices=``, ``precision=``,
``tp=`` …); runs with failed requests say so in their notes.
"""

from __future__ import annotations

from collections.abc import Iterator

from moecap.plan.formats.file import File
from moecap.plan.points import Point, number, text, whole

NAME = "vllm bench serve result"
_NEEDED = {"mean_ttft_ms", "mean_tpot_ms", "output_throughput", "completed"}


def sniff(file: File) -> bool:
    """Whether its objects have a run's summary."""
    return bool(file.records) and all(set(r) >= _NEEDED for r in file.records)


def read(file: File) -> Iterator[Point]:
    """One point per run with at least one request completed."""
    for index, row in enumerate(file.records):
        completed, asked = number(row, "completed"), number(row, "num_prompts")
        if not completed:
            continue
        failed = asked - completed if asked and asked > completed else 0
        tp, dp = whole(row, "tp"), whole(row, "dp")
        yield Point(
            source=f"{file.name}#{index}",
            format=NAME,
            model=text(row, "model_id", "model"),
            hardware=text(row, "hardware", "gpu", "gpu_type"),
            engine=text(row, "engine", "endpoint_type", "backend"),
            engine_version=text(row, "engine_version", "vllm_version"),
            precision=text(row, "precision", "quantization"),
            devices=whole(row, "devices") or whole(row, "gpu_count") or ((tp or 1) * (dp or 1) if tp or dp else None),
            tp=tp,
            dp=dp,
            ep=whole(row, "ep"),
            concurrency=number(row, "max_concurrency"),
            request_rate=number(row, "request_rate"),
            prompt_tokens=_each(number(row, "total_input_tokens"), completed),
            output_tokens=_each(number(row, "total_output_tokens"), completed),
            ttft_s=number(row, "mean_ttft_ms", 1e-3),
            tpot_s=number(row, "mean_tpot_ms", 1e-3),
            e2e_s=number(row, "mean_e2el_ms", 1e-3),
            output_tokens_per_s=number(row, "output_throughput"),
            date=text(row, "date"),
            notes=f"{failed:.0f} of {asked:.0f} requests failed" if failed else None,
        )


def _each(total: float | None, requests: float) -> float | None:
    return None if total is None else total / requests
