"""The CAP radar: cost, accuracy and performance of deployments relative to a reference, a triangle each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import altair as alt
import pyarrow as pa

from moecap.charts.parts import (
    COLOURS,
    MAX_PANELS,
    MAX_SERIES,
    SHAPES,
    UNITS,
    NothingToDraw,
    Row,
    Spec,
    chosen,
    colour,
    complete,
    deployments,
    finish,
    shape,
    tip,
)
from moecap.errors import nearest


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
RINGS = (0.25, 0.5, 0.75, 1.0)

Pair = tuple[Row, Row]  # a row and the reference's row


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
    title: str = "CAP radar",
    note: str = "",
) -> Spec:
    """CAP radar: a triangle per deployment, a panel per dataset (and model, where there are several).

    What a row is measured against, at its dataset and batch size: ``references`` by model, else the row's own
    ``cap_reference``, else ``reference``, else the first deployment.

    Args:
        table: the CAP table.
        reference: deployment that the axes are measured against.
        axes: what the corners are.
        references: model → deployment, where models have references of their own.
        title, note: of the chart, the note before what the chart says of itself.

    Raises:
        NothingToDraw: no row has all axes and a reference.
    """
    rows = complete(table, [a.column for a in axes], positive=True)
    default = reference or table["deployment"][0].as_py()
    known = deployments(rows)
    for name in {default, *(references or {}).values()} - set(known):
        if reference or references:
            raise NothingToDraw(
                f"Reference deployment {name!r} has no row with cost, accuracy and throughput. {nearest(name, known)}"
            )
    pairs = _pairs(rows, default, references or {})
    if not pairs:
        raise NothingToDraw("No deployment was measured at a dataset and batch size of its reference deployment.")
    batches = sorted({row["batch_size"] for row, _ in pairs if row["batch_size"] is not None})
    choose = len(batches) > 1 and all(row["batch_size"] is not None for row, _ in pairs)
    if not choose:
        pairs = _largest_batch(pairs)
    panels = _panels(pairs)
    everyone, anchored = deployments(row for row, _ in pairs), deployments(anchor for _, anchor in pairs)
    own_legends = len(panels) > 1 and (bool(references) or len(everyone) > MAX_SERIES)

    drawn: list[Spec] = []
    datasets, fewer = web(axes), len(panels) > MAX_PANELS
    for number, (panel, group) in enumerate(list(panels.items())[:MAX_PANELS]):
        present = [row for row, _ in group] if own_legends else [row for row, _ in pairs]
        names = chosen(present, anchored)
        fewer |= len(names) < len(deployments(present))
        points = [p for row, anchor in group if row["deployment"] in names for p in corners(row, anchor, axes)]
        datasets[f"corners-{number}"] = points
        drawn.append({**panel_of(f"corners-{number}", names, choose), "title": {"text": panel, "anchor": "middle"}})
    chart: Spec = {"$schema": alt.SCHEMA_URL, "concat": drawn, "columns": 2}
    if own_legends:
        chart["resolve"] = {"scale": {"color": "independent", "shape": "independent"}}
    if choose:
        options = {"input": "select", "options": batches, "name": "batch size "}
        chart["params"] = [{"name": "radar_batch_size", "value": batches[-1], "bind": options}]
    notes = [f"{note} Reference (the dashed ring): {', '.join(anchored)}. Further out is better on every axis.".strip()]
    if fewer:
        notes.append(f"Up to {MAX_SERIES} deployments in up to {MAX_PANELS} panels are drawn; the tables have all.")
    if choose:
        notes.append(f"Drawn at batch size {batches[-1]} unless another is chosen.")
    return finish(chart, title, notes, datasets)


def _pairs(rows: Sequence[Row], default: str, references: Mapping[str, str]) -> list[Pair]:
    """Each row with its reference's: at its dataset and batch size, else the reference's only point on the dataset."""
    points: dict[tuple[str, str], dict[int | None, Row]] = {}
    for r in rows:
        points.setdefault((r["deployment"], r["dataset"]), {})[r["batch_size"]] = r
    found = []
    for row in rows:
        name = references.get(row["model"]) or row["cap_reference"] or default
        of_reference = points.get((name, row["dataset"]), {})
        anchor = of_reference.get(row["batch_size"])
        if anchor is None and len(of_reference) == 1:
            anchor = next(iter(of_reference.values()))
        if anchor is not None:
            found.append((row, anchor))
    return found


def _largest_batch(pairs: Sequence[Pair]) -> list[Pair]:
    """One point per deployment, model and dataset: the one with the largest batch."""
    largest: dict[tuple[str, ...], Pair] = {}
    for pair in sorted(pairs, key=lambda p: p[0]["batch_size"] or 0):
        largest[tuple(pair[0][k] for k in ("deployment", "model", "dataset"))] = pair
    return [pair for pair in pairs if any(pair is kept for kept in largest.values())]


def _panels(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    several = len({row["model"] for row, _ in pairs}) > 1
    found: dict[str, list[Pair]] = {}
    for row, anchor in pairs:
        panel = f"{row['model']}, {row['dataset']}" if several else str(row["dataset"])
        found.setdefault(panel, []).append((row, anchor))
    return found


def corners(row: Row, anchor: Row, axes: Sequence[Axis]) -> list[Row]:
    """Where a deployment's corners lie, and what their tooltips say."""
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


