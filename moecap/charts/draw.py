"""From a Vega-Lite dict to a file: SVG, PNG, or a page that opens from disk. No browser and no network is needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from moecap.charts.pages import render
from moecap.charts.parts import INK, renumber, theme
from moecap.errors import MoecapError, nearest
from moecap.io import atomic_path

FORMATS = ("html", "svg", "png")


def to_svg(chart: Mapping[str, Any], mode: str = "light") -> str:
    """The chart as SVG text."""
    background = "white" if mode == "light" else "transparent"
    return _svg(json.dumps({**chart, "config": {**theme(mode), "background": background}}))


@cache
def _svg(text: str) -> str:
    """Drawn once for all the formats that show it."""
    import vl_convert

    return renumber("clip", renumber("gradient_", vl_convert.vegalite_to_svg(text)))


def to_png(chart: Mapping[str, Any], scale: float = 2.0) -> bytes:
    """The chart as PNG on white."""
    import vl_convert

    return vl_convert.svg_to_png(to_svg(chart), scale=scale)


def to_html(chart: Mapping[str, Any], name: str) -> str:
    """A page with the interactive chart and all of Vega in it."""
    values = {"title": name, "spec": chart, "svg": to_svg(chart), "themes": themes()}
    return render("chart.html.j2", values)


def themes() -> dict[str, dict[str, Any]]:
    """The config for a light and for a dark page."""
    return {mode: theme(mode) for mode in INK}


def save(chart: Mapping[str, Any], path: str | Path) -> None:
    """Write a chart, atomically, in the format that the suffix names.

    Raises:
        MoecapError: the suffix is none of .svg, .png, .html, .json.
    """
    path = Path(path)
    writers: dict[str, Callable[[], str | bytes]] = {
        ".svg": lambda: to_svg(chart),
        ".png": lambda: to_png(chart),
        ".html": lambda: to_html(chart, path.stem),
        ".json": lambda: json.dumps(chart),
    }
    if path.suffix not in writers:
        raise MoecapError(f"{path}: a chart cannot be written as {path.suffix!r}. {nearest(path.suffix, writers)}")
    content = writers[path.suffix]()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
