"""A measured point, whoever measured it: the row that a backtest, an audit and an import start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import pyarrow as pa

#: What a printed time per output token is: the mean over requests (it holds the prefill of others), or the median gap
#: between two tokens (a decode step alone).
TpotKind = Literal["mean", "median_gap"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured point as its file prints it, in SI units. What the file does not say is None.

    Attributes:
        source: the file, and the row or id in it.
        format: the reader that read it.
        model, hardware, engine, precision: as printed; :mod:`moecap.plan.names` finds the catalogue's names.
        devices: GPUs that serve the model together (all pools of a disaggregated deployment).
        tp, dp, ep, pp: tensor, attention-data, expert and pipeline parallelism; ``tp × dp × pp = devices``.
        concurrency: requests that the client kept open.
        batch: requests that ran together on average, where that was measured.
        prompt_tokens, output_tokens: of a request.
        tpot_kind: see :data:`TpotKind`.
        output_tokens_per_s: generated tokens per second over all devices.
        power_w: of all devices together.
        joules_per_token: per generated token.
        speculative: tokens were drafted and verified; None: not said.
        disaggregated: prefill and decode ran on devices of their own.
        notes: what the reader had to interpret.
    """

    source: str
    format: str
    model: str | None = None
    hardware: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    precision: str | None = None
    devices: int | None = None
    tp: int | None = None
    dp: int | None = None
    ep: int | None = None
    pp: int = 1
    concurrency: float | None = None
    batch: float | None = None
    request_rate: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    tpot_kind: TpotKind = "mean"
    e2e_s: float | None = None
    output_tokens_per_s: float | None = None
    power_w: float | None = None
    joules_per_token: float | None = None
    speculative: bool | None = None
    disaggregated: bool = False
    date: str | None = None
    notes: str | None = None


@dataclass(frozen=True, kw_only=True)
class KernelPoint:
    """One measured run of a fused mixture-of-experts kernel, alone.

    ``routing`` is ``balanced`` (tokens spread evenly) or ``power_law_A``; ``tp`` and ``ep`` as in :class:`Point`.
    """

    source: str
    format: str
    hardware: str
    dtype: str
    tokens: int
    hidden_size: int
    expert_width: int
    experts: int
    top_k: int
    tp: int = 1
    ep: int = 1
    routing: str = "balanced"
    kernel: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    latency_s: float = 0.0
    power_w: float | None = None


@dataclass(frozen=True, kw_only=True)
class OffloadPoint:
    """One measured run with experts in the host's memory.

    ``experts_on_gpu`` is the share of routed experts whose weights lie on the GPUs, ``placement`` how they were chosen.
    """

    source: str
    format: str
    model: str
    precision: str
    hardware: str
    devices: int
    processor: str
    concurrency: float | None
    prompt_tokens: float | None
    placement: str | None
    experts_on_gpu: float
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None


AnyPoint = Point | KernelPoint | OffloadPoint


def table(points: Iterable[Point]) -> pa.Table:
    """Measured points as a tidy table, one row each."""
    names = [f.name for f in fields(Point)]
    rows = [{name: getattr(p, name) for name in names} for p in points]
    text = {"source", "format", "model", "hardware", "engine", "engine_version", "precision", "tpot_kind", "date"}
    whole = {"devices", "tp", "dp", "ep", "pp"}
    kinds = {name: pa.string() for name in {*text, "notes"}}
    kinds |= {name: pa.int64() for name in whole} | {name: pa.bool_() for name in ("speculative", "disaggregated")}
    schema = pa.schema([pa.field(name, kinds.get(name, pa.float64())) for name in names])
    return pa.Table.from_pylist(rows, schema=schema)


def number(row: Mapping[str, Any], key: str, scale: float = 1.0) -> float | None:
    """A figure of a row, scaled; None where it is absent, empty or no number."""
    try:
        value = float(row[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value * scale if value == value and abs(value) != float("inf") else None


def whole(row: Mapping[str, Any], key: str) -> int | None:
    """As :func:`number`, as a whole number of at least 1."""
    value = number(row, key)
    return None if value is None or value < 1 else round(value)


def text(row: Mapping[str, Any], *keys: str) -> str | None:
    """The first of these keys that says something."""
    for key in keys:
        value = row.get(key)
        if value is not None and str(value).strip() not in ("", "nan", "None"):
            return str(value).strip()
    return None


def unique(points: Iterable[Point]) -> list[Point]:
    """Without rows that repeat another's every figure: dumps print one run twice, or under two names of a model."""
    seen: dict[tuple[Any, ...], Point] = {}
    for point in points:
        key = tuple(getattr(replace(point, source="", notes=None, date=None), f.name) for f in fields(Point))
        seen.setdefault(key, point)
    return list(seen.values())
