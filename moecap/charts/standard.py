"""Charts of the CAP table: pure functions from tables to Altair charts, and writing them as SVG, PNG and HTML.

Every chart reads a table as ``cap.parquet`` has it (or the routing analysis, or a table of measured bytes), names
units on its axes and shows the exact figures in tooltips. Colours are Okabe and Ito's, which people with colour
blindness tell apart; series differ in shape too. The neutral colours (text, axes, grid) come from :func:`theme` alone,
so that the report can draw the same chart on a dark page.

A chart that a table has no data for raises :class:`NothingToDraw`, which says why.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import pyarrow as pa

from moecap.cap.paper import FIGURE_4, FIGURE_5
from moecap.cap.table import dominated
from moecap.charts.pages import render
from moecap.errors import MoecapError, nearest
from moecap.io import atomic_path, read_parquet

Row = dict[str, Any]

# Okabe & Ito (2008), without black (the text's colour) and yellow (too pale on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
MAX_SERIES = len(COLOURS)
MAX_PANELS = 12
MAX_POINTS = 1500
FORMATS = ("html", "svg", "png")
FONT = "Arimo, Liberation Sans, Helvetica, Arial, sans-serif"
INK = {"light": ("#1b1f24", "#57606a", "#d8dee4"), "dark": ("#e6edf3", "#9da7b3", "#363d46")}


class NothingToDraw(MoecapError):
    """The table has no data for this chart; the message says what is missing."""


@dataclass(frozen=True)
class Axis:
    """One axis of the CAP radar.

    ``span`` is the ratio to the reference at which the axis is at three quarters of its length (and its inverse at one
    quarter): accuracy moves by percents where cost moves by factors.
    """

    column: str
    label: str
    higher_is_better: bool
    span: float = 2.0


COST_PER_TOKEN = Axis("usd_per_million_tokens", "Cost per token", higher_is_better=False)
COST_TO_BUY = Axis("hardware_usd", "Cost to buy", higher_is_better=False)
ACCURACY = Axis("accuracy", "Accuracy", higher_is_better=True, span=1.25)
PERFORMANCE = Axis("output_tokens_per_s", "Performance", higher_is_better=True)
CAP_AXES = (COST_PER_TOKEN, ACCURACY, PERFORMANCE)

UNITS = {
    "usd_per_million_tokens": "USD per million generated tokens",
    "hardware_usd": "purchase, USD",
    "output_tokens_per_s": "generated tokens/s",
    "accuracy": "accuracy",
    "tpot_s": "time per output token, s",
}


# --- radar ------------------------------------------------------------------------------------------------------


def radial(value: float, reference: float, axis: Axis) -> float:
    """Distance from the centre, between 0 and 1, of ``value`` on ``axis``; the reference itself lies at 0.5.

    A logistic curve of the logarithm of (value / reference): no value is cut off, twice as good and half as good lie
    equally far from the reference, and no other row moves it.

    >>> radial(2.0, 1.0, PERFORMANCE), radial(1.0, 1.0, PERFORMANCE), radial(2.0, 1.0, COST_PER_TOKEN)
    (0.75, 0.5, 0.25)
    """
    ratio = value / reference if axis.higher_is_better else reference / value
    if ratio <= 0:
        return 0.0
    return round(1 / (1 + 3 ** (-math.log(ratio) / math.log(axis.span))), 12)


def radar(
    table: pa.Table,
    reference: str | None = None,
    axes: Sequence[Axis] = CAP_AXES,
    references: Mapping[str, str] | None = None,
) -> alt.TopLevelMixin:
    """CAP radar: a triangle per deployment, a panel per dataset (and model, where there are several).

    What a row is measured against, at its dataset and batch size: ``references`` by model, else the row's own
    ``cap_reference``, else ``reference``, else the first deployment.

    Args:
        table: the CAP table.
        reference: deployment that the axes are measured against.
        axes: what the corners are.
        references: model → deployment, where models have references of their own.

    Raises:
        NothingToDraw: no row has all axes and a reference.
    """
    rows = _complete(table, [a.column for a in axes], positive=True)
    default = reference or table["deployment"][0].as_py()
    for name in {default, *(references or {}).values()} - set(_deployments(rows)):
        if reference or references:
            raise NothingToDraw(
                f"Reference deployment {name!r} has no row with cost, accuracy and throughput. "
                f"{nearest(name, _deployments(rows))}"
            )
    measured = {(r["deployment"], r["dataset"], r["batch_size"]): r for r in rows}
    several = len({r["model"] for r in rows}) > 1
    pairs: list[tuple[str, Row, Row]] = []
    for row in rows:
        name = (references or {}).get(row["model"]) or row["cap_reference"] or default
        anchor = measured.get((name, row["dataset"], row["batch_size"]))
        if anchor is None:  # the reference's only point on that dataset, as the classes have it
            points_of = [r for r in rows if (r["deployment"], r["dataset"]) == (name, row["dataset"])]
            anchor = points_of[0] if len(points_of) == 1 else None
        if anchor is not None:
            panel = f"{row['model']}, {row['dataset']}" if several else str(row["dataset"])
            pairs.append((panel, row, anchor))
    if not pairs:
        raise NothingToDraw("No deployment was measured at a dataset and batch size of its reference deployment.")

    batches = sorted({row["batch_size"] for _, row, _ in pairs if row["batch_size"] is not None})
    choose = len(batches) > 1 and all(row["batch_size"] is not None for _, row, _ in pairs)
    if not choose:  # one point per deployment: the one with the largest batch
        largest = {(pair[0], pair[1]["deployment"]): pair for pair in sorted(pairs, key=_by_batch_size)}
        pairs = [pair for pair in pairs if largest[pair[0], pair[1]["deployment"]] is pair]
    by_panel: dict[str, list[tuple[Row, Row]]] = {}
    for panel, row, anchor in pairs:
        by_panel.setdefault(panel, []).append((row, anchor))
    everyone = _deployments(row for _, row, _ in pairs)
    own_legends = len(by_panel) > 1 and (bool(references) or len(everyone) > MAX_SERIES)
    anchored = _deployments(anchor for _, _, anchor in pairs)

    web, panels, cut = _web(axes), [], False
    for panel, group in list(by_panel.items())[:MAX_PANELS]:
        present = _deployments(row for row, _ in group) if own_legends else everyone
        names = _series([*(n for n in anchored if n in present), *present])
        names = [n for n in present if n in names]
        cut |= len(names) < len(present)
        points = [p for row, anchor in group if row["deployment"] in names for p in _corners(row, anchor, axes)]
        panels.append(_radar_panel(points, web, names, choose).properties(title=alt.Title(panel, anchor="middle")))
    chart = alt.concat(*panels, columns=2)
    if own_legends:
        chart = chart.resolve_scale(color="independent", shape="independent")
    if choose:
        options = alt.binding_select(options=batches, name="batch size ")
        chart = chart.add_params(alt.param(name="radar_batch_size", value=batches[-1], bind=options))
    notes = [f"Reference (the dashed triangle): {', '.join(anchored)}. Further out is better on every axis."]
    if cut or len(by_panel) > MAX_PANELS:
        notes.append(f"Up to {MAX_SERIES} deployments in up to {MAX_PANELS} panels are drawn; the tables have all.")
    if choose:
        notes.append(f"Drawn at batch size {batches[-1]} unless another is chosen.")
    return finish(chart, "CAP radar", notes)


def _by_batch_size(pair: tuple[str, Row, Row]) -> int:
    return pair[1]["batch_size"] or 0


def _corners(row: Row, anchor: Row, axes: Sequence[Axis]) -> list[Row]:
    found = []
    for i, axis in enumerate(axes):
        distance = radial(row[axis.column], anchor[axis.column], axis)
        angle = _angle(i, len(axes))
        found.append(
            {
                "deployment": row["deployment"],
                "dataset": row["dataset"],
                "batch_size": row["batch_size"],
                "corner": i,
                "axis": axis.label,
                "value": row[axis.column],
                "unit": UNITS.get(axis.column, axis.column),
                "against": f"{row[axis.column] / anchor[axis.column]:.3g} × {anchor['deployment']}",
                "x": distance * math.cos(angle),
                "y": distance * math.sin(angle),
            }
        )
    return found


def _radar_panel(points: list[Row], web: Sequence[alt.Chart], names: Sequence[str], choose: bool) -> alt.LayerChart:
    base = alt.Chart(alt.Data(values=points))
    if choose:
        base = base.transform_filter("datum.batch_size == radar_batch_size")
    place = {"x": _bare("x"), "y": _bare("y"), "color": _colour(names)}
    line = {**place, "order": alt.Order("corner:Q"), "detail": "deployment:N"}
    shape = base.mark_line(interpolate="linear-closed", filled=True, fillOpacity=0.06, strokeWidth=0)
    outline = base.mark_line(interpolate="linear-closed", strokeWidth=2)
    dots = base.mark_point(filled=True, size=55, opacity=1)
    tips = [
        _tip("deployment:N", "deployment"),
        _tip("axis:N", "axis"),
        _tip("value:Q", "value", ".4~g"),
        _tip("unit:N", "unit"),
        _tip("against:N", "against the reference"),
        _tip("batch_size:Q", "batch size"),
    ]
    return alt.layer(
        *web, shape.encode(**line), outline.encode(**line), dots.encode(**place, shape=_shape(names), tooltip=tips)
    ).properties(width=390, height=300)


def _deployments(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Deployments in order of appearance."""
    return list(dict.fromkeys(r["deployment"] for r in rows))


