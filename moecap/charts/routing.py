"""Which experts a router chose: how evenly, and how many distinct ones a step touches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt

from moecap.charts.parts import NothingToDraw, Row, Spec, finish, project, tip
from moecap.metrics.routing_analysis import expected_unique


def expert_heatmap(rows: Iterable[Mapping[str, Any]], title: str = "") -> Spec:
    """How often each expert of each layer was chosen, relative to an even load; one panel per dataset.

    Args:
        rows: dicts with ``layer``, ``expert`` and ``load`` (1: as often as under an even load), optionally
            ``frequency`` (share of tokens that chose it) and ``dataset``.
        title: before what the chart says of itself.

    Raises:
        NothingToDraw: there are none.
    """
    points = _of_datasets([r for r in rows if r.get("load") is not None], ("layer", "expert", "load", "frequency"))
    if not points:
        raise NothingToDraw("The routing analysis has no activation frequencies.")
    layers = len({p["layer"] for p in points})
    experts = len({p["expert"] for p in points})
    width = min(900, max(220, 34 * experts if experts <= 16 else 12 * experts))
    height = min(900, max(60, 30 * layers if layers <= 12 else 12 * layers))
    scale = alt.Scale(scheme="blueorange", domain=[0, max(2.0, *(p["load"] for p in points))], domainMid=1)
    panel = (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X("expert:O", title="expert", axis=_sparse_axis(experts)),
            y=alt.Y("layer:O", title="layer", axis=_sparse_axis(layers)),
            color=alt.Color("load:Q", title="load", scale=scale, legend=alt.Legend(format=".2~f", gradientLength=160)),
            tooltip=[
                tip("layer:O", "layer"),
                tip("expert:O", "expert"),
                tip("load:Q", "load (1: even)", ".3f"),
                tip("frequency:Q", "share of tokens", ".2%"),
            ],
        )
        .properties(width=width, height=height, data=alt.NamedData("experts"))
    )
    chart = panel.facet(alt.Facet("dataset:N", title=None, sort=None), columns=2 if width < 450 else 1)
    notes = [f"{title} 1: as often as under an even load.".strip()]
    return finish(chart, "Expert activation", notes, {"experts": points})


def _of_datasets(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[Row]:
    return [{**p, "dataset": str(r.get("dataset") or "")} for r in rows for p in project([r], columns)]


def _sparse_axis(values: int) -> alt.Axis:
    every = max(1, math.ceil(values / 32))
    expression = f"toNumber(datum.label) % {every} == 0 ? datum.label : ''" if every > 1 else "datum.label"
    return alt.Axis(labelExpr=expression, labelAngle=0, ticks=every == 1)


def unique_experts(rows: Iterable[Mapping[str, Any]], title: str = "") -> Spec:
    """Distinct experts per MoE layer against tokens in the step, with the closed form for uniform routing.

    Args:
        rows: dicts with ``layer``, ``tokens``, ``unique_experts`` (mean), ``experts``, ``top_k``, and optionally
            ``steps`` (how many steps the mean is of) and ``dataset``.
        title: before what the chart says of itself.

    Raises:
        NothingToDraw: there are none.
    """
    rows = [r for r in rows if r.get("unique_experts") is not None and r["tokens"] > 0]
    points = _of_datasets(rows, ("layer", "tokens", "unique_experts", "steps"))
    if not points:
        raise NothingToDraw("The routing analysis has no counts of unique experts.")
    largest = max(p["tokens"] for p in points)
    datasets = list(dict.fromkeys(p["dataset"] for p in points))
    curves = []
    for experts, top_k in sorted({(r["experts"], r["top_k"]) for r in rows}):
        tokens = [largest ** (i / 60) for i in range(61)]
        of = f"{experts} experts, top {top_k}"
        for n, unique in zip(tokens, expected_unique(tokens, experts, top_k).tolist(), strict=True):
            curves += [{"dataset": d, "tokens": n, "uniform": unique, "of": of} for d in datasets]
    scale = alt.Scale(type="log", base=2, domain=[1, max(2, largest)], nice=False)
    x = alt.X("tokens:Q", title="tokens in the step", scale=scale, axis=alt.Axis(format="~s", grid=False))
    up = alt.Scale(domain=[0, max(r["experts"] for r in rows)])
    title_y = "distinct experts per layer"
    layers = sorted({p["layer"] for p in points})
    shades = alt.Scale(domain=[layers[0], max(layers[-1], layers[0] + 1)], nice=False)
    legend = alt.Legend(values=layers if len(layers) <= 6 else alt.Undefined, format="d")
    base = alt.Chart()
    panel = alt.layer(
        base.transform_filter("isValid(datum.uniform)")
        .mark_line(strokeDash=[5, 3], strokeWidth=1.5, style="muted")
        .encode(
            x=x,
            y=alt.Y("uniform:Q", title=title_y, scale=up),
            detail="of:N",
            tooltip=[tip("of:N", "uniform routing"), tip("uniform:Q", "distinct experts", ".2f")],
        ),
        base.transform_filter("isValid(datum.unique_experts)")
        .mark_point(filled=True, size=40, opacity=0.8)
        .encode(
            x=x,
            y=alt.Y("unique_experts:Q", title=title_y, scale=up),
            color=alt.Color("layer:Q", title="layer", scale=shades, legend=legend),
            tooltip=[
                tip("layer:O", "layer"),
                tip("tokens:Q", "tokens"),
                tip("unique_experts:Q", "distinct experts, mean", ".3f"),
                tip("steps:Q", "steps"),
            ],
        ),
        data=alt.NamedData("unique"),
    ).properties(width=380, height=240)
    return finish(
        panel.facet(alt.Facet("dataset:N", title=None, sort=None), columns=2),
        "Distinct experts against tokens in a step",
        [f"{title} Dashed: uniform routing, E·(1 − (1 − k/E)^n).".strip()],
        {"unique": [*points, *curves]},
    )
