"""Two figures against each other, one point per row: throughput against cost, throughput per GPU against per user.

:func:`scatter` is the chart without rows: the report draws the same one over the rows that its filters select.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pyarrow as pa

from moecap.cap.frontier import dominated
from moecap.charts.parts import COLOURS, MAX_SERIES, SHAPES, NothingToDraw, Row, Spec, finish, log_scale, tip

MAX_POINTS = 1500
ENDS = ("", "_low", "_high")


@dataclass(frozen=True)
class Figure:
    """What an axis can show: a column, as it is, per device, or its inverse.

    ``more_is_better`` decides which way the frontier looks; ``log`` is for figures that move by factors.
    """

    column: str
    label: str
    more_is_better: bool
    log: bool = True
    per: str | None = None
    inverse: bool = False
    percent: bool = False


FIGURES: dict[str, Figure] = {
    "tokens_per_s_per_user": Figure("tpot_s", "tokens/s per user (1 / TPOT)", True, inverse=True),
    "tokens_per_s_per_gpu": Figure("output_tokens_per_s", "generated tokens/s per device", True, per="devices"),
    "output_tokens_per_s": Figure("output_tokens_per_s", "generated tokens/s", True),
    "usd_per_million_tokens": Figure("usd_per_million_tokens", "USD per million generated tokens", False),
    "hardware_usd": Figure("hardware_usd", "purchase, USD", False),
    "usd_per_correct_answer": Figure("usd_per_correct_answer", "USD per correct answer", False),
    "joules_per_token": Figure("joules_per_token", "energy per generated token, J", False),
    "accuracy": Figure("accuracy", "accuracy", True, log=False, percent=True),
    "decode_s_mbu": Figure("decode_s_mbu", "S-MBU, decode", True, log=False, percent=True),
    "ttft_s": Figure("ttft_s", "time to first token, s", False),
    "tpot_s": Figure("tpot_s", "time per output token, s", False),
}


def figure_of(row: Mapping[str, Any], figure: Figure) -> tuple[float | None, float | None, float | None]:
    """The figure of a row with the ends of its interval; null where the row lacks a part of it.

    >>> figure_of({"tpot_s": 0.02, "tpot_s_low": 0.01, "tpot_s_high": 0.04}, FIGURES["tokens_per_s_per_user"])
    (50.0, 25.0, 100.0)
    """
    values = [row.get(figure.column + end) for end in ENDS]
    if figure.per:
        by = row.get(figure.per)
        values = [None if v is None or not by else v / by for v in values]
    if figure.inverse:
        middle, low, high = (None if not v else 1 / v for v in values)
        values = [middle, high, low]
    if figure.log:
        values = [v if v is not None and v > 0 else None for v in values]
    return values[0], values[1], values[2]


def tradeoff(
    table: pa.Table,
    x: str = "usd_per_million_tokens",
    y: str = "output_tokens_per_s",
    title: str = "Throughput against cost",
    curves: bool = False,
) -> Spec:
    """One point per row, a panel per dataset; coloured by accuracy, or with ``curves`` by deployment.

    Ringed: beaten by no other point of the dataset in cost per token, accuracy and throughput. Dashed: the frontier of
    the two figures drawn.

    Raises:
        NothingToDraw: no row has both figures, or all have the same ``x``.
    """
    across, up = FIGURES[x], FIGURES[y]
    rows = [r for r in table.to_pylist() if None not in (figure_of(r, across)[0], figure_of(r, up)[0])]
    if not curves:
        rows = [r for r in rows if r["accuracy"] is not None]
    if not rows:
        raise NothingToDraw(f"Nothing to draw: no row has both figures ({across.label}; {up.label}).")
    if len(rows) > 1 and len({figure_of(r, across)[0] for r in rows}) == 1:
        raise NothingToDraw(f"Every point has the same {across.label}: {figure_of(rows[0], across)[0]:,.6g}.")
    told, kinds = told_apart(rows)
    points = []
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        points += _points([r for r in rows if r["dataset"] == dataset], across, up, told)
    notes = ["Ringed: on the Pareto frontier of cost, accuracy and throughput. Dashed: that of the two figures drawn."]
    labels = "Small numbers: batch size." if told == "deployment" else "Names: deployments on the frontier."
    if len(points) > MAX_POINTS:  # a browser draws these without a pause; of the others the fastest are kept
        points = sorted(points, key=lambda p: (not p["frontier"], -p["y"]))[:MAX_POINTS]
        labels += f" The {MAX_POINTS} fastest points, and the frontier."
    notes.append(f"Bars: 95% intervals. {labels}")
    return scatter(across, up, points, kinds, told, title, notes, curves)


def _points(rows: Sequence[Row], across: Figure, up: Figure, told: str) -> list[Row]:
    import numpy as np

    three = ("usd_per_million_tokens", "accuracy", "output_tokens_per_s")
    whole = [i for i, r in enumerate(rows) if all(r.get(c) is not None for c in three)]
    c, a, t = (np.array([rows[i][k] for i in whole], float) for k in three)
    best = {i for i, beaten in zip(whole, dominated(c, a, t), strict=True) if not beaten} if whole else set()
    found = []
    for i, row in enumerate(rows):
        (x, x_low, x_high), (y, y_low, y_high) = figure_of(row, across), figure_of(row, up)
        found.append(
            {
                "x": x,
                "x_low": x_low,
                "x_high": x_high,
                "y": y,
                "y_low": y_low,
                "y_high": y_high,
                **{k: row[k] for k in ("deployment", "dataset", "batch_size", "accuracy", "accuracy_stderr")},
                "series": str(row[told]),
                "frontier": i in best,
                "label": "",
            }
        )
    costs, gains = (
        np.array([p[k] for p in found], float) * (-1 if (f.more_is_better) == (k == "x") else 1)
        for k, f in (("x", across), ("y", up))
    )
    for point, beaten in zip(found, dominated(costs, np.zeros_like(costs), gains), strict=True):
        point["staircase"] = bool(not beaten)
    (_label_batches if told == "deployment" else _name_frontier)(found)
    return found


def _label_batches(points: Sequence[Row]) -> None:
    """One label per batch size, at its highest point: the others lie close by."""
    highest: dict[Any, Row] = {}
    for p in points:
        if p["batch_size"] not in highest or p["y"] > highest[p["batch_size"]]["y"]:
            highest[p["batch_size"]] = p
    for batch, p in highest.items():
        p["label"] = "" if batch is None else str(batch)


def _name_frontier(points: Sequence[Row]) -> None:
    """Names for the points of the frontier, from the top; one that would lie over another's is left out."""
    spans = {k: max(p[k] for p in points) - min(p[k] for p in points) or 1.0 for k in "xy"}
    logs = {k: min(p[k] for p in points) > 0 for k in "xy"}
    if all(logs.values()):
        spans = {k: max(1e-9, math.log(max(p[k] for p in points) / min(p[k] for p in points))) for k in "xy"}
    placed: list[tuple[float, float]] = []
    for p in sorted(points, key=lambda p: -p["y"]):
        x, y = ((math.log(p[k]) if all(logs.values()) else p[k]) / spans[k] for k in "xy")
        if p["frontier"] and all(abs(x - u) > 0.4 or abs(y - v) > 0.06 for u, v in placed):
            p["label"] = p["deployment"]
            placed.append((x, y))


