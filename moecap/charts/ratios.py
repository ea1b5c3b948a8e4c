"""Every figure of two campaigns as a ratio: one line per figure, one tick per point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from moecap.charts.parts import COLOURS, SHAPES, Spec, finish, log_scale


def ratios(rows: Sequence[Mapping[str, Any]], verdicts: Sequence[str]) -> Spec | None:
    """B over A per compared figure, coloured by what is said of it; None where there is nothing to draw.

    Args:
        rows: with ``column``, ``ratio`` and ``verdict``; a ratio that is null or not above 0 is left out.
        verdicts: what can be said, in order.
    """
    kept = [{k: r[k] for k in ("column", "ratio", "verdict")} for r in rows if r["ratio"] and r["ratio"] > 0]
    if not kept:
        return None
    said = [v for v in verdicts if any(r["verdict"] == v for r in kept)]
    columns = list(dict.fromkeys(r["column"] for r in kept))
    colours = alt.Scale(domain=said, range=list(COLOURS[: len(said)]))
    shapes = alt.Scale(domain=said, range=list(SHAPES[: len(said)]))
    data = alt.NamedData("ratios")
    points = (
        alt.Chart(data)
        .mark_point(filled=True, size=60, opacity=0.7)
        .encode(
            x=alt.X("ratio:Q", title="B / A", scale=log_scale(), axis=alt.Axis(format="~g", tickCount=6)),
            y=alt.Y("column:N", title=None, sort=columns, axis=alt.Axis(labelLimit=400)),
            color=alt.Color("verdict:N", title="B is", scale=colours),
            shape=alt.Shape("verdict:N", title="B is", scale=shapes),
        )
    )
    line = alt.Chart(data).mark_rule(strokeDash=[4, 3], style="muted").encode(x=alt.datum(1.0))
    chart = alt.layer(line, points).properties(width=560, height=max(80, 24 * len(columns)))
    return finish(chart, "B over A", ["A point per deployment, dataset and batch size."], {"ratios": kept})