def _angle(corner: int, corners: int) -> float:
    return math.pi / 2 - 2 * math.pi * corner / corners


def _web(axes: Sequence[Axis]) -> list[alt.Chart]:
    """Rings at ¼, ½ (the reference) and ¾ of the axes, their ratios, spokes and names."""
    rings, labels, names, spokes = [], [], [], []
    for i, axis in enumerate(axes):
        angle = _angle(i, len(axes))
        cos, sin = math.cos(angle), math.sin(angle)
        spokes += [{"spoke": i, "x": 0, "y": 0}, {"spoke": i, "x": cos, "y": sin}]
        names.append({"x": 1.12 * cos, "y": 1.12 * sin - (0.1 if sin < 0 else 0), "text": axis.label})
        for ring in (0.25, 0.5, 0.75):
            rings.append({"ring": ring, "corner": i, "x": ring * cos, "y": ring * sin})
            steps = (ring - 0.5) / 0.25 * (1 if axis.higher_is_better else -1)
            beside = {"x": ring * cos + 0.13 * sin, "y": ring * sin - 0.1 * cos}  # clockwise of the axis
            labels.append({**beside, "text": f"{axis.span**steps:.3g}×"})

    def draw(values: list[Row]) -> alt.Chart:
        return alt.Chart(alt.Data(values=values)).encode(x=_bare("x"), y=_bare("y"))

    closed = draw(rings).encode(order="corner:Q", detail="ring:Q")
    thin, dashed = "datum.ring != 0.5", "datum.ring == 0.5"
    return [
        draw(spokes).mark_line(strokeWidth=1, opacity=0.35, style="muted").encode(detail="spoke:N"),
        closed.transform_filter(thin).mark_line(
            interpolate="linear-closed", strokeWidth=1, opacity=0.45, style="muted"
        ),
        closed.transform_filter(dashed).mark_line(
            interpolate="linear-closed", strokeWidth=1.2, strokeDash=[4, 3], style="muted"
        ),
        draw(labels).mark_text(fontSize=9, style="faint").encode(text="text:N"),
        draw(names).mark_text(fontSize=12, fontWeight="bold").encode(text="text:N"),
    ]


def _bare(name: str) -> alt.X | alt.Y:
    kind = alt.X if name == "x" else alt.Y
    domain = [-1.3, 1.3] if name == "x" else [-0.75, 1.25]
    return kind(f"{name}:Q", scale=alt.Scale(domain=domain, nice=False, zero=False), axis=None)


# --- trade-off ----------------------------------------------------------------------------------------------------


