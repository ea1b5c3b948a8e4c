"""The report: one HTML file that opens from disk, and answers which deployment to take.

:func:`render_report` is a pure function of what :mod:`moecap.report.inputs` reads. Nothing in the page is a number
typed here: every sentence is computed from the CAP table. Its rows lie in the page once, as JSON; the script's table
and charts read them there. Without a script, and in print, the best deployments and the default charts stand there.
The page holds no time of its own, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from altair import SCHEMA_URL

from moecap.cap.classes import rule
from moecap.charts import standard as charts
from moecap.charts.draw import themes, to_svg
from moecap.charts.pages import render
from moecap.charts.parts import COLOURS, MAX_SERIES, SHAPES, all_visible
from moecap.charts.plan_cost import plan_cost
from moecap.charts.radar import CAP_AXES, panel_of, web
from moecap.charts.step_bytes import CHECKS
from moecap.charts.tradeoff import FIGURES
from moecap.report import answers
from moecap.report.checks import Check, check
from moecap.report.columns import stored
from moecap.report.facts import doubtful_peaks, machine_facts, provenance_facts
from moecap.report.findings import cache_note, findings
from moecap.report.inputs import Inputs
from moecap.report.numbers import binary
from moecap.report.pairs import Pairs
from moecap.report.paper import paper_tables
from moecap.report.tables import (
    GOOD_PRICES,
    TOP,
    accuracy_table,
    best_points,
    extra_view,
    failures_table,
    leaderboard,
)

Row = dict[str, Any]

MAX_SAMPLES = 6
MAX_TEXT = 1200
#: Charts that the script does not draw: its comparison and its main chart stand for them.
STILL_ONLY = ("cap-radar", "throughput-against-purchase", *charts.PAPER)
#: Of the routing analyses, as much as this is put into the page; the rest is in the results folder.
ROUTING_LIMIT_BYTES = 400_000


#: What is drawn of further tables, by the name that their params give.
_CHARTS_OF_TABLES = {**CHECKS, "plan_cost": plan_cost}
_MARK_WORDS = re.compile(r' (?:role|aria-[a-z]+)="[^"]*"')
_DECIMALS = re.compile(r"(\.\d\d)\d+")


@dataclass(frozen=True)
class Figure:
    """A chart of the page: a still image, and for the script a specification without rows; or why it is not there."""

    id: str
    section: str
    caption: str
    spec: Mapping[str, Any] | None = None
    svg: str = ""
    why_not: str = ""


def render_report(inputs: Inputs) -> str:
    """The whole report as HTML text."""
    rows = inputs.table.to_pylist()
    reference = inputs.reference or _default_reference(inputs.table)
    status: dict[str, int] = {}
    for r in rows:
        status[r["status"]] = status.get(r["status"], 0) + 1
    best = best_points(rows)
    drawn, fewer = _figures(inputs, best, reference)
    checks = [check(t, f"check-{i}") for i, t in enumerate(inputs.tables) if t.rows]
    routing, left_out = _routing(inputs.routing)
    first = _first_dataset(rows)
    of_first = [r for r in rows if r["dataset"] == first]
    pairs = Pairs(inputs.samples)
    values = {
        "title": inputs.title or ": ".join(filter(None, [inputs.campaign, _title(rows)])),
        "facts": _headline(rows, reference),
        "banners": _banners(rows, status, inputs),
        "cards": answers.cards(of_first),
        "advice": answers.advice(of_first),
        "first_dataset": first,
        "findings": findings(rows, reference, pairs),
        "rule": rule(inputs.provenance["cap"]) if inputs.provenance.get("cap") else None,
        "leaderboard": leaderboard(rows),
        "figures": drawn,
        "fewer": fewer,
        "accuracy": accuracy_table(rows, reference, pairs),
        "accuracy_source": _accuracy_source(rows),
        "paper": paper_tables(rows),
        "cache": [
            {**c, "weights": binary(c["weight_bytes"]), "cache": binary(c["cache_bytes"])}
            for c in cache_note(rows, inputs.machines)
        ],
        "unsure": _unsure(rows),
        "machines": [(m.get("hardware") or "machine", machine_facts(m)) for m in inputs.machines],
        "checks": [(c, _check_figure(c), extra_view(c.table, c.id)) for c in checks if c.table.section != "plan"],
        "plans": [(c, _check_figure(c), extra_view(c.table, c.id)) for c in checks if c.table.section == "plan"],
        "routing_left_out": left_out,
        "failures": failures_table(inputs.failures, rows),
        "samples": _answers(inputs.samples),
        "provenance": provenance_facts(inputs, rows),
        "data": _data(inputs, reference, first, drawn, routing),
        "themes": themes(),
    }
    return render("report.html.j2", values)


def _data(
    inputs: Inputs, reference: str | None, first: str | None, drawn: Sequence[Figure], routing: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page's script works on."""
    return all_visible(
        {
            "table": stored(inputs.table),
            "reference": reference,
            "dataset": first,
            "costs": answers.COSTS,
            "tpot_limit_s": answers.TPOT_LIMIT_S,
            "figures": {name: asdict(f) for name, f in FIGURES.items() if f.column in inputs.table.column_names},
            "axes": [asdict(a) for a in CAP_AXES],
            "colours": list(COLOURS),
            "shapes": list(SHAPES),
            "most_series": MAX_SERIES,
            "radar": {"spec": {"$schema": SCHEMA_URL, **panel_of("corners", ["@"])}, "web": web(CAP_AXES)},
            "charts": {f.id: f.spec for f in drawn if f.spec is not None and f.id not in STILL_ONLY},
            "routing": routing,
            "logs": dict(inputs.logs),
        }
    )


