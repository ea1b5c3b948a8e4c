"""What the charts share: colours, axes, tooltips, the neutral theme, and how a chart becomes a Vega-Lite dict.

A chart is a Vega-Lite dict whose rows lie once, under ``datasets``, and which every mark refers to by name: the report
draws the same dict over the rows of its own page. Colours are Okabe and Ito's, which people with colour blindness tell
apart; series differ in shape too. The neutral colours (text, axes, grid) and the ramp of a continuous colour come from
:func:`theme` alone, so that one chart can be drawn on a light and on a dark page.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import pyarrow as pa

from moecap.errors import MoecapError

Row = dict[str, Any]
Spec = dict[str, Any]

# Okabe & Ito (2008), without black (the text's colour) and yellow (too pale on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
MAX_SERIES = len(COLOURS)
MAX_PANELS = 12
FONT = "Arimo, Liberation Sans, Helvetica, Arial, sans-serif"
PAGE = {"light": "#ffffff", "dark": "#0f1419"}
INK = {"light": ("#1b1f24", "#57606a", "#d8dee4"), "dark": ("#e6edf3", "#9da7b3", "#363d46")}
# Viridis without the end that a page of that colour swallows: every shade keeps a contrast of 3 with the page.
RAMP = {
    "light": ("#440154", "#46327e", "#365c8d", "#277f8e", "#1f968b"),
    "dark": ("#2a788e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"),
}

UNITS = {
    "usd_per_million_tokens": "USD per million generated tokens",
    "hardware_usd": "purchase, USD",
    "output_tokens_per_s": "generated tokens/s",
    "accuracy": "accuracy",
    "tpot_s": "time per output token, s",
}


class NothingToDraw(MoecapError):
    """The table has no data for this chart; the message says what is missing."""


#: Unicode's controls, formats (which reorder or hide what follows), separators of lines, and lone surrogates.
_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Cs")


# --- text ----------------------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    r"""``text`` with characters that reorder or hide other text written out, so that a name looks as it reads.

    >>> visible("int8\u202egnp")
    'int8⟨U+202E⟩gnp'
    """
    if text.isprintable():
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in _UNSEEN and c not in "\n\t" else c for c in text)


def all_visible(value: Any) -> Any:
    """:func:`visible` for every text in plain data, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {all_visible(k): all_visible(v) for k, v in value.items()}
    return [all_visible(v) for v in value] if isinstance(value, list | tuple) else value


# --- rows ----------------------------------------------------------------------------------------------------------


def complete(table: pa.Table, columns: Sequence[str], positive: bool = False) -> list[Row]:
    """Rows that have all ``columns``, where asked above 0 (an accuracy may be 0).

    Raises:
        NothingToDraw: there are none; says which column is missing.
    """
    rows = [
        r
        for r in table.to_pylist()
        if all(r.get(c) is not None and (not positive or r[c] > 0 or c == "accuracy") for c in columns)
    ]
    if not rows:
        lacking = [c for c in columns if c not in table.column_names or table[c].null_count == table.num_rows]
        what = f"no row has {', '.join(lacking)}" if lacking else f"no row has all of {', '.join(columns)}"
        raise NothingToDraw(f"Nothing to draw: {what}.")
    return rows