def tradeoff(table: pa.Table, cost: str = "usd_per_million_tokens", panel: str = "dataset") -> alt.TopLevelMixin:
    """Throughput against cost, coloured by accuracy; rings and a line mark the Pareto frontier, bars the intervals.

    The frontier is taken over cost, accuracy and throughput within each panel: a ringed point is beaten by no other in
    all three. The line joins those of them that are on the frontier of cost and throughput alone.
    """
    rows = _complete(table, [cost, "accuracy", "output_tokens_per_s"], positive=True)
    if len(rows) > 1 and len({r[cost] for r in rows}) == 1:
        raise NothingToDraw(f"Every point has the same cost ({UNITS[cost]}: {rows[0][cost]:,.6g}).")
    for value in dict.fromkeys(r[panel] for r in rows):
        _mark_frontier([r for r in rows if r[panel] == value], cost)
    told, kinds = _told_apart(rows)
    kept = (
        told,
        "deployment",
        "batch_size",
        "accuracy",
        "accuracy_stderr",
        "pareto_frequency",
        "frontier",
        "staircase",
    )
    kept += ("label", panel, *(f"{c}{end}" for c in (cost, "output_tokens_per_s") for end in ("", "_low", "_high")))
    if told == "deployment":
        for row in rows:
            row["label"] = "" if row["batch_size"] is None or not row["fastest"] else str(row["batch_size"])
        labels = "Small numbers: batch size."
    else:  # too many for a legend: the names of those on the frontier stand beside them
        for value in dict.fromkeys(r[panel] for r in rows):
            _name_frontier([r for r in rows if r[panel] == value], cost)
        labels = "Names: deployments on the frontier."
    if len(rows) > MAX_POINTS:  # a browser draws these without a pause; of the others the fastest are kept
        rows = sorted(rows, key=lambda r: (not r["frontier"], -r["output_tokens_per_s"]))[:MAX_POINTS]
        labels += f" The {MAX_POINTS} fastest points, and the frontier."
    rows = [{k: r[k] for k in kept} for r in rows]
    shares = [r["accuracy"] for r in rows]
    colour = alt.Color(
        "accuracy:Q",
        title="accuracy",
        scale=alt.Scale(scheme="viridis", domain=_padded(shares), nice=False),
        legend=alt.Legend(format=".0%", gradientLength=110),
    )
    panels = []
    for value in dict.fromkeys(r[panel] for r in rows):
        group = [r for r in rows if r[panel] == value]
        base = alt.Chart(alt.Data(values=group))
        x_scale, y_scale = (_log([r[c] for r in group]) for c in (cost, "output_tokens_per_s"))
        x = alt.X(f"{cost}:Q", title=UNITS[cost], scale=x_scale, axis=_log_axis([r[cost] for r in group], number="~g"))
        rate = UNITS["output_tokens_per_s"]
        rates = _log_axis([r["output_tokens_per_s"] for r in group])
        y = alt.Y("output_tokens_per_s:Q", title=rate, scale=y_scale, axis=rates)
        layers = []
        for column, across in ((cost, True), ("output_tokens_per_s", False)):
            bars = [r for r in group if r.get(f"{column}_low") is not None and r.get(f"{column}_high") is not None]
            if bars:
                ends = (f"{column}_low:Q", f"{column}_high:Q")
                rule = alt.Chart(alt.Data(values=bars)).mark_rule(opacity=0.55, style="muted", clip=True)
                if across:
                    layers.append(rule.encode(x=alt.X(ends[0], scale=x_scale), x2=alt.X2(ends[1]), y=y))
                else:
                    layers.append(rule.encode(y=alt.Y(ends[0], scale=y_scale), y2=alt.Y2(ends[1]), x=x))
        line = alt.Chart(alt.Data(values=[r for r in group if r["staircase"]]))
        layers.append(line.mark_line(strokeWidth=1.5, strokeDash=[5, 3], style="muted").encode(x=x, y=y))
        layers.append(
            base.transform_filter("datum.frontier")
            .mark_point(filled=False, size=260, strokeWidth=1.5, opacity=1, shape="circle", style="ring")
            .encode(x=x, y=y)
        )
        layers.append(
            base.mark_point(filled=True, size=95, opacity=1, strokeWidth=0.6).encode(
                x=x,
                y=y,
                color=colour,
                shape=_shape(kinds, told),
                tooltip=[
                    _tip("deployment:N", "deployment"),
                    _tip("batch_size:Q", "batch size"),
                    _tip("output_tokens_per_s:Q", "tokens/s", ".4~g"),
                    _tip(f"{cost}:Q", UNITS[cost], ".4~g"),
                    _tip("accuracy:Q", "accuracy", ".1%"),
                    _tip("accuracy_stderr:Q", "standard error", ".2%"),
                    _tip("pareto_frequency:Q", "how often on the frontier", ".0%"),
                ],
            )
        )
        layers.append(
            alt.Chart(alt.Data(values=[r for r in group if r["label"]]))
            .mark_text(
                fontSize=9.5, style="faint", **({"dy": -15} if told == "deployment" else {"dx": 13, "align": "left"})
            )
            .encode(x=x, y=y, text="label:N")
        )
        panels.append(alt.layer(*layers).properties(width=330, height=270, title=_label(value)))
    return finish(
        alt.concat(*panels, columns=2),
        "Throughput against cost",
        [
            "Ringed: on the Pareto frontier of cost, accuracy and throughput; dashed: that of cost and throughput.",
            f"Up and to the left is better. Bars: 95% intervals. {labels}",
        ],
    )


def _mark_frontier(rows: Sequence[Row], cost: str) -> None:
    import numpy as np

    c, a, t = (np.array([r[k] for r in rows], float) for k in (cost, "accuracy", "output_tokens_per_s"))
    beaten, beaten_2d = dominated(c, a, t), dominated(c, np.zeros_like(a), t)
    fastest: dict[Any, Row] = {}
    for row, hidden, off_line in zip(rows, beaten, beaten_2d, strict=True):
        row["frontier"], row["staircase"], row["fastest"] = not hidden, not off_line, False
        key = row["batch_size"]
        if key not in fastest or row["output_tokens_per_s"] > fastest[key]["output_tokens_per_s"]:
            fastest[key] = row
    for row in fastest.values():  # one label per batch size, at its fastest point: the others lie close by
        row["fastest"] = True


def _name_frontier(rows: Sequence[Row], cost: str) -> None:
    """Names for the points of the frontier, from the top; one that would lie over another's is left out."""
    spans = {
        c: max(1e-9, math.log(max(r[c] for r in rows) / min(r[c] for r in rows))) for c in (cost, PERFORMANCE.column)
    }
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda r: -r[PERFORMANCE.column]):
        row["label"] = ""
        x, y = (math.log(row[c]) / span for c, span in spans.items())
        if row["frontier"] and all(abs(x - u) > 0.4 or abs(y - v) > 0.06 for u, v in placed):
            row["label"] = row["deployment"]
            placed.append((x, y))


