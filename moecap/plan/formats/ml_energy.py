"""The ML.ENERGY leaderboard's results: its JSON per model and task, or its configurations as a table.

A steady batch of vLLM; power is that of all GPUs together, the time between tokens a median (a decode step without the
prefill of others). How long the prompts were is not in it. ``tensor_parallel: 1`` with experts over n GPUs means that
attention is split over the same n GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moecap.plan.formats.file import File
from moecap.plan.points import Point, number, text, whole

NAME = "ML.ENERGY result"
_NEEDED = {"avg_batch_size", "avg_power_watts", "energy_per_token_joules", "median_itl_ms", "num_gpus"}


def sniff(file: File) -> bool:
    """Whether it is a table of configurations, or a JSON object with a list of them."""
    if file.columns >= _NEEDED:
        return True
    value = file.json
    if not isinstance(value, Mapping) or not isinstance(value.get("configurations"), list):
        return False
    return bool(value["configurations"]) and set(value["configurations"][0]) >= _NEEDED


def read(file: File) -> Iterator[Point]:
    """One point per configuration."""
    for index, row in enumerate(_rows(file)):
        model, task = _model_and_task(row, file)
        devices, ep = whole(row, "num_gpus"), whole(row, "par_expert_parallel") or 1
        dp = whole(row, "par_data_parallel") or 1
        yield Point(
            source=f"{file.name}#{index}",
            format=NAME,
            model=model,
            hardware=text(row, "gpu_model"),
            engine="vllm",
            engine_version="0.11.1",
            precision=text(row, "prec", "weight_precision"),
            devices=devices,
            tp=devices // dp if devices else None,
            dp=dp,
            ep=ep,
            concurrency=number(row, "max_num_seqs"),
            batch=number(row, "avg_batch_size"),
            output_tokens=number(row, "avg_output_len"),
            tpot_s=number(row, "median_itl_ms", 1e-3),
            tpot_kind="median_gap",
            output_tokens_per_s=number(row, "output_throughput_tokens_per_sec"),
            power_w=number(row, "avg_power_watts"),
            joules_per_token=number(row, "energy_per_token_joules"),
            notes=f"task {task}" if task else None,
        )


def _rows(file: File) -> Iterator[Mapping[str, Any]]:
    if file.rows:
        yield from file.rows
        return
    whole_file = {k: v for k, v in file.json.items() if k != "configurations"}
    for configuration in file.json["configurations"]:
        parallel = {f"par_{k}": v for k, v in (configuration.get("parallelization") or {}).items()}
        yield {**whole_file, **configuration, **parallel}


def _model_and_task(row: Mapping[str, Any], file: File) -> tuple[str | None, str | None]:
    name = text(row, "file") or file.path.stem
    parts = name.split("__")
    if len(parts) >= 3:
        return "/".join(parts[:2]), parts[-1]
    return text(row, "model_id", "nickname") or name, text(row, "task")
