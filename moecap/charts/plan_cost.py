"""What a token costs at most if every user is to get so many tokens per second: a line per hardware of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from moecap.charts.parts import COLOURS, MAX_SERIES, SHAPES, NothingToDraw, Row, Spec, finish, log_scale, tip

SERIES = "hardware"
ENDS = ("", "_low", "_high")


def cheapest_by_speed(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Per model, precision and hardware the plans that no other of them beats in both cost and speed, fastest first.

    Read as a staircase: at a demanded speed, the cheapest is the next row that is at least as fast.

    Args:
        rows: of a plan (``PLAN_SCHEMA``); what cannot be served, or has no price, is left out.

    Returns:
        rows with ``tokens_per_s_per_user`` (1 / TPOT) and its ends beside the plan's own columns.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        if r.get("feasible", True) and r["tpot_s"] and r["usd_per_million_tokens"] is not None:
            speeds = {"tokens_per_s_per_user" + end: _inverse(r["tpot_s" + other])
                      for end, other in zip(ENDS, ("", "_high", "_low"), strict=True)}  # fmt: skip
            groups.setdefault((r["model"], r["precision"], r["hardware"]), []).append({**r, **speeds})
    found: list[Row] = []
    for group in groups.values():
        best = float("inf")
        for r in sorted(group, key=lambda r: (-r["tokens_per_s_per_user"], r["usd_per_million_tokens"])):
            if r["usd_per_million_tokens"] < best:
                best = r["usd_per_million_tokens"]
                found.append(r)
    return found


def _inverse(seconds: float | None) -> float | None:
    return 1 / seconds if seconds else None


def plan_cost(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """The cheapest plan at each speed, $/10⁶ tokens against tokens/s per user; a panel per model and precision.

    Raises:
        NothingToDraw: nothing in the plan can be served and has a price.
    """
    steps = cheapest_by_speed(rows)
    if not steps:
        raise NothingToDraw("Nothing in this plan can be served and has a price.")
    least: dict[str, float] = {}
    for r in steps:
        least[r["hardware"]] = min(least.get(r["hardware"], float("inf")), r["usd_per_million_tokens"])
    names = sorted(sorted(least, key=lambda name: least[name])[:MAX_SERIES])
    points = [
        {
            "panel": f"{r['model']} {r['precision']}",
            **{k: r.get(k) for k in ("hardware", "devices", "layout", "batch_size", "tpot_s", "basis")},
            **{k + end: r.get(k + end) for k in ("tokens_per_s_per_user", "usd_per_million_tokens") for end in ENDS},
        }
        for r in steps
        if r["hardware"] in names
    ]
    notes = ["Steps: the cheapest plan that is at least so fast. Bars: 90% of the time, and prices low and high."]
    if len(least) > len(names):
        notes.append(f"The {len(names)} cheapest of {len(least)} kinds of hardware; the table has all.")
    if any(r["basis"] == "bound" for r in steps):
        notes.append("Where nothing was measured it is what the hardware allows at most.")
    base = alt.Chart()
    x = alt.X("tokens_per_s_per_user:Q", title="tokens/s per user (1 / TPOT)", scale=log_scale(), axis=_axis())
    usd = "USD per million generated tokens"
    y = alt.Y("usd_per_million_tokens:Q", title=usd, scale=log_scale(), axis=_axis())
    low = alt.Y("usd_per_million_tokens_low:Q", title=usd, scale=log_scale(), axis=_axis())
    colours = alt.Scale(domain=names, range=list(COLOURS[: len(names)]))
    colour = alt.Color("hardware:N", title="hardware", scale=colours)
    shapes = alt.Scale(domain=names, range=list(SHAPES[: len(names)]))
    layers = [
        base.mark_rule(opacity=0.35, clip=True)
        .transform_filter("isValid(datum.usd_per_million_tokens_low)")
        .encode(x=x, y=low, y2="usd_per_million_tokens_high", color=colour),
        base.mark_line(strokeWidth=1.8, interpolate="step-before").encode(x=x, y=y, color=colour),
        base.mark_point(filled=True, size=55).encode(
            x=x,
            y=y,
            color=colour,
            shape=alt.Shape("hardware:N", title="hardware", scale=shapes),
            tooltip=[
                tip("hardware:N", "hardware"),
                tip("devices:Q", "devices"),
                tip("layout:N", "layout"),
                tip("batch_size:Q", "batch size"),
                tip("tokens_per_s_per_user:Q", "tokens/s per user"),
                tip("usd_per_million_tokens:Q", "USD per 10⁶ tokens"),
                tip("basis:N", "rests on"),
            ],
        ),
    ]
    panel = alt.layer(*layers, data=alt.NamedData("plan")).properties(width=420, height=320)
    facet = panel.facet(alt.Facet("panel:N", title=None, sort=None), columns=2)
    return finish(facet, "The cheapest plan at each speed", notes, {"plan": points})


def _axis() -> alt.Axis:
    return alt.Axis(format=",~g", labelOverlap=True, tickCount=5)
