"""Decode utilization of memory bandwidth and of compute, by who counts."""

from __future__ import annotations

import altair as alt
import pyarrow as pa

from moecap.charts.parts import (
    NothingToDraw,
    Spec,
    batch_axis,
    chosen,
    colour,
    cut,
    ends,
    finish,
    folded,
    project,
    shape,
    tip,
)

UTILIZATIONS = {
    "Memory bandwidth": {
        "decode_mbu": "dense, eqs. (1), (2)",
        "decode_s_mbu": "sparse, eqs. (3), (4)",
        "decode_s_mbu_complete": "sparse, complete count",
    },
    "Compute": {
        "decode_mfu": "dense, eqs. (1), (2)",
        "decode_s_mfu": "sparse, eqs. (3), (4)",
        "decode_s_mfu_complete": "sparse, complete count",
    },
}
_COUNTS = tuple(UTILIZATIONS.items())
COLUMNS = [c for group in UTILIZATIONS.values() for c in group]


def utilization(table: pa.Table) -> Spec:
    """Decode utilization of memory bandwidth and of compute against batch size; a panel per deployment and resource.

    Where several datasets were run, the first one's rows are drawn.

    Raises:
        NothingToDraw: no row has a utilization.
    """
    rows = [r for r in table.to_pylist() if r["batch_size"] and any(r[c] is not None for c in COLUMNS)]
    if not rows:
        raise NothingToDraw("No row has a utilization.")
    rows = [r for r in rows if r["dataset"] == rows[0]["dataset"]]
    names = chosen(rows)
    notes = [
        f"Share of the peak; {rows[0]['dataset']}. Bars: 95% intervals. Above 1 is not cut off: it is a warning.",
        *cut(names, rows),
    ]
    rows = [r for r in rows if r["deployment"] in names]
    values = {resource: [r[c] for r in rows for c in counts if r[c] is not None] for resource, counts in _COUNTS}
    parts = [_panels(resource, counts) for resource, counts in _COUNTS if values[resource]]
    above = any(value > 1 for found in values.values() for value in found)
    columns = ("deployment", "dataset", "batch_size", *ends(*COLUMNS))
    datasets = {"rows": project(rows, columns), "one": [{"one": 1}] if above else []}
    return finish(alt.vconcat(*parts), "Utilization in decode", notes, datasets)


def _panels(resource: str, counts: dict[str, str]) -> alt.FacetChart:
    scale = alt.Scale(zero=True, nice=True)
    labels = list(counts.values())
    base = folded(alt.Chart(), counts).encode(x=batch_axis(), color=colour(labels, "series", "count"))
    y = alt.Y("value:Q", title=f"{resource.lower()} utilization", scale=scale, axis=alt.Axis(format=".3~p"))
    tips = [tip(f"{c}:N", c.replace("_", " ")) for c in ("deployment", "dataset", "column", "batch_size")]
    tips += [tip("value:Q", "utilization"), tip("low:Q", "95% from"), tip("high:Q", "to")]
    layers = [
        base.mark_line(strokeWidth=2).encode(y=y),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=1.5)
        .encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        base.mark_point(filled=True, size=55, opacity=1).encode(
            y=y, shape=shape(labels, "series", "count"), tooltip=tips
        ),
        alt.Chart(alt.NamedData("one")).mark_rule(strokeDash=[3, 3], style="muted").encode(y=alt.Y("one:Q")),
    ]
    panel = alt.layer(*layers, data=alt.NamedData("rows")).properties(width=235, height=190)
    return panel.facet(alt.Facet("deployment:N", title=None, sort=None), columns=3)