def _told_apart(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The column that shapes stand for, and its values: the finest of which there are no more than shapes."""
    for column in ("deployment", "precision", "engine", "model"):
        values = list(dict.fromkeys(r[column] for r in rows if r[column] is not None))
        if 0 < len(values) <= MAX_SERIES:
            return column, values
    return "status", list(dict.fromkeys(r["status"] for r in rows))


# --- bytes ---------------------------------------------------------------------------------------------------------

BYTE_COUNTS = {
    "decode_mbu_bytes": "MBU, eq. (1): every expert",
    "decode_s_mbu_bytes": "S-MBU, eq. (3) as printed",
    "decode_s_mbu_complete_bytes": "S-MBU, complete count",
}
MEASURED = "measured"


def bytes_per_layer(table: pa.Table) -> alt.TopLevelMixin:
    """Mean bytes that a decode step reads per layer, against batch size, by who counts; one panel per deployment.

    The paper's Figure 3. Where several datasets were run, the first one's rows are drawn (tooltips name it).
    """
    rows = [r for r in table.to_pylist() if r["layers"] and r["batch_size"] and r["decode_s_mbu_bytes"] is not None]
    if not rows:
        raise NothingToDraw("No row has the bytes of a decode step (`decode_s_mbu_bytes`) and the number of layers.")
    rows = [r for r in rows if r["dataset"] == rows[0]["dataset"]]
    points = [
        {
            "deployment": r["deployment"],
            "dataset": r["dataset"],
            "batch_size": r["batch_size"],
            "series": label,
            "bytes": r[column] / r["layers"],
            "step_bytes": r[column],
            "layers": r["layers"],
        }
        for r in rows
        for column, label in BYTE_COUNTS.items()
        if r[column] is not None
    ]
    return _byte_panels(
        points, "Bytes read per layer and decode step", f"Mean over layers and steps; {rows[0]['dataset']}."
    )


def measured_bytes(rows: Sequence[Mapping[str, Any]], panel: str = "model") -> alt.TopLevelMixin:
    """Predicted against measured bytes of a profiling run.

    Args:
        rows: one dict per point with ``batch_size``, ``panel`` and any of ``mbu_bytes``, ``s_mbu_bytes``,
            ``s_mbu_complete_bytes``, ``measured_bytes``.
    """
    columns = {**{k.removeprefix("decode_"): v for k, v in BYTE_COUNTS.items()}, "measured_bytes": MEASURED}
    points = [
        {
            "deployment": str(r.get(panel)),
            "dataset": str(r.get("layer", "")),
            "batch_size": r["batch_size"],
            "series": label,
            "bytes": r[column],
            "step_bytes": r[column],
        }
        for r in rows
        for column, label in columns.items()
        if r.get(column) is not None
    ]
    if not points:
        raise NothingToDraw("The table of measured bytes is empty.")
    subtitle = "Read in one decode step; each panel has a scale of its own."
    return _byte_panels(points, "Predicted and measured bytes", subtitle, one_scale=False)


def _byte_panels(points: list[Row], title: str, subtitle: str, one_scale: bool = True) -> alt.TopLevelMixin:
    names = _series(_deployments(points))
    batches = sorted({p["batch_size"] for p in points})
    order = [*BYTE_COUNTS.values(), MEASURED]
    counts = [c for c in order if any(p["series"] == c for p in points)]
    colour = alt.Color(
        "series:N", title="counted by", scale=alt.Scale(domain=counts, range=[COLOURS[order.index(c)] for c in counts])
    )
    dash = alt.StrokeDash(
        "series:N",
        title="counted by",
        scale=alt.Scale(domain=counts, range=[[[6, 3], [1, 0], [2, 2], [8, 2, 2, 2]][order.index(c)] for c in counts]),
    )
    shape = alt.Shape(
        "series:N", title="counted by", scale=alt.Scale(domain=counts, range=[SHAPES[order.index(c)] for c in counts])
    )
    panels = []
    for name in names:
        own = [p for p in points if p["deployment"] == name]
        top = max(p["bytes"] for p in (points if one_scale else own)) * 1.08
        base = alt.Chart(alt.Data(values=own)).encode(
            x=_batch_axis(batches),
            y=alt.Y("bytes:Q", title="bytes", scale=alt.Scale(domain=[0, top], nice=True), axis=_bytes_axis()),
            color=colour,
        )
        tips = [
            _tip("deployment:N", ""),
            _tip("dataset:N", "dataset"),
            _tip("batch_size:Q", "batch size"),
            _tip("series:N", "counted by"),
            _tip("bytes:Q", "bytes per layer", ",.0f"),
            _tip("step_bytes:Q", "bytes per step", ",.0f"),
        ]
        panels.append(
            alt.layer(
                base.mark_line(strokeWidth=2).encode(strokeDash=dash),
                base.mark_point(filled=True, size=60, opacity=1).encode(shape=shape, tooltip=tips),
            ).properties(width=235, height=220, title=name)
        )
    return finish(alt.concat(*panels, columns=3), title, [subtitle, *_cut(names, points)])


def measured_bytes_of_layers(rows: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    """The same for one model, layer by layer."""
    return measured_bytes(
        [{**r, "panel": r["layer"] if " " in r["layer"] else f"layer {r['layer']}"} for r in rows], "panel"
    )


#: Charts of the tables by which the report checks itself, by the name that its params give.
CHECKS = {"measured_bytes": measured_bytes_of_layers}


# --- curves over batch size ---------------------------------------------------------------------------------------


def by_batch(table: pa.Table) -> alt.TopLevelMixin:
    """Throughput and time per output token against batch size, with 95% intervals; one row of panels per dataset."""
    columns = {"output_tokens_per_s": ("generated tokens/s", ""), "tpot_s": ("time per output token", "s")}
    rows = [
        r
        for r in table.to_pylist()
        if r["batch_size"] and any(r[c] is not None for c in columns) and r["status"] != "failed"
    ]
    if not rows:
        raise NothingToDraw("No row has a throughput or a time per output token.")
    names = _series(_deployments(rows))
    cut = _cut(names, rows)
    rows = [r for r in rows if r["deployment"] in names]
    batches = sorted({r["batch_size"] for r in rows})
    panels = []
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        for column, (label, unit) in columns.items():
            kept = ("deployment", "dataset", "batch_size", column, f"{column}_low", f"{column}_high")
            group = [{k: r[k] for k in kept} for r in rows if r["dataset"] == dataset and r[column] is not None]
            if not group:
                continue
            values = [r[column] for r in group]
            scale = _log(values)
            y = alt.Y(f"{column}:Q", title=label, scale=scale, axis=_log_axis(values, unit))
            base = alt.Chart(alt.Data(values=group)).encode(x=_batch_axis(batches), color=_colour(names))
            bars = [r for r in group if r[f"{column}_low"] is not None and r[f"{column}_high"] is not None]
            layers = [base.mark_line(strokeWidth=2, opacity=0.85).encode(y=y)]
            if bars:
                layers.append(
                    alt.Chart(alt.Data(values=bars))
                    .mark_rule(strokeWidth=1.5)
                    .encode(
                        x=_batch_axis(batches),
                        y=alt.Y(f"{column}_low:Q", scale=scale, title=label),
                        y2=f"{column}_high:Q",
                        color=_colour(names),
                    )
                )
            tips = [
                _tip("deployment:N", ""),
                _tip("dataset:N", "dataset"),
                _tip("batch_size:Q", "batch size"),
                _tip(f"{column}:Q", label, ".4~s"),
                _tip(f"{column}_low:Q", "95% from", ".4~s"),
                _tip(f"{column}_high:Q", "to", ".4~s"),
            ]
            layers.append(
                base.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=_shape(names), tooltip=tips)
            )
            panels.append(alt.layer(*layers).properties(width=330, height=210, title=_label(dataset)))
    return finish(
        alt.concat(*panels, columns=2), "Throughput and latency against batch size", ["Bars: 95% intervals.", *cut]
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


def utilization(table: pa.Table) -> alt.TopLevelMixin:
    """Decode utilization of memory bandwidth and of compute against batch size; a panel per deployment and resource."""
    everything = table.to_pylist()
    columns = [c for group in UTILIZATIONS.values() for c in group]
    rows = [r for r in everything if r["batch_size"] and any(r[c] is not None for c in columns)]
    if not rows:
        raise NothingToDraw("No row has a utilization.")
    rows = [r for r in rows if r["dataset"] == rows[0]["dataset"]]
    names = _series(_deployments(rows))
    batches = sorted({r["batch_size"] for r in rows})
    labels = list(UTILIZATIONS["Compute"].values())
    colour = alt.Color("series:N", title="count", scale=alt.Scale(domain=labels, range=list(COLOURS[:3])))
    shape = alt.Shape("series:N", title="count", scale=alt.Scale(domain=labels, range=list(SHAPES[:3])))
    lines = []
    for resource, counts in UTILIZATIONS.items():
        points = [
            {
                "deployment": r["deployment"],
                "dataset": r["dataset"],
                "batch_size": r["batch_size"],
                "series": label,
                "column": column,
                "value": r[column],
                "low": r[f"{column}_low"],
                "high": r[f"{column}_high"],
            }
            for r in rows
            for column, label in counts.items()
            if r[column] is not None and r["deployment"] in names
        ]
        if not points:
            continue
        top = max(max(p["value"], p["high"] or 0) for p in points) * 1.08
        scale = alt.Scale(domain=[0, top], nice=True)
        panels = []
        for name in names:
            group = [p for p in points if p["deployment"] == name]
            base = alt.Chart(alt.Data(values=group)).encode(x=_batch_axis(batches), color=colour)
            y = alt.Y("value:Q", title=f"{resource.lower()} utilization", scale=scale, axis=alt.Axis(format=".3~p"))
            tips = [
                _tip("deployment:N", ""),
                _tip("dataset:N", "dataset"),
                _tip("column:N", "column"),
                _tip("batch_size:Q", "batch size"),
                _tip("value:Q", "utilization", ".2%"),
                _tip("low:Q", "95% from", ".2%"),
                _tip("high:Q", "to", ".2%"),
            ]
            layers = [
                base.mark_line(strokeWidth=2).encode(y=y),
                alt.Chart(alt.Data(values=[p for p in group if p["low"] is not None]))
                .mark_rule(strokeWidth=1.5)
                .encode(x=_batch_axis(batches), y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour),
                base.mark_point(filled=True, size=55, opacity=1).encode(y=y, shape=shape, tooltip=tips),
            ]
            if top > 1:
                layers.append(
                    alt.Chart(alt.Data(values=[{"one": 1}]))
                    .mark_rule(strokeDash=[3, 3], style="muted")
                    .encode(y="one:Q")
                )
            panels.append(alt.layer(*layers).properties(width=235, height=190, title=name))
        lines.append(alt.concat(*panels, columns=3))
    return finish(
        alt.vconcat(*lines),
        "Utilization in decode",
        [
            f"Share of the peak; {rows[0]['dataset']}. Bars: 95% intervals. Above 1 is not cut off: it is a warning.",
            *_cut(names, rows),
        ],
    )


# --- routing -------------------------------------------------------------------------------------------------------


def expert_heatmap(rows: Iterable[Mapping[str, Any]], title: str = "") -> alt.TopLevelMixin:
    """How often each expert of each layer was chosen, relative to an even load.

    Args:
        rows: dicts with ``layer``, ``expert`` and ``load`` (1: as often as under an even load), optionally
            ``frequency`` (share of tokens that chose it).
    """
    points = [dict(r) for r in rows if r.get("load") is not None]
    if not points:
        raise NothingToDraw("The routing analysis has no activation frequencies.")
    layers = len({p["layer"] for p in points})
    experts = len({p["expert"] for p in points})
    width = min(900, max(220, 34 * experts if experts <= 16 else 12 * experts))
    height = min(900, max(60, 30 * layers if layers <= 12 else 12 * layers))
    scale = alt.Scale(scheme="blueorange", domain=[0, max(2.0, *(p["load"] for p in points))], domainMid=1)
    colour = alt.Color("load:Q", title="load", scale=scale, legend=alt.Legend(format=".2~f", gradientLength=100))
    panels = [
        alt.Chart(alt.Data(values=group))
        .mark_rect()
        .encode(
            x=alt.X("expert:O", title="expert", axis=_sparse_axis(experts)),
            y=alt.Y("layer:O", title="layer", axis=_sparse_axis(layers)),
            color=colour,
            tooltip=[
                _tip("layer:O", "layer"),
                _tip("expert:O", "expert"),
                _tip("load:Q", "load (1: even)", ".3f"),
                _tip("frequency:Q", "share of tokens", ".2%"),
            ],
        )
        .properties(width=width, height=height, title=dataset)
        for dataset, group in _by_dataset(points).items()
    ]
    chart = alt.concat(*panels, columns=2 if width < 450 else 1)
    return finish(chart, "Expert activation", [f"{title} 1: as often as under an even load.".strip()])


def _by_dataset(points: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for p in points:
        groups.setdefault(str(p.get("dataset") or ""), []).append(p)
    return groups


def _sparse_axis(values: int) -> alt.Axis:
    every = max(1, math.ceil(values / 32))
    expression = f"toNumber(datum.label) % {every} == 0 ? datum.label : ''" if every > 1 else "datum.label"
    return alt.Axis(labelExpr=expression, labelAngle=0, ticks=every == 1)


def expected_unique_experts(experts: int, top_k: int, tokens: float) -> float:
    """Distinct experts that ``tokens`` tokens choose under uniform, independent routing: E·(1 − (1 − k/E)^n).

    >>> expected_unique_experts(8, 2, 1)
    2.0
    """
    return experts * (1 - (1 - top_k / experts) ** tokens)


def unique_experts(rows: Iterable[Mapping[str, Any]], title: str = "") -> alt.TopLevelMixin:
    """Distinct experts per MoE layer against tokens in the step, with the closed form for uniform routing.

    Args:
        rows: dicts with ``layer``, ``tokens``, ``unique_experts`` (mean), ``experts``, ``top_k``, and optionally
            ``steps`` (how many steps the mean is of).
    """
    points = [dict(r) for r in rows if r.get("unique_experts") is not None and r["tokens"] > 0]
    if not points:
        raise NothingToDraw("The routing analysis has no counts of unique experts.")
    largest = max(p["tokens"] for p in points)
    curves = []
    for experts, top_k in sorted({(p["experts"], p["top_k"]) for p in points}):
        for i in range(61):
            tokens = largest ** (i / 60)
            curves.append(
                {
                    "tokens": tokens,
                    "unique_experts": expected_unique_experts(experts, top_k, tokens),
                    "of": f"{experts} experts, top {top_k}",
                }
            )
    scale = alt.Scale(type="log", base=2, domain=[1, max(2, largest)], nice=False)
    x = alt.X("tokens:Q", title="tokens in the step", scale=scale, axis=alt.Axis(format="~s", grid=False))
    y = alt.Y(
        "unique_experts:Q",
        title="distinct experts per layer",
        scale=alt.Scale(domain=[0, max(p["experts"] for p in points)]),
    )
    line = (
        alt.Chart(alt.Data(values=curves))
        .mark_line(strokeDash=[5, 3], strokeWidth=1.5, style="muted")
        .encode(x=x, y=y, detail="of:N", tooltip=[_tip("of:N", "uniform routing"), _tip("unique_experts:Q", "", ".2f")])
    )
    tips = [
        _tip("layer:O", "layer"),
        _tip("tokens:Q", "tokens", ".4~g"),
        _tip("unique_experts:Q", "distinct experts, mean", ".3f"),
        _tip("steps:Q", "steps"),
    ]
    layers = sorted({p["layer"] for p in points})
    shades = alt.Scale(scheme="viridis", domain=[layers[0], max(layers[-1], layers[0] + 1)])
    colour = alt.Color("layer:Q", title="layer", scale=shades, legend=_layer_legend(layers))
    panels = []
    for dataset, group in _by_dataset(points).items():
        dots = alt.Chart(alt.Data(values=group)).mark_point(filled=True, size=40, opacity=0.75)
        dots = dots.encode(x=x, y=y, color=colour, tooltip=tips)
        panels.append(alt.layer(line, dots).properties(width=380, height=240, title=dataset))
    return finish(
        alt.concat(*panels, columns=2),
        "Distinct experts against tokens in a step",
        [f"{title} Dashed: uniform routing, E·(1 − (1 − k/E)^n).".strip()],
    )


def _layer_legend(layers: Sequence[int]) -> alt.Legend:
    return alt.Legend(values=layers if len(layers) <= 6 else alt.Undefined, format="d")


# --- the paper -----------------------------------------------------------------------------------------------------


def paper_figure(
    table: pa.Table, references: Mapping[str, str], dataset: str, title: str, source: str | None = None
) -> alt.TopLevelMixin:
    """CAP radars as in the paper's Figures 4 and 5: one panel per model, against a reference deployment each.

    Args:
        table: the CAP table with the paper's rows.
        references: model → deployment whose values are the dashed triangle; panels are in this order.
        dataset: whose rows to draw.
        source: only rows whose ``source`` ends so (``Table 3``).

    Raises:
        NothingToDraw: the table has no such rows.
    """
    order = list(references)
    rows = [r for r in table.to_pylist() if r["dataset"] == dataset and r["model"] in references]
    rows = [r for r in rows if source is None or (r["source"] or "").endswith(source)]
    if not rows:
        raise NothingToDraw(f"No row for dataset {dataset!r} and models {', '.join(order)}.")
    rows.sort(key=lambda r: order.index(r["model"]))
    chart = radar(
        pa.Table.from_pylist(rows, schema=table.schema),
        axes=(COST_TO_BUY, ACCURACY, PERFORMANCE),
        references=references,
    )
    shown = ", ".join(references.values())
    return finish(
        chart,
        title,
        [f"{dataset}, as printed. Reference (the dashed triangle): {shown}. Further out is better on every axis."],
    )


# --- all of them ---------------------------------------------------------------------------------------------------

Draw = Callable[[pa.Table, str | None], alt.TopLevelMixin]

#: Charts of the CAP table: name → (section of the report, caption, function of table and reference deployment).
STANDARD: dict[str, tuple[str, str, Draw]] = {
    "cap-radar": (
        "trade-off",
        "Cost, accuracy and performance of each deployment relative to the reference, which is the dashed triangle on "
        "every axis. Distances follow the logarithm of the ratio; the marks on an axis say which ratio lies where. "
        "Accuracy has a finer scale than the other two. Another deployment in the table moves none of these.",
        lambda table, reference: radar(table, reference),
    ),
    "throughput-against-cost": (
        "trade-off",
        "Each point is a deployment at one batch size, coloured by accuracy. No other point is better in one of cost, "
        "accuracy and throughput and no worse in the others where there is a ring.",
        lambda table, _: tradeoff(table),
    ),
    "throughput-against-purchase": (
        "trade-off",
        "The same with the cost of buying the deployment. What is cheap per token need not be cheap to buy.",
        lambda table, _: tradeoff(table, "hardware_usd"),
    ),
    "throughput-and-latency": (
        "performance",
        "Batching buys throughput with latency: both axes are logarithmic.",
        lambda table, _: by_batch(table),
    ),
    "utilization": (
        "utilization",
        "At small batches MBU credits the hardware with reading experts that no token chose. Above, memory bandwidth; "
        "below, compute.",
        lambda table, _: utilization(table),
    ),
    "bytes-per-layer": (
        "bytes",
        "What MBU and S-MBU say a decode step reads per layer. As printed, they meet when a batch activates every "
        "expert. The complete count adds router, norms, output head, embedding rows and activations.",
        lambda table, _: bytes_per_layer(table),
    ),
}

#: Charts of a deployment's routing analysis: name → (section, caption, function of its rows and the deployment's name).
ROUTING: dict[str, tuple[str, str, Callable[[Sequence[Row], str], alt.TopLevelMixin]]] = {
    "experts": (
        "routing",
        "How often the router chose each expert, relative to an even load.",
        lambda rows, name: expert_heatmap([r for r in rows if r.get("expert") is not None], f"{name}."),
    ),
    "unique-experts": (
        "routing",
        "Distinct experts that a step touches per layer. Below the dashed line tokens agree more than by chance.",
        lambda rows, name: unique_experts(
            [r for r in rows if r.get("tokens") is not None and r.get("expert") is None], f"{name}."
        ),
    ),
}


#: The paper's figures, drawn where the table has its rows: name → (section, caption, function of the table).
PAPER: dict[str, tuple[str, str, Callable[[pa.Table], alt.TopLevelMixin]]] = {
    "paper-figure-4": (
        "trade-off",
        "The paper's Figure 4 from its Table 3: equal cost, precision traded for throughput.",
        lambda table: paper_figure(table, FIGURE_4, "gsm8k", "Figure 4: CA and CP configurations", "Table 3"),
    ),
    "paper-figure-5": (
        "trade-off",
        "The paper's Figure 5 from its Table 4: equal accuracy, GPUs traded for throughput.",
        lambda table: paper_figure(table, FIGURE_5, "gsm8k", "Figure 5: PA and AC configurations", "Table 4"),
    ),
}


def draw_all(
    table: pa.Table, reference: str | None = None, routing: Mapping[str, Sequence[Row]] | None = None
) -> tuple[dict[str, alt.TopLevelMixin], dict[str, str]]:
    """Every chart that there is data for.

    Args:
        table: the CAP table.
        reference: deployment that the radar measures against; by default the first.
        routing: deployment → rows of its routing analysis.

    Returns:
        ``(name → chart, name → why it is not drawn)``.
    """
    jobs: dict[str, Callable[[], alt.TopLevelMixin]] = {
        name: lambda draw=draw: draw(table, reference) for name, (_, _, draw) in STANDARD.items()
    }
    if "paper" in table["status"].to_pylist():
        jobs |= {name: lambda draw=draw: draw(table) for name, (_, _, draw) in PAPER.items()}
    for deployment, rows in (routing or {}).items():
        for name, (_, _, draw) in ROUTING.items():
            jobs[f"{name}-{deployment}"] = lambda draw=draw, rows=rows, deployment=deployment: draw(rows, deployment)
    drawn, left_out = {}, {}
    for name, job in jobs.items():
        try:
            drawn[name] = job()
        except NothingToDraw as error:
            left_out[name] = str(error)
    return drawn, left_out


def caption_of(name: str) -> tuple[str, str]:
    """``(section, caption)`` of a chart that :func:`draw_all` names."""
    for registry in (STANDARD, PAPER):
        if name in registry:
            return registry[name][:2]
    stem = max((n for n in ROUTING if name.startswith(f"{n}-")), key=len)
    return ROUTING[stem][:2]


# --- writing -------------------------------------------------------------------------------------------------------


def theme(mode: str = "light") -> dict[str, Any]:
    """Vega-Lite config: fonts, and the neutral colours for a light or a dark page."""
    ink, muted, grid = INK[mode]
    return {
        "font": FONT,
        "background": "transparent",
        "padding": 8,
        "view": {"stroke": None},
        "title": {
            "anchor": "start",
            "color": ink,
            "subtitleColor": muted,
            "fontSize": 13,
            "subtitleFontSize": 11.5,
            "subtitlePadding": 5,
            "offset": 12,
        },
        "axis": {
            "labelColor": muted,
            "titleColor": ink,
            "domainColor": muted,
            "tickColor": muted,
            "gridColor": grid,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
        },
        "legend": {
            "labelColor": ink,
            "titleColor": muted,
            "labelFontSize": 11,
            "titleFontSize": 11,
            "labelLimit": 240,
            "symbolBaseFillColor": muted,
            "symbolBaseStrokeColor": muted,
        },
        "text": {"color": ink},
        "style": {
            "muted": {"stroke": muted, "color": muted},
            "faint": {"fill": muted, "color": muted},
            "ring": {"color": ink},
        },
        "concat": {"spacing": 26},
    }


def finish(chart: Any, title: str, subtitle: Sequence[str] = ()) -> Any:
    """Give a chart its title and the theme."""
    heading = alt.Title(title, subtitle=list(subtitle), fontSize=16)
    return chart.properties(title=heading, config=alt.Config(**theme()))


def spec(chart: alt.TopLevelMixin, mode: str = "light") -> dict[str, Any]:
    """The chart as a Vega-Lite dict, in the neutral colours of ``mode``."""
    found = chart.to_dict(validate=False)  # its parts were validated when they were made; twice takes seconds
    found["config"] = theme(mode)
    return _renumbered(found)


def _renumbered(found: dict[str, Any]) -> dict[str, Any]:
    """Names that Altair counts over the whole process (``view_7``), counted anew: same table, same text."""
    return json.loads(_RENUMBER["view_"](json.dumps(found)))


def _renumber(prefix: str) -> Callable[[str], str]:
    def function(text: str) -> str:
        seen: dict[str, str] = {}
        return re.sub(rf"\b{prefix}\d+\b", lambda m: seen.setdefault(m[0], f"{prefix}{len(seen)}"), text)

    return function


_RENUMBER = {prefix: _renumber(prefix) for prefix in ("view_", "gradient_", "clip")}


def to_svg(chart: alt.TopLevelMixin | Mapping[str, Any], mode: str = "light") -> str:
    """The chart as SVG text; no browser and no network is needed."""
    return _svg(_json(chart, mode, background="white" if mode == "light" else "transparent"))


@cache
def _svg(text: str) -> str:
    """Drawn once for all the formats that show it."""
    import vl_convert

    return _RENUMBER["clip"](_RENUMBER["gradient_"](vl_convert.vegalite_to_svg(text)))


def to_png(chart: alt.TopLevelMixin | Mapping[str, Any], scale: float = 2.0) -> bytes:
    """The chart as PNG on white."""
    import vl_convert

    return vl_convert.svg_to_png(to_svg(chart), scale=scale)


def to_html(chart: alt.TopLevelMixin | Mapping[str, Any], name: str) -> str:
    """A page with the interactive chart and all of Vega in it: it opens from disk, without a network."""
    found = _dict(chart)
    values = {
        "title": name,
        "spec": found,
        "svg": to_svg(found),
        "themes": themes(),
        "bundle": vega_bundle(),
    }
    return render("chart.html.j2", values)


def themes() -> dict[str, dict[str, Any]]:
    """The config for a light and for a dark page."""
    return {mode: theme(mode) for mode in INK}


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from vl-convert's own copy."""
    import vl_convert

    return vl_convert.javascript_bundle()


def save(chart: alt.TopLevelMixin | Mapping[str, Any], path: str | Path) -> None:
    """Write a chart, atomically, in the format that the suffix names.

    Raises:
        MoecapError: the suffix is none of .svg, .png, .html, .json.
    """
    path = Path(path)
    writers: dict[str, Callable[[], str | bytes]] = {
        ".svg": lambda: to_svg(chart),
        ".png": lambda: to_png(chart),
        ".html": lambda: to_html(chart, path.stem),
        ".json": lambda: json.dumps(_dict(chart)),
    }
    if path.suffix not in writers:
        raise MoecapError(f"{path}: a chart cannot be written as {path.suffix!r}. {nearest(path.suffix, writers)}")
    content = writers[path.suffix]()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_all(
    table: pa.Table,
    folder: str | Path,
    reference: str | None = None,
    routing: Mapping[str, Sequence[Row]] | None = None,
    formats: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, str]:
    """Write every chart of :func:`draw_all` into ``folder`` as NAME.html, NAME.svg and NAME.png (or those in ``only``).

    Returns:
        Charts that there was no data for → why.
    """
    drawn, left_out = draw_all(table, reference, routing)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, chart in drawn.items():
        if only and name not in only:
            continue
        found = spec(chart)
        for suffix in formats or FORMATS:
            save(found, Path(folder) / f"{name}.{suffix}")
    return left_out


def routing_of(files: Iterable[str | Path]) -> dict[str, list[Row]]:
    """Deployment (the folder that holds the file) → rows of its routing analysis."""
    return {Path(path).parent.name: read_parquet(path).to_pylist() for path in files}


def _dict(chart: alt.TopLevelMixin | Mapping[str, Any]) -> dict[str, Any]:
    return dict(chart) if isinstance(chart, Mapping) else spec(chart)


def _json(chart: alt.TopLevelMixin | Mapping[str, Any], mode: str, background: str) -> str:
    found = _dict(chart)
    found["config"] = {**theme(mode), "background": background}
    return json.dumps(found)


# --- small parts ---------------------------------------------------------------------------------------------------


def _complete(table: pa.Table, columns: Sequence[str], positive: bool = False) -> list[Row]:
    rows = [
        r
        for r in table.to_pylist()
        if all(r.get(c) is not None and (not positive or r[c] > 0 or c == "accuracy") for c in columns)
    ]
    if not rows:
        lacking = [c for c in columns if table[c].null_count == table.num_rows]
        what = f"no row has {', '.join(lacking)}" if lacking else f"no row has all of {', '.join(columns)}"
        raise NothingToDraw(f"Nothing to draw: {what}.")
    return rows


def _series(names: Iterable[str]) -> list[str]:
    """Distinct names in order of appearance, as many as there are colours."""
    return list(dict.fromkeys(names))[:MAX_SERIES]


def _cut(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for the subtitle where there are more deployments than colours."""
    total = len(_deployments(rows))
    return [f"{len(names)} of {total} deployments are drawn; the tables have all."] if total > len(names) else []


def _colour(names: Sequence[str]) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=list(COLOURS[: len(names)]))
    return alt.Color("deployment:N", title="deployment", scale=scale)


def _shape(names: Sequence[str], column: str = "deployment") -> alt.Shape:
    scale = alt.Scale(domain=list(names), range=list(SHAPES[: len(names)]))
    return alt.Shape(f"{column}:N", title=column, scale=scale)


def _tip(field: str, title: str, number: str | None = None) -> alt.Tooltip:
    name = title or field.split(":")[0]
    return alt.Tooltip(field, title=name, format=number) if number else alt.Tooltip(field, title=name)


def _label(value: Any) -> str:
    return "" if value is None else str(value)


def _log(values: Sequence[float]) -> alt.Scale:
    low, high = min(values), max(values)
    return alt.Scale(type="log", domain=[low / 1.35, high * 1.45], nice=False)


def _log_axis(values: Sequence[float], unit: str = "", number: str = ".3~s") -> alt.Axis:
    """Ticks at 1, 2, 5 times powers of ten; over more than three decades, at the powers alone."""
    low, high = min(values) / 1.35, max(values) * 1.45
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    return alt.Axis(
        values=[t for t in ticks if low <= t <= high],
        labelExpr=f"format(datum.value, '{number}') + '{unit}'",
        labelOverlap=True,
    )


def _bytes_axis() -> alt.Axis:
    # SI prefixes; "k" and "M" are powers of 1000 here, as in GB/s.
    return alt.Axis(labelExpr="datum.value == 0 ? '0' : format(datum.value, '.3~s') + 'B'")


def _batch_axis(batches: Sequence[int]) -> alt.X:
    values = list(batches) if len(batches) <= 12 else alt.Undefined
    scale = alt.Scale(type="log", base=2, domain=[batches[0] / 1.2, batches[-1] * 1.2], nice=False)
    return alt.X("batch_size:Q", title="batch size", scale=scale, axis=alt.Axis(values=values, format="d", grid=False))


def _padded(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [low, high] if high > low else [max(0.0, low - 0.05), high + 0.05]


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m moecap.charts.standard results/cap.parquet docs/img --only throughput-against-cost --format svg``."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(
        prog="python -m moecap.charts.standard", description="Draw the charts of a CAP table."
    )
    parser.add_argument("cap", help="cap.parquet")
    parser.add_argument("folder", help="where to write NAME.FORMAT")
    parser.add_argument("--reference", help="deployment that the radar measures against; default: the first")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of: {', '.join(STANDARD)}")
    parser.add_argument("--format", nargs="+", dest="formats", default=FORMATS, metavar="FORMAT", help="html, svg, png")
    given = parser.parse_args(arguments)
    try:
        for name in given.only or ():
            if name not in STANDARD:
                raise MoecapError(f"There is no chart {name!r}. {nearest(name, STANDARD)}")
        table = read_parquet(given.cap)
        if given.reference:  # over that of the classes
            at = table.schema.get_field_index("cap_reference")
            table = table.set_column(at, table.schema.field(at), pa.nulls(table.num_rows, pa.string()))
        left_out = write_all(table, given.folder, given.reference, formats=given.formats, only=given.only)
    except MoecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, reason in left_out.items():
        print(f"{name} is not drawn: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