def _figures(inputs: Inputs, best: Sequence[Row], reference: str | None) -> tuple[list[Figure], str]:
    """Charts of the best deployments (and the reference), those not drawn with the reason, and which they are of."""
    kept = list(dict.fromkeys(r["deployment"] for r in best[:TOP]))
    total = len(set(inputs.table["deployment"].to_pylist()))
    anchors = [a for a in dict.fromkeys(r["cap_reference"] for r in best[:TOP]) if a]
    names = pa.array([*kept, *anchors, *([reference] if reference else [])], pa.string())
    table = inputs.table.filter(pc.is_in(inputs.table["deployment"], value_set=names))
    drawn, left_out = charts.draw_all(table, reference)
    found = [Figure(name, *charts.caption_of(name), why_not=reason) for name, reason in left_out.items()]
    for name, chart in drawn.items():
        bare = {k: v for k, v in chart.items() if k not in ("datasets", "config")}
        found.append(Figure(name, *charts.caption_of(name), bare, _still(chart)))
    return found, f"The still charts show the best {len(kept)} of {total} deployments." if total > len(kept) else ""


def _still(chart: Mapping[str, Any]) -> str:
    """The chart as SVG for an image that has a text: without words for each mark, to a hundredth of a pixel."""
    return _DECIMALS.sub(r"\1", _MARK_WORDS.sub("", to_svg(chart)))


def _check_figure(found: Check) -> Figure | None:
    table = found.table
    if not table.chart or not table.rows:
        return None
    return Figure(found.id, found.id, table.title, svg=_still(_CHARTS_OF_TABLES[table.chart](table.rows)))


def _routing(routing: Mapping[str, Sequence[Row]]) -> tuple[dict[str, Any], list[str]]:
    """Per deployment the charts and the rows of its routing analysis, column by column; and who found no room."""
    found: dict[str, Any] = {}
    left_out: list[str] = []
    room = ROUTING_LIMIT_BYTES
    for deployment, rows in routing.items():
        drawn, _ = charts.draw_all(charts.empty(), None, {deployment: rows})
        one = {
            name.removesuffix(f"-{deployment}"): {
                "caption": charts.caption_of(name)[1],
                "spec": {k: v for k, v in chart.items() if k not in ("datasets", "config")},
                "data": {d: _columns(points) for d, points in chart["datasets"].items()},
            }
            for name, chart in drawn.items()
        }
        size = len(json.dumps(one))
        if size > room:
            left_out.append(deployment)
        elif one:
            found[deployment] = one
            room -= size
    return found, left_out


def _columns(points: Sequence[Row]) -> dict[str, list[Any]]:
    names = list(dict.fromkeys(k for p in points for k in p))
    return {k: [_rounded(p.get(k)) for p in points] for k in names}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _default_reference(table: pa.Table) -> str | None:
    return table["deployment"][0].as_py() if table.num_rows else None


def _first_dataset(rows: Sequence[Row]) -> str | None:
    """The dataset with the most points that have cost, accuracy and throughput: what the page opens with."""
    needed = ("usd_per_million_tokens", "accuracy", "output_tokens_per_s")
    counts: dict[str, int] = {}
    for r in rows:
        counts[r["dataset"]] = counts.get(r["dataset"], 0) + all(r[c] is not None for c in needed)
    return max(counts, key=lambda d: counts[d]) if counts else None


def _distinct(rows: Sequence[Row], column: str) -> list[str]:
    return list(dict.fromkeys(str(r[column]) for r in rows if r[column] is not None))


def _title(rows: Sequence[Row]) -> str:
    """What is compared, by name: a reader has several of these pages open.

    >>> _title([{"model": "demo-moe", "hardware": "this-machine"}])
    'demo-moe on this-machine: cost, accuracy and performance'
    """
    named = []
    for column in ("model", "hardware"):
        values = _distinct(rows, column)
        if values:
            named.append(
                ", ".join(values) if len(values) <= 3 else f"{len(values)} {column.replace('hardware', 'machine')}s"
            )
    return f"{' on '.join(named)}: cost, accuracy and performance" if named else "Cost, accuracy and performance"


def _headline(rows: Sequence[Row], reference: str | None) -> list[tuple[str, str]]:
    def listed(column: str) -> str:
        values = _distinct(rows, column)
        return ", ".join(values) if len(values) <= 4 else f"{len(values)}"

    facts = [
        ("deployments", str(len({r["deployment"] for r in rows}))),
        ("points", str(len(rows))),
        *((name, listed(column)) for name, column in _HEADLINE),
        ("reference", reference or "–"),
        ("timed", _day(rows)),
    ]
    return [(name, value) for name, value in facts if value]


