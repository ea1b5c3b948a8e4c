"""aiconfigurator's measured serving points (``silicon_sample.csv``; most rows come from InferenceX's dumps).

``batch_size`` is per attention rank; TTFT and TPOT are means in ms of a closed-loop client. Parallelism needs care:
rows made from InferenceX's *tensor parallelism n, expert parallelism n* carry the product n² as their number of GPUs
(the same run, to the last digit, is also printed as n GPUs), and vLLM's *n GPUs with data-parallel attention* the same.
Both are read as n GPUs, and the point says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from moecap.plan.formats.file import File
from moecap.plan.points import Point, number, text, whole

NAME = "aiconfigurator silicon CSV"
_NEEDED = {"silicon_data_source", "silicon_ttft_ms", "silicon_tpot_ms", "model_path", "system", "tp_size"}


def sniff(file: File) -> bool:
    """Whether the table has its columns."""
    return file.columns >= _NEEDED


def read(file: File) -> Iterator[Point]:
    """One point per row; disaggregated rows carry the devices of both pools."""
    for row in file.rows:
        said = text(row, "silicon_data_source") or ""
        devices, tp, dp, ep, note = _parallelism(row)
        ranks = dp or 1
        batch = number(row, "batch_size")
        concurrency = _said(said, r"silicon_concurrency=(\d+)")
        disaggregated = text(row, "mode") == "disagg"
        yield Point(
            source=f"{file.name}#{text(row, 'id') or ''}",
            format=NAME,
            model=text(row, "model_path"),
            hardware=text(row, "system"),
            engine=text(row, "backend"),
            engine_version=text(row, "backend_version"),
            precision=text(row, "moe_quant_mode", "gemm_quant_mode", "precision"),
            devices=_pools(row) if disaggregated else devices,
            tp=tp,
            dp=dp,
            ep=ep,
            pp=whole(row, "pp_size") or 1,
            concurrency=float(concurrency) if concurrency else (batch * ranks if batch else None),
            prompt_tokens=number(row, "isl"),
            output_tokens=number(row, "osl"),
            ttft_s=number(row, "silicon_ttft_ms", 1e-3),
            tpot_s=number(row, "silicon_tpot_ms", 1e-3),
            disaggregated=disaggregated,
            date=_said(said, r"measured=(\d{4}-\d\d-\d\d)"),
            notes="; ".join([*([note] if note else []), *(["work in progress"] if "wip=True" in said else [])]) or None,
        )


def _parallelism(row: Mapping[str, Any]) -> tuple[int | None, int | None, int | None, int | None, str | None]:
    """Devices, tensor, attention-data and expert parallelism, and what was interpreted."""
    tp, dp = whole(row, "tp_size"), whole(row, "attention_dp_size")
    split, ep = whole(row, "moe_tp_size") or 1, whole(row, "moe_ep_size") or 1
    if tp is None or dp is None:
        return (tp, None, None, ep, "it does not say how attention is split") if tp else (None, None, None, ep, None)
    if ep > 1 and split == ep and tp * dp == ep * ep and tp * dp > 4:
        real = (1, ep) if dp > 1 else (ep, 1)
        return ep, *real, ep, f"printed as {tp * dp} GPUs: tensor × expert parallelism {split} × {ep} of the same GPUs"
    if text(row, "backend") == "vllm" and dp > 1 and tp == dp:
        return tp, 1, dp, tp, f"printed as {tp * dp} GPUs: data-parallel attention over the same {tp} GPUs"
    return tp * dp * (whole(row, "pp_size") or 1), tp, dp, ep, None


def _pools(row: Mapping[str, Any]) -> int | None:
    total = 0
    for pool in ("prefill", "decode"):
        sizes = [whole(row, f"{pool}_{name}") for name in ("tp_size", "pp_size", "attention_dp_size", "num_workers")]
        product = 1
        for size in sizes:
            product *= size or 1
        total += product if sizes[0] else 0
    return total or None


def _said(source: str, pattern: str) -> str | None:
    found = re.search(pattern, source)
    return found.group(1) if found else None
