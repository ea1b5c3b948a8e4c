"""Bytes that a decode step reads, by who counts: predicted per layer, and against a profiling run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pyarrow as pa

from moecap.charts.parts import (
    NothingToDraw,
    Spec,
    batch_axis,
    bytes_axis,
    chosen,
    colour,
    cut,
    finish,
    folded,
    project,
    shape,
    tip,
)

BYTE_COUNTS = {
    "decode_mbu_bytes": "MBU, eq. (1): every expert",
    "decode_s_mbu_bytes": "S-MBU, eq. (3) as printed",
    "decode_s_mbu_complete_bytes": "S-MBU, complete count",
}
MEASURED = "measured"


def bytes_per_layer(table: pa.Table) -> Spec:
    """Mean bytes that a decode step reads per layer, against batch size, by who counts; one panel per deployment.

    The paper's Figure 3. Where several datasets were run, the first one's rows are drawn (tooltips name it).

    Raises:
        NothingToDraw: no row has the bytes of a step and the number of layers.
    """
    rows = [r for r in table.to_pylist() if r["layers"] and r["batch_size"] and r["decode_s_mbu_bytes"] is not None]
    if not rows:
        raise NothingToDraw("No row has the bytes of a decode step (`decode_s_mbu_bytes`) and the number of layers.")
    rows = [r for r in rows if r["dataset"] == rows[0]["dataset"]]
    names = chosen(rows)
    notes = [f"Mean over layers and steps; {rows[0]['dataset']}.", *cut(names, rows)]
    rows = [r for r in rows if r["deployment"] in names]
    kept = project(rows, ("deployment", "dataset", "batch_size", "layers", *BYTE_COUNTS))
    return finish(
        _panels("deployment", BYTE_COUNTS, per_layer=True),
        "Bytes read per layer and decode step",
        notes,
        {"rows": kept},
    )


def measured_bytes(rows: Sequence[Mapping[str, Any]], panel: str = "model") -> Spec:
    """Predicted against measured bytes of a profiling run.

    Args:
        rows: one dict per point with ``batch_size``, ``panel`` and any of ``mbu_bytes``, ``s_mbu_bytes``,
            ``s_mbu_complete_bytes``, ``measured_bytes``.

    Raises:
        NothingToDraw: there are none.
    """
    counts = {**{k.removeprefix("decode_"): v for k, v in BYTE_COUNTS.items()}, "measured_bytes": MEASURED}
    counts = {column: label for column, label in counts.items() if any(r.get(column) is not None for r in rows)}
    if not counts:
        raise NothingToDraw("The table of measured bytes is empty.")
    kept = project(rows, (panel, "batch_size", *counts))
    chart = _panels(panel, counts).resolve_scale(y="independent")
    return finish(
        chart,
        "Predicted and measured bytes",
        ["Read in one decode step; each panel has a scale of its own."],
        {"rows": kept},
    )


def measured_bytes_of_layers(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """The same for one model, layer by layer."""
    return measured_bytes(
        [{**r, "panel": r["layer"] if " " in r["layer"] else f"layer {r['layer']}"} for r in rows], "panel"
    )


#: Charts of the tables by which the report checks itself, by the name that its params give.
CHECKS = {"measured_bytes": measured_bytes_of_layers}


def _panels(panel: str, counts: Mapping[str, str], per_layer: bool = False) -> alt.FacetChart:
    labels = list(counts.values())
    base = (
        folded(alt.Chart(), counts)
        .transform_calculate(drawn=f"datum.value{' / datum.layers' if per_layer else ''}")
        .encode(
            x=batch_axis(),
            y=alt.Y("drawn:Q", title="bytes", scale=alt.Scale(zero=True), axis=bytes_axis()),
            color=colour(labels, "series", "counted by"),
        )
    )
    tips = [tip(f"{panel}:N", panel), tip("batch_size:Q", "batch size"), tip("series:N", "counted by")]
    tips += [tip("drawn:Q", "bytes per layer", ",.0f")] if per_layer else []
    tips += [tip("value:Q", "bytes per step", ",.0f")]
    layers = alt.layer(
        base.mark_line(strokeWidth=2),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            shape=shape(labels, "series", "counted by"), tooltip=tips
        ),
        data=alt.NamedData("rows"),
    )
    return layers.properties(width=235, height=220).facet(alt.Facet(f"{panel}:N", title=None, sort=None), columns=3)