def panel_of(points: str, names: Sequence[str], choose: bool = False) -> Spec:
    """One radar over the rows named ``points`` (of :func:`corners`) and those of :func:`web`."""
    panel = json.loads(_panel(choose))
    for layer in panel["layer"]:
        if layer["data"]["name"] == "@":
            layer["data"]["name"] = points
            for channel, kinds in (("color", COLOURS), ("shape", SHAPES)):
                if channel in layer["encoding"]:
                    layer["encoding"][channel]["scale"] = {"domain": list(names), "range": list(kinds[: len(names)])}
    return panel


@cache
def _panel(choose: bool) -> str:
    """A panel as JSON, for any rows and names: put together once, since Altair takes its time over it."""
    base = alt.Chart(alt.NamedData("@"))
    if choose:
        base = base.transform_filter("datum.batch_size == radar_batch_size")
    place = {"x": _bare("x"), "y": _bare("y"), "color": colour([])}
    line = {**place, "order": alt.Order("corner:Q"), "detail": "deployment:N"}
    tips = [
        tip("deployment:N", "deployment"),
        tip("axis:N", "axis"),
        tip("value:Q", "value"),
        tip("unit:N", "unit"),
        tip("against:N", "against the reference"),
        tip("batch_size:Q", "batch size"),
    ]
    layers = alt.layer(
        *_web_layers(),
        base.mark_line(interpolate="linear-closed", filled=True, fillOpacity=0.06, strokeWidth=0).encode(**line),
        base.mark_line(interpolate="linear-closed", strokeWidth=2).encode(**line),
        base.mark_point(filled=True, size=60, opacity=1).encode(**place, shape=shape([]), tooltip=tips),
    ).properties(width=390, height=320)
    panel = layers.to_dict(validate=False)
    return json.dumps({k: v for k, v in panel.items() if k not in ("$schema", "config")})


def _angle(corner: int, corners: int) -> float:
    return math.pi / 2 - 2 * math.pi * corner / corners


def web(axes: Sequence[Axis]) -> dict[str, list[Row]]:
    """Rows of what lies behind every radar: whole rings, spokes, the ratio at each ring, the axes' names."""
    rings: list[Row] = [
        {"ring": ring, "at": at, "x": ring * math.cos(at * math.pi / 36), "y": ring * math.sin(at * math.pi / 36)}
        for ring in RINGS
        for at in range(73)
    ]
    spokes: list[Row] = []
    ratios: list[Row] = []
    names: list[Row] = []
    for i, axis in enumerate(axes):
        cos, sin = math.cos(_angle(i, len(axes))), math.sin(_angle(i, len(axes)))
        spokes += [{"spoke": i, "x": 0, "y": 0}, {"spoke": i, "x": cos, "y": sin}]
        names.append({"x": 1.12 * cos, "y": 1.12 * sin - (0.12 if sin < 0 else -0.02), "text": axis.label})
        for ring in RINGS[:-1]:
            steps = (ring - 0.5) / 0.25 * (1 if axis.higher_is_better else -1)
            beside = {"x": ring * cos + 0.13 * sin, "y": ring * sin - 0.1 * cos}  # clockwise of the axis
            ratios.append({**beside, "text": f"{axis.span**steps:.3g}×"})
    return {"rings": rings, "spokes": spokes, "ratios": ratios, "axes": names}


def _web_layers() -> Iterable[alt.Chart]:
    def draw(name: str) -> alt.Chart:
        return alt.Chart(alt.NamedData(name)).encode(x=_bare("x"), y=_bare("y"))

    circles = draw("rings").encode(order="at:Q", detail="ring:Q")
    return [
        draw("spokes").mark_line(strokeWidth=1, opacity=0.35, style="muted").encode(detail="spoke:N"),
        circles.transform_filter("datum.ring != 0.5").mark_line(strokeWidth=1, opacity=0.45, style="muted"),
        circles.transform_filter("datum.ring == 0.5").mark_line(strokeWidth=1.4, strokeDash=[4, 3], style="muted"),
        draw("ratios").mark_text(fontSize=11, style="faint").encode(text="text:N"),
        draw("axes").mark_text(fontSize=12.5, fontWeight="bold").encode(text="text:N"),
    ]


def _bare(name: str) -> Any:
    kind = alt.X if name == "x" else alt.Y
    domain = [-1.34, 1.34] if name == "x" else [-0.95, 1.25]
    return kind(f"{name}:Q", scale=alt.Scale(domain=domain, nice=False, zero=False), axis=None)