def deployments(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Deployments in order of appearance."""
    return list(dict.fromkeys(r["deployment"] for r in rows))


def chosen(rows: Iterable[Mapping[str, Any]], first: Sequence[str] = ()) -> list[str]:
    """As many deployments as there are colours, in order of appearance.

    Where there are more: ``first``, then those most often on the Pareto frontier, then the fastest.
    """
    rows = list(rows)
    names = deployments(rows)
    if len(names) <= MAX_SERIES:
        return names
    best: dict[str, tuple[float, float]] = {}
    for r in rows:
        rank = (r.get("pareto_frequency") or 0.0, r.get("output_tokens_per_s") or 0.0)
        best[r["deployment"]] = max(best.get(r["deployment"], (0.0, 0.0)), rank)
    order = sorted(names, key=lambda n: (n not in first, *(-x for x in best[n])))
    kept = set(order[:MAX_SERIES])
    return [n for n in names if n in kept]


def cut(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for the subtitle where there are more deployments than colours."""
    total = len(deployments(rows))
    if total <= len(names):
        return []
    return [f"{len(names)} of {total} deployments: those most often on the Pareto frontier, then the fastest."]


def project(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[Row]:
    """Rows with these columns alone."""
    return [{c: r.get(c) for c in columns} for r in rows]


def ends(*columns: str) -> list[str]:
    """Each column and both ends of its interval."""
    return [f"{c}{end}" for c in columns for end in ("", "_low", "_high")]


def folded(chart: alt.Chart, counts: Mapping[str, str]) -> alt.Chart:
    """A row per column of ``counts`` that a row has: ``column``, ``series`` (a label), ``value``, ``low``, ``high``."""
    return (
        chart.transform_fold(list(counts), as_=["column", "value"])
        .transform_filter("isValid(datum.value)")
        .transform_calculate(
            series=f"({json.dumps(dict(counts), ensure_ascii=False)})[datum.column]",
            low="datum[datum.column + '_low']",
            high="datum[datum.column + '_high']",
        )
    )


# --- channels --------------------------------------------------------------------------------------------------------


def colour(names: Sequence[str], column: str = "deployment", title: str = "") -> alt.Color:
    """A colour per name."""
    scale = alt.Scale(domain=list(names), range=list(COLOURS[: len(names)]))
    return alt.Color(f"{column}:N", title=title or column.replace("_", " "), scale=scale)


def shape(names: Sequence[str], column: str = "deployment", title: str = "") -> alt.Shape:
    """A shape per name."""
    scale = alt.Scale(domain=list(names), range=list(SHAPES[: len(names)]))
    return alt.Shape(f"{column}:N", title=title or column.replace("_", " "), scale=scale)


def tip(field: str, title: str, number: str | None = None) -> alt.Tooltip:
    """A line of a tooltip; without a ``number`` format the value is shown as it is stored."""
    name = title or field.split(":")[0]
    return alt.Tooltip(field, title=name, format=number) if number else alt.Tooltip(field, title=name)


def log_scale() -> alt.Scale:
    """Logarithmic, with room around the values, whichever they are."""
    return alt.Scale(type="log", nice=False, padding=18)


def log_axis(unit: str = "") -> alt.Axis:
    """Figures as they are, thousands set apart; those that would touch are left out."""
    return alt.Axis(labelExpr=f"format(datum.value, ',~g') + '{unit}'", labelOverlap=True, tickCount=5)


def bytes_axis() -> alt.Axis:
    """SI prefixes; "k" and "M" are powers of 1000 here, as in GB/s."""
    return alt.Axis(labelExpr="datum.value == 0 ? '0' : format(datum.value, '.3~s') + 'B'")


def batch_axis() -> alt.X:
    """Batch sizes on a logarithmic axis."""
    scale = alt.Scale(type="log", base=2, nice=False, padding=14)
    axis = alt.Axis(format="d", grid=False, labelOverlap=True)
    return alt.X("batch_size:Q", title="batch size", scale=scale, axis=axis)


# --- the whole ------------------------------------------------------------------------------------------------------


def finish(
    chart: alt.TopLevelMixin | Spec, title: str, subtitle: Sequence[str], datasets: Mapping[str, Sequence[Row]]
) -> Spec:
    """The chart as a Vega-Lite dict, with its title, its theme and its rows."""
    heading = {"text": title, "subtitle": list(subtitle), "fontSize": 16}
    # Its parts were validated when they were made.
    found = _renumbered(chart if isinstance(chart, dict) else chart.to_dict(validate=False))
    found |= {"title": heading, "config": theme(), "datasets": {k: list(v) for k, v in datasets.items()}}
    return all_visible(found)


def _renumbered(found: Spec) -> Spec:
    """Names that Altair counts over the whole process (``view_7``), counted anew: same table, same text."""
    return json.loads(renumber("view_", json.dumps(found)))


def renumber(prefix: str, text: str) -> str:
    """Every ``PREFIX<number>`` of a text counted from 0, in order of appearance."""
    seen: dict[str, str] = {}
    return re.sub(rf"\b{prefix}\d+\b", lambda m: seen.setdefault(m[0], f"{prefix}{len(seen)}"), text)


def theme(mode: str = "light") -> dict[str, Any]:
    """Vega-Lite config: fonts, and the neutral colours for a light or a dark page."""
    ink, muted, grid = INK[mode]
    return {
        "font": FONT,
        "background": "transparent",
        "padding": 8,
        "view": {"stroke": None},
        "range": {"ramp": list(RAMP[mode]), "category": list(COLOURS), "symbol": list(SHAPES)},
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
            "labelFontSize": 11.5,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 8,
        },
        "legend": {
            "labelColor": ink,
            "titleColor": muted,
            "labelFontSize": 11,
            "titleFontSize": 11,
            "labelLimit": 0,
            "orient": "bottom",
            "columns": 3,
            "symbolBaseFillColor": muted,
            "symbolBaseStrokeColor": muted,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "labelLimit": 0},
        "text": {"color": ink},
        "style": {
            "muted": {"stroke": muted, "color": muted},
            "faint": {"fill": muted, "color": muted},
            "ring": {"color": ink},
        },
        "concat": {"spacing": 26},
    }
