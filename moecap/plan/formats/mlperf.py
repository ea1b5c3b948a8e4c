"""MLPerf Inference's ``mlperf_log_summary.txt`` of a language model.

The summary names neither model nor hardware: in a results tree the folders above it do
(``…/results/SYSTEM/MODEL/SCENARIO/performance/run_1/``). Times are in ns; the server scenario has TTFT and TPOT, the
offline one throughput alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from moecap.plan.formats.file import File
from moecap.plan.points import Point

NAME = "MLPerf summary"
SCENARIOS = ("offline", "server", "interactive")


def sniff(file: File) -> bool:
    """Whether it is LoadGen's summary, with tokens."""
    return "MLPerf Results Summary" in file.text[:2000] and "okens per second" in file.text


def read(file: File) -> Iterator[Point]:
    """One point per summary; a result that is not valid says so in its notes."""
    system, model = _named_by(file.path)
    found = {key.strip().lower(): value.strip() for key, value in re.findall(r"^(.+?)\s*:\s*(.+)$", file.text, re.M)}
    first, rate = _seconds(found, "mean first token latency (ns)"), _tokens_per_s(found)
    devices = re.search(r"x(\d+)(?:_|$)|(\d+)x", system or "")
    yield Point(
        source=str(file.path),
        format=NAME,
        model=model,
        hardware=re.sub(r"[_-]?x\d+.*$|^\d+x[_-]?", "", system) if system else None,
        engine=found.get("sut name"),
        devices=int(next(g for g in devices.groups() if g)) if devices else None,
        ttft_s=first,
        tpot_s=_seconds(found, "mean time per output token (ns)", "mean time to output token (ns)"),
        output_tokens_per_s=rate,
        notes=f"{found.get('scenario', '?')} scenario, result {found.get('result is', '?')}",
    )


def _named_by(path: Path) -> tuple[str | None, str | None]:
    parts = path.resolve().parts
    for i, part in enumerate(parts):
        if part.lower() in SCENARIOS and i >= 2:
            return parts[i - 2], parts[i - 1]
    return None, None


def _tokens_per_s(found: dict[str, str]) -> float | None:
    for key in ("completed tokens per second", "tokens per second"):
        if key in found:
            return float(found[key])
    return None


def _seconds(found: dict[str, str], *keys: str) -> float | None:
    for key in keys:
        if key in found:
            return float(found[key]) * 1e-9
    return None
