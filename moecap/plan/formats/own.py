"""Our own results: a CAP table, or an archive that holds one."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import zstandard

from moecap.plan.formats.file import File
from moecap.plan.points import Point, number, text, whole

NAME = "CAP table or archive"
_NEEDED = {"deployment", "model", "precision", "engine", "hardware", "devices", "batch_size", "tpot_s"}


def sniff(file: File) -> bool:
    """Whether it is a Parquet file with the CAP table's columns, or an archive."""
    return file.name.endswith(".tar.zst") or (file.path.suffix == ".parquet" and file.columns >= _NEEDED)


def read(file: File) -> Iterator[Point]:
    """One point per row that was measured, imported ones included."""
    for index, row in enumerate(_rows(file)):
        if row.get("status") not in (None, "measured", "estimated", "imported"):
            continue
        requests = number(row, "requests")
        prompt, output = _lengths(row.get("workload"))
        yield Point(
            source=f"{file.name}#{index}",
            format=NAME,
            model=text(row, "model"),
            hardware=text(row, "hardware"),
            engine=text(row, "engine"),
            engine_version=text(row, "engine_version"),
            precision=text(row, "precision"),
            devices=whole(row, "devices"),
            tp=whole(row, "tensor_parallel"),
            dp=whole(row, "data_parallel"),
            ep=whole(row, "expert_parallel"),
            pp=whole(row, "pipeline_parallel") or 1,
            concurrency=number(row, "concurrency") or number(row, "batch_size"),
            request_rate=number(row, "request_rate"),
            prompt_tokens=_each(number(row, "prompt_tokens"), requests) or prompt,
            output_tokens=_each(number(row, "generated_tokens"), requests) or output,
            ttft_s=number(row, "ttft_s"),
            tpot_s=number(row, "tpot_s"),
            e2e_s=number(row, "e2e_s"),
            output_tokens_per_s=number(row, "output_tokens_per_s"),
            power_w=number(row, "power_w") if row.get("energy_source") == "nvml" else None,  # of the devices alone
        )


def _lengths(workload: Any) -> tuple[float | None, float | None]:
    """Prompt and output tokens of a workload that says them (``1024/512``)."""
    found = re.fullmatch(r"(\d+)/(\d+)", str(workload or ""))
    return (float(found.group(1)), float(found.group(2))) if found else (None, None)


def _each(total: float | None, requests: float | None) -> float | None:
    return total / requests if total is not None and requests else None


def _rows(file: File) -> list[dict[str, Any]]:
    if file.path.suffix == ".parquet":
        return file.rows
    with (
        file.path.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as stream,
        tarfile.open(fileobj=stream, mode="r|") as members,
    ):
        for member in members:
            content = members.extractfile(member) if member.name.endswith("/cap.parquet") else None
            if content is not None:
                return pq.read_table(io.BytesIO(content.read())).to_pylist()
    return []