def told_apart(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The column that shapes and colours stand for, and its values: the finest with no more values than colours."""
    for column in ("deployment", "precision", "engine", "hardware", "model", "status"):
        values = list(dict.fromkeys(str(r[column]) for r in rows if r[column] is not None))
        if 0 < len(values) <= MAX_SERIES:
            return column, values
    return "status", values[:MAX_SERIES]


def scatter(
    across: Figure,
    up: Figure,
    points: Sequence[Row],
    kinds: Sequence[str],
    told: str,
    title: str,
    notes: Sequence[str],
    curves: bool = False,
) -> Spec:
    """The chart over ``points``: dicts with ``x``, ``y`` and the ends of their intervals, ``series``, ``deployment``,
    ``dataset``, ``batch_size``, ``accuracy``, ``frontier``, ``staircase``, ``label``."""
    x, y = _channel(alt.X, across, "x"), _channel(alt.Y, up, "y")
    legend = alt.selection_point(name="isolated", fields=["series"], bind="legend")
    bright = alt.when(legend)
    by_series = alt.Color(
        "series:N", title=told.replace("_", " "), scale=alt.Scale(domain=list(kinds), range=list(COLOURS[: len(kinds)]))
    )
    by_accuracy = alt.Color(
        "accuracy:Q",
        title="accuracy",
        scale=alt.Scale(domain=_padded([p["accuracy"] for p in points if p["accuracy"] is not None]), nice=False),
        legend=alt.Legend(format=".0%", gradientLength=160),
    )
    base = alt.Chart()
    rule = base.mark_rule(opacity=0.55, style="muted", clip=True)
    layers: list[Any] = [
        rule.transform_filter("isValid(datum.x_low)").encode(x=_channel(alt.X, across, "x_low"), x2="x_high", y=y),
        rule.transform_filter("isValid(datum.y_low)").encode(y=_channel(alt.Y, up, "y_low"), y2="y_high", x=x),
        base.transform_filter("datum.staircase")
        .mark_line(strokeWidth=1.5, strokeDash=[5, 3], style="muted")
        .encode(x=x, y=y),
    ]
    if curves:
        faint = bright.then(alt.value(0.6)).otherwise(alt.value(0.06))
        joined = base.mark_line(strokeWidth=1.6)
        layers.append(
            joined.encode(x=x, y=y, color=by_series, detail="deployment:N", order="batch_size:Q", opacity=faint)
        )
    layers += [
        base.transform_filter("datum.frontier")
        .mark_point(filled=False, size=260, strokeWidth=1.5, opacity=1, shape="circle", style="ring")
        .encode(x=x, y=y),
        base.mark_point(filled=True, size=95, strokeWidth=0.6)
        .encode(
            x=x,
            y=y,
            color=by_series if curves else by_accuracy,
            shape=alt.Shape(
                "series:N",
                title=told.replace("_", " "),
                scale=alt.Scale(domain=list(kinds), range=list(SHAPES[: len(kinds)])),
            ),
            opacity=bright.then(alt.value(1.0)).otherwise(alt.value(0.1)),
            tooltip=[
                tip("deployment:N", "deployment"),
                tip("dataset:N", "dataset"),
                tip("batch_size:Q", "batch size"),
                tip("y:Q", up.label),
                tip("x:Q", across.label),
                tip("accuracy:Q", "accuracy", ".2%"),
                tip("accuracy_stderr:Q", "standard error", ".2%"),
            ],
        )
        .add_params(legend),
        base.transform_filter("datum.label != ''")
        .mark_text(fontSize=11, style="faint", dx=10, dy=-10, align="left")
        .encode(x=x, y=y, text="label:N"),
    ]
    panel = alt.layer(*layers, data=alt.NamedData("points")).properties(width=330, height=270)
    return finish(
        panel.facet(alt.Facet("dataset:N", title=None, sort=None), columns=2), title, notes, {"points": points}
    )


def _channel(kind: Any, figure: Figure, field: str) -> Any:
    linear = alt.Scale(type="linear", nice=False, padding=18, zero=False)
    scale = log_scale() if figure.log else linear
    axis = alt.Axis(format=".0%") if figure.percent else alt.Axis(format=",~g", labelOverlap=True, tickCount=5)
    return kind(f"{field}:Q", title=figure.label, scale=scale, axis=axis)


def _padded(values: Sequence[float]) -> list[float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return [low, high] if high > low else [max(0.0, low - 0.05), high + 0.05]
