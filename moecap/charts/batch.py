"""Throughput and latency against batch size."""

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
    log_axis,
    log_scale,
    project,
    shape,
    tip,
)

COLUMNS = {"output_tokens_per_s": ("generated tokens/s", ""), "tpot_s": ("time per output token", "s")}


def by_batch(table: pa.Table) -> Spec:
    """Throughput and time per output token against batch size, with 95% intervals; one panel per dataset and figure.

    Raises:
        NothingToDraw: no row has either at a batch size.
    """
    rows = [
        r
        for r in table.to_pylist()
        if r["batch_size"] and any(r[c] is not None for c in COLUMNS) and r["status"] != "failed"
    ]
    if not rows:
        raise NothingToDraw("No row has a throughput or a time per output token.")
    names = chosen(rows)
    notes = ["Bars: 95% intervals.", *cut(names, rows)]
    rows = [r for r in rows if r["deployment"] in names]
    parts = []
    for column, (label, unit) in COLUMNS.items():
        values = [r[column] for r in rows if r[column]]
        if not values:
            continue
        scale = log_scale()
        y = alt.Y(f"{column}:Q", title=label, scale=scale, axis=log_axis(unit))
        base = alt.Chart().encode(x=batch_axis(), color=colour(names))
        tips = [tip("deployment:N", "deployment"), tip("dataset:N", "dataset"), tip("batch_size:Q", "batch size")]
        tips += [tip(f"{c}:Q", t) for c, t in zip(ends(column), (label, "95% from", "to"), strict=True)]
        bars = base.transform_filter(f"isValid(datum.{column}_low)").mark_rule(strokeWidth=1.5, clip=True)
        layers = alt.layer(
            base.mark_line(strokeWidth=2, opacity=0.85).encode(y=y),
            bars.encode(y=alt.Y(f"{column}_low:Q", scale=scale, title=label), y2=f"{column}_high:Q"),
            base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=shape(names), tooltip=tips),
            data=alt.NamedData("rows"),
        )
        layers = layers.properties(width=330, height=210)
        parts.append(layers.facet(alt.Facet("dataset:N", title=None, sort=None), columns=2))
    columns = ("deployment", "dataset", "batch_size", *ends(*COLUMNS))
    return finish(
        alt.vconcat(*parts), "Throughput and latency against batch size", notes, {"rows": project(rows, columns)}
    )