_HEADLINE = (
    ("models", "model"),
    ("precisions", "precision"),
    ("engines", "engine"),
    ("hardware", "hardware"),
    ("datasets", "dataset"),
)


def _accuracy_source(rows: Sequence[Row]) -> str:
    """Who scored: read from the rows, since printed and imported figures were scored by others."""
    printed = sorted(
        {r["source"] for r in rows if r["accuracy"] is not None and r["status"] == "paper" and r["source"]}
    )
    scored = sorted({r["accuracy_metric"] for r in rows if r["accuracy_metric"] and r["status"] != "paper"})
    parts = []
    if scored:
        parts.append(f"Scored by lm-eval ({', '.join(scored)}).")
    if printed:
        parts.append(f"As printed: {', '.join(printed)}; by whom and with how many questions is not printed.")
    if any(r["accuracy_stderr"] is not None for r in rows):
        parts.append(
            "Where the same questions were asked, differences are compared question by question (Bonett and Price's "
            "interval, McNemar's exact test); else they are taken as independent, which overstates their error."
        )
    return " ".join(parts)


def _unsure(rows: Sequence[Row]) -> list[str]:
    """What the prices and figures behind the costs are called that nobody verified, in alphabetical order."""
    found = {r[c] for r in rows for c in ("price_status", "electricity_status") if r[c]} - set(GOOD_PRICES)
    return sorted(found | ({"unverified"} if any(r["figures_unverified"] for r in rows) else set()))


def _day(rows: Sequence[Row]) -> str:
    found = [r["start_unix_s"] for r in rows if r["start_unix_s"]]
    return datetime.fromtimestamp(max(found), UTC).strftime("%Y-%m-%d") if found else ""


def _banners(rows: Sequence[Row], status: Mapping[str, int], inputs: Inputs) -> list[tuple[str, str]]:
    found = []
    failed, missing = status.get("failed", 0), status.get("missing", 0)
    if failed or missing or not rows:
        parts = [f"{failed} failed" * bool(failed), f"{missing} not measured" * bool(missing)]
        listing = " and ".join(p for p in parts if p) or "there is nothing yet"
        found.append(("bad", f"Incomplete: of {len(rows)} points {listing}. What is there is reported; see Failures."))
    elif inputs.failures:
        found.append(("bad", f"Incomplete: {len(inputs.failures)} job(s) failed; see Failures."))
    above = sum(bool(r["utilization_above_one"]) for r in rows)
    if above:
        found.append(
            (
                "warn",
                f"{above} of {len(rows)} points have a utilization above 1. It is not cut off: bytes, time or peak are "
                "wrong, or the weights stay in a cache (see What a utilization is worth).",
            )
        )
    found += _doubtful(rows, inputs.machines)
    unsure = sum("unverified" in (r["peak_source"] or "") for r in rows)
    if unsure:
        found.append(
            (
                "warn",
                f"The utilizations of {unsure} points are relative to peaks of the hardware catalogue that are "
                "unverified: no source for them was read.",
            )
        )
    if status.get("estimated"):
        found.append(
            ("warn", f"{status['estimated']} points are estimated: their schedule was inferred, not recorded.")
        )
    if status.get("paper"):
        found.append(("warn", f"{status['paper']} points are figures printed in a paper; nothing was measured here."))
    return found


def _doubtful(rows: Sequence[Row], machines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """A banner per machine whose points rest on a measured peak that is not to be believed."""
    found = []
    for machine in machines:
        for dtype, why in doubtful_peaks(machine).items():
            resting = sum(
                r["hardware"] == machine.get("hardware") and r["peak_flops"] == machine["peak_flops"][dtype]
                for r in rows
            )
            if resting:
                found.append(
                    ("warn", f"MFU and S-MFU of {resting} points are relative to a doubtful {dtype} peak: {why}.")
                )
    return found


def _answers(samples: Sequence[tuple[Mapping[str, Any], Sequence[Row]]]) -> list[tuple[str, list[Row]]]:
    """A few answers per model, precision and dataset: right and wrong ones in turn, so that neither hides the other."""
    found = []
    for label, rows in samples:
        wrong = [r for r in rows if not r.get("score")]
        right = [r for r in rows if r.get("score")]
        half = MAX_SAMPLES // 2
        chosen = right[: MAX_SAMPLES - min(half, len(wrong))] + wrong[: MAX_SAMPLES - min(half, len(right))]
        shown = [
            {
                "prompt": _shortened(r.get("prompt")),
                "target": _shortened(r.get("target")),
                "response": _shortened(r.get("response")),
                "score": r.get("score"),
            }
            for r in chosen[:MAX_SAMPLES]
        ]
        name = " · ".join(str(label[k]) for k in ("model", "precision", "engine", "dataset") if label.get(k))
        found.append((name, shown))
    return found


def _shortened(text: Any) -> str:
    text = "" if text is None else str(text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} […]"
