"""The report: one HTML file that opens from disk, with tables, charts, and what they say in words.

:func:`render_report` is a pure function of tables and dicts; :func:`read_inputs` is the edge that reads files. Nothing
in the page is a number typed here: every sentence is computed from the CAP table. The page holds no time of its own, so
that the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from moecap.cap.classes import differing, rule
from moecap.cap.table import CAP_SCHEMA
from moecap.charts import standard as charts
from moecap.charts.pages import render
from moecap.io import read_json, read_metadata, read_parquet
from moecap.jobs.failures import SCOPE, applies, read_failures
from moecap.metrics.table import TIERS

Row = dict[str, Any]

MAX_ROWS = 500  # of each long table; the leaderboard has all deployments, cap.parquet has everything
MAX_COMPARED = 8
MAX_SAMPLES = 6
MAX_TEXT = 1200
GOOD_PRICES = ("verified", "derived")


@dataclass(frozen=True)
class Inputs:
    """What a report is made of. All but the table may be empty.

    Attributes:
        table: the CAP table.
        reference: deployment that others are compared with; by default the first of the table.
        provenance: what the table's file says of its making.
        machines: what calibration wrote, one dict per hardware entry.
        anatomies: JSON of the models' anatomies.
        routing: deployment → rows of its routing analysis.
        samples: pairs of what was asked of whom (model, precision, engine, dataset) and rows of answers.
        failures: records of what failed.
        tables: further tables to show: bytes measured against predicted, replay against decode, plan against measured.
        title: of the page.
    """

    table: pa.Table
    reference: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    machines: Sequence[Mapping[str, Any]] = ()
    anatomies: Sequence[Mapping[str, Any]] = ()
    routing: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    samples: Sequence[tuple[Mapping[str, Any], Sequence[Row]]] = ()
    failures: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[ExtraTable] = ()
    title: str | None = None


@dataclass(frozen=True)
class ExtraTable:
    """A further table of the report, shown column by column as it is.

    ``fields``: column → ``label`` (its heading), ``unit``, ``meaning``, ``form`` ("share" or "error": a ratio in per
    cent), all optional: the metadata of its schema. ``chart``: of the same rows, if they are drawn as well.
    """

    title: str
    rows: Sequence[Row]
    note: str = ""
    fields: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    chart: str | None = None


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, what it sorts by, a small second line, and a badge's colour."""

    text: str
    sort: str = ""
    note: str = ""
    badge: str = ""
    kind: str = ""  # "number", "text" or "null"


@dataclass(frozen=True)
class Head:
    """A column's name, unit, explanation, and which way one wants it sorted first."""

    text: str
    unit: str = ""
    title: str = ""
    number: bool = False
    first: str = "ascending"


@dataclass(frozen=True)
class View:
    """A table as the template draws it."""

    id: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    sortable: bool = True


# --- numbers in words --------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """A number to ``digits`` significant digits with an SI prefix; an en dash for null.

    >>> number(12345.6), number(0.00123), number(0), number(None), number(999.9)
    ('12.3k', '1.23m', '0', '–', '1k')
    """
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.{digits - 1}e}")
    power = min(max(math.floor(math.log10(abs(rounded)) / 3), -4), 5)
    scaled = rounded / 1000.0**power
    prefix = {-4: "p", -3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}[power]
    text = f"{scaled:.{digits}g}"
    return (text if "e" not in text else f"{scaled:.0f}") + prefix


def dollars(value: float | None) -> str:
    """
    >>> dollars(1200), dollars(0.00056), dollars(92100.0), dollars(2.5), dollars(None)
    ('$1,200', '$0.00056', '$92,100', '$2.50', '–')
    """
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"${value:,.0f}"
    if abs(value) >= 0.1 or value == 0:
        return f"${value:,.2f}"
    decimals = min(12, 2 - math.floor(math.log10(abs(value))))
    return f"${value:.{decimals}f}".rstrip("0")


def percent(value: float | None, digits: int = 1) -> str:
    """
    >>> percent(0.8125), percent(None)
    ('81.2%', '–')
    """
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def binary(value: float | None) -> str:
    """
    >>> binary(3 * 2**20), binary(500), binary(None)
    ('3.00 MiB', '500 B', '–')
    """
    if value is None:
        return "–"
    for power, prefix in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if abs(value) >= 1024**power:
            return (
                f"{value / 1024**power:.3g} {prefix}B"
                if value >= 100 * 1024**power
                else (f"{value / 1024**power:.2f} {prefix}B")
            )
    return f"{value:.0f} B"


def seconds(value: float | None) -> str:
    """
    >>> seconds(0.00198), seconds(2.5), seconds(None)
    ('1.98 ms', '2.5 s', '–')
    """
    if value is None:
        return "–"
    text = number(value)
    return f"{text[:-1]} {text[-1]}s" if text[-1] in "pnµmk" else f"{text} s"


def signed(value: float, digits: int = 1) -> str:
    """
    >>> signed(-1.5), signed(2)
    ('−1.5', '+2.0')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def times(ratio: float) -> str:
    """
    >>> times(1.834), times(0.55), times(12.3), times(0.03125)
    ('1.83×', '0.55×', '12.3×', '0.031×')
    """
    return f"{ratio:.2f}×" if 0.1 <= ratio < 10 else f"{ratio:.3g}×" if ratio >= 10 else f"{ratio:.2g}×"


# --- the trade-off in words ---------------------------------------------------------------------------------------


def anchors_of(rows: Sequence[Row], reference: str | None) -> Callable[[Row], Row | None]:
    """Which row another is compared with: its ``cap_reference``'s (else ``reference``'s), same dataset and batch size.

    Where the reference has a single point on the dataset, that one; null where it has none that fits.
    """
    points: dict[tuple[Any, Any], dict[Any, Row]] = {}
    for r in rows:
        points.setdefault((r["deployment"], r["dataset"]), {})[r["batch_size"]] = r

    def anchor(row: Row) -> Row | None:
        found = points.get((row["cap_reference"] or reference, row["dataset"]), {})
        return found.get(row["batch_size"]) or (next(iter(found.values())) if len(found) == 1 else None)

    return anchor


def findings(rows: Sequence[Row], reference: str | None) -> list[tuple[str, list[str]]]:
    """What the table says, as (heading, sentences). Each is computed; none is said where its figures are missing."""
    found: list[tuple[str, list[str]]] = []
    usable = [r for r in rows if r["output_tokens_per_s"] is not None]
    anchor_of = anchors_of(usable, reference)
    for dataset in dict.fromkeys(r["dataset"] for r in usable):
        group, batch = _at_common_batch([r for r in usable if r["dataset"] == dataset], reference)
        sentences = []
        models = list(dict.fromkeys(r["model"] for r in group))
        for model in models:
            named = f"{model}: " if len(models) > 1 else ""
            sentences += [named + sentence for sentence in _winners([r for r in group if r["model"] == model])]
        pairs = [(r, a) for r in group if (a := anchor_of(r)) is not None and a is not r]
        sentences += [_compared(r, a) for r, a in pairs[:MAX_COMPARED]]
        if len(pairs) > MAX_COMPARED:
            sentences.append(f"More comparisons ({len(pairs) - MAX_COMPARED}) are in the tables.")
        sentences += _frontier([r for r in rows if r["dataset"] == dataset])
        if sentences:
            found.append((dataset + (f", batch size {batch}" if batch else ""), sentences))
    if overestimates := _overestimates(rows):
        found.append(("MBU and S-MBU", overestimates))
    if notions := _differing(rows):
        found.append(("Two notions of cost", notions))
    if alone := _gpus_alone(rows):
        found.append(("Costing the GPUs alone", alone))
    return found


def _differing(rows: Sequence[Row]) -> list[str]:
    """Where a class depends on whether cost is per token or by purchase."""
    found = differing(rows)
    shown = [
        f"{deployment} ({dataset}{f', batch size {batch}' if batch else ''}) is {per_token} per token, {bought} by "
        "purchase"
        for deployment, dataset, batch, per_token, bought in found[:MAX_COMPARED]
    ]
    more = f"; {len(found) - len(shown)} more are in the leaderboard" if len(found) > len(shown) else ""
    return [f"The class depends on which cost is meant: {'; '.join(shown)}{more}."] if found else []


def _gpus_alone(rows: Sequence[Row]) -> list[str]:
    """How far costing by GPUs alone is off, where it is off the most: the paper's objection in its section 5."""
    have = [r for r in rows if r["gpu_only_error"] is not None]
    if not have:
        return []
    worst = max(have, key=lambda r: abs(r["gpu_only_error"]))
    parts = [
        f"{what} {signed(100 * worst[column])}%"
        for column, what in (("gpu_only_purchase_error", "purchase"), ("gpu_only_energy_error", "power"))
        if worst[column]
    ]
    detail = f" ({', '.join(parts)})" if parts else ""
    return [
        f"Without processors, memory and board, the cost per token of {worst['deployment']} would be off by "
        f"{signed(100 * worst['gpu_only_error'])}%{detail}; the cost table says it for every point."
    ]


def _at_common_batch(rows: Sequence[Row], reference: str | None) -> tuple[list[Row], int | None]:
    """The rows at the largest batch size that most deployments have, and that batch size.

    A deployment with a single point takes part with it (printed figures have no batch size, or one of their own); the
    batch size is then null unless it is everyone's.
    """
    of: dict[str, list[Row]] = {}
    for r in rows:
        of.setdefault(r["deployment"], []).append(r)
    counts: dict[Any, set[str]] = {}
    for r in rows:
        if len(of[r["deployment"]]) > 1:
            counts.setdefault(r["batch_size"], set()).add(r["deployment"])
    best = max(counts, key=lambda b: (len(counts[b]), reference in counts[b], b or 0)) if counts else None
    chosen = [r for r in rows if len(of[r["deployment"]]) == 1 or (counts and r["batch_size"] == best)]
    shared = {r["batch_size"] for r in chosen}
    return chosen, shared.pop() if len(shared) == 1 else None


def _winners(group: Sequence[Row]) -> list[str]:
    """Who is cheapest, most accurate and fastest; the three are one deployment only where there is no trade-off."""
    if len({r["deployment"] for r in group}) < 2:
        return []
    wanted: list[tuple[str, str, Callable[[Any], str], bool]] = [
        ("usd_per_million_tokens", "cheapest per token", lambda v: f"{dollars(v)} per million tokens", False),
        ("accuracy", "most accurate", percent, True),
        ("output_tokens_per_s", "fastest", lambda v: f"{number(v)} generated tokens/s", True),
    ]
    leads: dict[str, list[str]] = {}
    same = ""
    for column, word, show, higher in wanted:
        have = [r for r in group if r[column] is not None]
        if not have:
            continue
        if column == "accuracy" and len({r[column] for r in have}) == 1:
            same = f" All have the same accuracy ({percent(have[0][column])})."
            continue
        first, *others = sorted(have, key=lambda r, c=column: r[c], reverse=higher)
        near = others and (_within_noise if column == "accuracy" else _overlap)(first, others[0], column)
        unsure = f"; {others[0]['deployment']} within its interval" if near else ""
        leads.setdefault(first["deployment"], []).append(f"{word} ({show(first[column])}{unsure})")
    if sum(map(len, leads.values())) < 2:
        return []
    parts = [
        f"{name} is {_listing([f'the {w}' if i == 0 else w for i, w in enumerate(words)])}"
        for name, words in leads.items()
    ]
    complete = sum(map(len, leads.values())) == len(wanted)
    verdict = " No deployment leads in all three." if complete and len(leads) > 1 else ""
    return [f"{'; '.join(parts)}.{verdict}{same}"]


def _listing(parts: Sequence[str]) -> str:
    """
    >>> _listing(["a", "b", "c"])
    'a, b and c'
    """
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _compared(row: Row, anchor: Row) -> str:
    parts = []
    a, b = row["output_tokens_per_s"], anchor["output_tokens_per_s"]
    noise = _noise(row, anchor, "output_tokens_per_s")
    parts.append(f"{times(a / b)} the generated tokens per second{noise}")
    if row["usd_per_million_tokens"] and anchor["usd_per_million_tokens"]:
        ratio = row["usd_per_million_tokens"] / anchor["usd_per_million_tokens"]
        parts.append(f"{times(ratio)} the cost per token")
    if row["hardware_usd"] and anchor["hardware_usd"] and row["hardware_usd"] != anchor["hardware_usd"]:
        parts.append(f"{times(row['hardware_usd'] / anchor['hardware_usd'])} the cost to buy")
    if row["accuracy"] is not None and anchor["accuracy"] is not None:
        points = 100 * (row["accuracy"] - anchor["accuracy"])
        z = _standard_errors(row, anchor)
        if percent(row["accuracy"]) == percent(anchor["accuracy"]):
            parts.append(f"the same accuracy ({percent(row['accuracy'])})")
        else:
            size = "" if z is None else f", {abs(z):.1f} standard errors" + (": within noise" if abs(z) < 2 else "")
            change = f"accuracy {percent(row['accuracy'])} instead of {percent(anchor['accuracy'])}"
            parts.append(f"{change} ({signed(points)} points{size})")
    return f"{row['deployment']} against {anchor['deployment']}: {_listing(parts)}."


def _noise(row: Row, anchor: Row, column: str) -> str:
    return " (the intervals overlap)" if _overlap(row, anchor, column) else ""


def _overlap(row: Row, other: Row, column: str) -> bool:
    ends = [r.get(f"{column}_{end}") for r in (row, other) for end in ("low", "high")]
    if None in ends:
        return False
    low_a, high_a, low_b, high_b = ends
    return low_a <= high_b and low_b <= high_a


def _within_noise(row: Row, other: Row, _column: str = "accuracy") -> bool:
    z = _standard_errors(row, other)
    return z is not None and abs(z) < 2


def _standard_errors(row: Row, anchor: Row) -> float | None:
    """The difference of two accuracies in standard errors of a difference, taken as independent (an upper bound)."""
    errors = [r["accuracy_stderr"] for r in (row, anchor)]
    if None in errors or not any(errors):
        return None
    return (row["accuracy"] - anchor["accuracy"]) / math.hypot(*errors)


def _overestimates(rows: Sequence[Row]) -> list[str]:
    have = [r for r in rows if r["mbu_over_s_mbu"] is not None and r["batch_size"]]
    if not have:
        return []
    worst, least = (pick(have, key=lambda r: r["mbu_over_s_mbu"]) for pick in (max, min))

    def of(row: Row) -> str:
        where = f"{row['deployment']}, {row['dataset']}, batch size {row['batch_size']}"
        return f"{times(row['mbu_over_s_mbu'])} ({where})"

    range_ = f"from {of(least)} to {of(worst)} of" if worst is not least else f"{of(worst)} of"
    return [f"MBU, which counts every expert, counts {range_} the bytes that S-MBU counts in decode."]


def _frontier(rows: Sequence[Row]) -> list[str]:
    sure = sorted((r for r in rows if (r["pareto_frequency"] or 0) >= 0.5), key=lambda r: -r["pareto_frequency"])
    if not sure:
        return []
    shown = [
        r["deployment"]
        + (f" at batch size {r['batch_size']}" if r["batch_size"] else "")
        + f" ({percent(r['pareto_frequency'], 0)})"
        for r in sure[:MAX_COMPARED]
    ]
    more = f" and {len(sure) - len(shown)} more" if len(sure) > len(shown) else ""
    return [
        "On the Pareto frontier of cost, accuracy and throughput, over all batch sizes, in at least half of the draws "
        f"within their intervals: {', '.join(shown)}{more}."
    ]


# --- what a utilization is worth -----------------------------------------------------------------------------------


def cache_note(rows: Sequence[Row], machines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Weights of each model × precision against the last-level cache of the machine that served it.

    Returns:
        Dicts with ``model``, ``precision``, ``hardware``, ``weight_bytes``, ``cache_bytes``, ``ratio`` and ``verdict``.
    """
    caches = {m.get("hardware"): m.get("last_level_cache_bytes") for m in machines}
    found = []
    for r in rows:
        cache, weights = caches.get(r["hardware"]), r["weight_bytes"]
        if not cache or not weights:
            continue
        key = {k: r[k] for k in ("model", "precision", "hardware")}
        if any(all(f[k] == v for k, v in key.items()) for f in found):
            continue
        ratio = weights / cache
        if ratio <= 1:
            verdict = (
                "The whole model fits into the cache: steps after the first need not read weights from memory. "
                "S-MBU says how many bytes the step has to touch, not how busy the memory was; it may even exceed 1."
            )
        elif ratio < 4:
            verdict = (
                "A part of the weights stays in the cache from step to step: S-MBU overstates how busy memory was."
            )
        else:
            verdict = (
                "Several times the cache: most weights come from memory in every step, so S-MBU means what it says."
            )
        found.append({**key, "weight_bytes": weights, "cache_bytes": cache, "ratio": ratio, "verdict": verdict})
    return found


# --- tables --------------------------------------------------------------------------------------------------------


def _cell(value: Any, show: Callable[[Any], str] = str, note: str = "", badge: str = "", kind: str = "") -> Cell:
    if value is None or value == "":
        return Cell("–", "", note, "", "null number" if kind == "number" else "null")
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(
        show(value), repr(value) if numeric else str(value), note, badge, kind or ("number" if numeric else "text")
    )


def _unbroken(text: str) -> str:
    """In one line even where the words around it wrap."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _interval(row: Row, column: str, show: Callable[[Any], str]) -> Cell:
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    note = _unbroken(f"{show(low)} –\N{WORD JOINER} {show(high)}") if low is not None and high is not None else ""
    return _cell(row[column], show, note, kind="number")


def _head(column: str, text: str, unit: str = "", number: bool = True, first: str = "descending") -> Head:
    metadata = CAP_SCHEMA.field(column).metadata if column in CAP_SCHEMA.names else {}
    title = (metadata.get(b"meaning") or b"").decode()
    source = (metadata.get(b"source") or b"").decode()
    return Head(text, unit, f"{title} {source}".strip(), number, first if number else "ascending")


def _status_cell(row: Row, note: str = "") -> Cell:
    badge = {"measured": "good", "failed": "bad", "missing": "warn", "estimated": "warn"}.get(row["status"], "")
    return Cell(row["status"], row["status"], note, badge=badge or "plain", kind="text")


def _price_cell(row: Row) -> Cell:
    status = row["price_status"]
    if status is None:
        return _cell(None)
    sure = status in GOOD_PRICES and not row["figures_unverified"]
    note = "a figure behind it is unverified" if row["figures_unverified"] and status in GOOD_PRICES else ""
    return Cell(status, status, note, badge="good" if sure else "warn", kind="text")


def _money(row: Row, column: str) -> Cell:
    """An amount with its interval, and a mark where it rests on a price without a source that was read."""
    cell = _interval(row, column, dollars)
    of = ("price_status",) if column == "hardware_usd" else ("price_status", "electricity_status")
    weak = [row[c] for c in of if row[c] and row[c] not in GOOD_PRICES]
    if not weak and row["figures_unverified"] and column != "hardware_usd":
        weak = ["unverified"]
    if row[column] is None or not weak:
        return cell
    return replace(cell, note="; ".join(filter(None, [cell.note, f"prices: {', '.join(dict.fromkeys(weak))}"])))


def _identity(row: Row, *columns: str) -> list[Cell]:
    return [_cell(row[c], kind="number" if c in ("batch_size", "devices") else "text") for c in columns]


def _text_heads(*columns: str) -> list[Head]:
    return [_head(c, c.replace("_", " "), number=c in ("batch_size", "devices"), first="ascending") for c in columns]


def leaderboard(rows: Sequence[Row]) -> View:
    """One row per deployment and dataset, at its fastest batch size; a failed one stands there as failed."""
    best: dict[tuple[str, str], Row] = {}
    lacking: dict[tuple[str, str], int] = {}
    for r in rows:
        key = (r["deployment"], r["dataset"])
        lacking[key] = lacking.get(key, 0) + (r["status"] in ("failed", "missing"))
        if key not in best or (r["output_tokens_per_s"] or -1) > (best[key]["output_tokens_per_s"] or -1):
            best[key] = r
    heads = [
        *_text_heads("deployment", "dataset"),
        _head("batch_size", "batch"),
        _head("accuracy", "accuracy"),
        _head("output_tokens_per_s", "throughput", "tokens/s"),
        _head("tpot_s", "TPOT", "per token", first="ascending"),
        _head("usd_per_million_tokens", "cost", "per 10⁶ tokens", first="ascending"),
        _head("hardware_usd", "to buy", first="ascending"),
        _head("decode_s_mbu", "S-MBU", "decode"),
        _head("decode_s_mfu", "S-MFU", "decode"),
        _head("cap_class", "holds", number=False),
        _head("pareto_frequency", "frontier"),
        _head("status", "status", number=False),
    ]
    body = [
        [
            *_identity(r, "deployment", "dataset", "batch_size"),
            _cell(r["accuracy"], percent, _plus_minus(r), kind="number"),
            _interval(r, "output_tokens_per_s", number),
            _interval(r, "tpot_s", seconds),
            _money(r, "usd_per_million_tokens"),
            _money(r, "hardware_usd"),
            _interval(r, "decode_s_mbu", percent),
            _interval(r, "decode_s_mfu", percent),
            _cell(r["cap_class"], note=_differing_class(r), kind="text"),
            _cell(r["pareto_frequency"], lambda v: percent(v, 0), kind="number"),
            _status_cell(r, f"{lacking[key]} other point(s) not" if lacking[key] and r["status"] == "measured" else ""),
        ]
        for key, r in best.items()
    ]
    return View("leaderboard", heads, body, "Each deployment at its fastest batch size.")


def _plus_minus(row: Row) -> str:
    parts = []
    if row["accuracy_stderr"] is not None:
        parts.append(_unbroken(f"± {100 * row['accuracy_stderr']:.1f}"))
    if row["accuracy_n"] is not None:
        parts.append(_unbroken(f"n = {row['accuracy_n']}"))
    return ", ".join(parts)


def _differing_class(row: Row) -> str:
    other = row["cap_class_purchase"]
    return f"by purchase: {other}" if other and other != row["cap_class"] else ""


def accuracy_table(rows: Sequence[Row], reference: str | None) -> View:
    """One row per model × precision × engine × dataset, with the difference to the reference deployment."""
    anchor_of = anchors_of(rows, reference)
    seen: dict[tuple[Any, ...], Row] = {}
    for r in rows:
        if r["accuracy"] is not None:
            seen.setdefault((r["model"], r["precision"], r["engine"], r["dataset"], r["accuracy"]), r)
    heads = [
        *_text_heads("model", "precision", "engine", "dataset"),
        _head("accuracy_metric", "metric", number=False),
        _head("accuracy", "accuracy"),
        _head("accuracy_stderr", "standard error", "points"),
        _head("accuracy_n", "n"),
        Head("against the reference", "points", "", True, "descending"),
    ]
    body = []
    for r in seen.values():
        anchor = anchor_of(r)
        difference, note = None, ""
        own = anchor is not None and all(anchor[c] == r[c] for c in ("model", "precision", "engine"))
        if anchor is not None and anchor["accuracy"] is not None and not own:
            difference = 100 * (r["accuracy"] - anchor["accuracy"])
            z = _standard_errors(r, anchor)
            note = "" if z is None else f"{abs(z):.1f} standard errors"
        body.append(
            [
                *_identity(r, "model", "precision", "engine", "dataset"),
                _cell(r["accuracy_metric"]),
                _interval(r, "accuracy", percent),
                _cell(r["accuracy_stderr"], lambda v: f"{100 * v:.2f}", kind="number"),
                _cell(r["accuracy_n"], lambda v: f"{v:,}", kind="number"),
                _cell(difference, signed, note, kind="number"),
            ]
        )
    return View("accuracy-table", heads, body)


def performance_table(rows: Sequence[Row]) -> View:
    """Latency and throughput of every point with intervals."""
    shown = (
        ("ttft_s", "TTFT", "mean", seconds, "ascending"),
        ("tpot_s", "TPOT", "mean", seconds, "ascending"),
        ("itl_s", "ITL", "mean", seconds, "ascending"),
        ("output_tokens_per_s", "generated", "tokens/s", number, "descending"),
        ("total_tokens_per_s", "all tokens", "tokens/s", number, "descending"),
    )
    heads = [
        *_text_heads("deployment", "dataset", "batch_size"),
        *(_head(c, t, u, first=first) for c, t, u, _, first in shown),
        _head("repeats", "repeats"),
        _head("steps", "steps"),
        _head("mixed_step_share", "mixed steps"),
        _head("status", "status", number=False),
    ]
    body = [
        [
            *_identity(r, "deployment", "dataset", "batch_size"),
            *(_interval(r, c, show) for c, _, _, show, _ in shown),
            _cell(r["repeats"], kind="number"),
            _cell(r["steps"], lambda v: f"{v:,}", kind="number"),
            _cell(r["mixed_step_share"], percent, kind="number"),
            _status_cell(r),
        ]
        for r in rows[:MAX_ROWS]
    ]
    return View("performance-table", heads, body)


def utilization_table(rows: Sequence[Row]) -> View:
    """Utilizations of every point, as printed and complete, and where one exceeds 1."""
    shown = [
        (f"{phase}_{name}{suffix}", f"{label}{', complete' if suffix else ''}", phase)
        for phase in ("decode", "prefill")
        for name, label in (("mbu", "MBU"), ("s_mbu", "S-MBU"), ("mfu", "MFU"), ("s_mfu", "S-MFU"))
        for suffix in ("", "_complete")
    ]
    shown += [(f"decode_{tier}_utilization", f"{tier.upper()}, of its peak", "decode") for tier in TIERS]
    shown = [s for s in shown if any(r[s[0]] is not None for r in rows)]
    heads = [
        *_text_heads("deployment", "dataset", "batch_size"),
        *(_head(column, label, phase) for column, label, phase in shown),
        _head("mbu_over_s_mbu", "MBU / S-MBU", "decode"),
        Head("above 1", "", "A utilization exceeds 1: bytes, time or peak are wrong, or a cache holds the model."),
    ]
    body = []
    for r in rows[:MAX_ROWS]:
        above = r["utilization_above_one"]
        flag = Cell("above 1", "1", badge="bad", kind="text") if above else _cell(None if above is None else "no")
        body.append(
            [
                *_identity(r, "deployment", "dataset", "batch_size"),
                *(_interval(r, column, percent) for column, _, _ in shown),
                _interval(r, "mbu_over_s_mbu", times),
                flag,
            ]
        )
    return View("utilization-table", heads, body)


def bytes_table(rows: Sequence[Row]) -> View | None:
    """Bytes per decode step by who counts."""
    have = [r for r in rows if r["decode_s_mbu_bytes"] is not None]
    if not have:
        return None
    heads = [
        *_text_heads("deployment", "dataset", "batch_size"),
        *(_head(c, text, "B") for c, text in charts.BYTE_COUNTS.items()),
    ]
    body = [
        [
            *_identity(r, "deployment", "dataset", "batch_size"),
            *(_cell(r[c], number, kind="number") for c in charts.BYTE_COUNTS),
        ]
        for r in have[:MAX_ROWS]
    ]
    return View("bytes-table", heads, body, "Mean bytes read per decode step, KV cache included.")


#: Further ways to say a cost, shown where there is any: column → (heading, unit).
MORE_COSTS = {
    "usd_per_million_input_tokens": ("input", "$ per 10⁶ prompt tokens"),
    "usd_per_million_output_tokens": ("output", "$ per 10⁶ generated tokens, decode alone"),
    "rental_usd_per_million_tokens": ("rented", "$ per 10⁶ tokens"),
    "spot_usd_per_million_tokens": ("spot", "$ per 10⁶ tokens"),
    "elastic_usd_per_million_tokens": ("elastic", "$ per 10⁶ tokens"),
    "serverless_usd_per_million_tokens": ("serverless", "$ per 10⁶ tokens"),
    "api_usd_per_million_output_tokens": ("others' API", "$ per 10⁶ generated tokens"),
    "evaluation_usd": ("the evaluation", "$"),
}


def cost_table(rows: Sequence[Row]) -> View:
    """Purchase, energy and cost per token of every point, with what the prices rest on."""
    more = {c: head for c, head in MORE_COSTS.items() if any(r[c] is not None for r in rows)}
    heads = [
        *_text_heads("deployment", "dataset", "batch_size"),
        _head("hardware_usd", "to buy", "$", first="ascending"),
        _head("energy_usd", "energy", "$ over the lifetime", first="ascending"),
        _head("usd_per_million_tokens", "cost", "$ per 10⁶ tokens", first="ascending"),
        *(_head(c, text, unit, first="ascending") for c, (text, unit) in more.items()),
        _head("tokens_per_usd", "tokens per $"),
        _head("tokens_per_kwh", "tokens per kWh"),
        _head("power_w", "power", "W", first="ascending"),
        _head("energy_source", "power is", number=False),
        _head("gpu_only_error", "GPUs alone", "would be off by"),
        _head("price_status", "prices are", number=False),
        _head("price_source", "price source", number=False),
    ]
    body = [
        [
            *_identity(r, "deployment", "dataset", "batch_size"),
            _interval(r, "hardware_usd", dollars),
            _interval(r, "energy_usd", dollars),
            _interval(r, "usd_per_million_tokens", dollars),
            *(_interval(r, c, dollars) for c in more),
            _interval(r, "tokens_per_usd", number),
            _interval(r, "tokens_per_kwh", number),
            _interval(r, "power_w", number),
            _source_cell(r["energy_source"]),
            _interval(r, "gpu_only_error", lambda v: f"{signed(100 * v)}%"),
            _price_cell(r),
            _cell(r["price_source"], note=_price_note(r), kind="text long"),
        ]
        for r in rows[:MAX_ROWS]
        if r["hardware_usd"] is not None or r["usd_per_million_tokens"] is not None
    ]
    return View("cost-table", heads, body)


def _price_note(row: Row) -> str:
    parts = []
    if row["price_complete"] is False:
        parts.append("a part has no price: a lower bound")
    if row["electricity_status"] and row["electricity_status"] not in GOOD_PRICES:
        parts.append(f"electricity: {row['electricity_status']}")
    if row["price_notes"]:
        parts.append(row["price_notes"])
    if row["rental_source"]:
        parts.append(f"rent: {row['rental_source']}")
    if row["api_source"]:
        parts.append(f"others' API: {row['api_source']}")
    return "; ".join(parts)


def _source_cell(source: str | None) -> Cell:
    if source is None:
        return _cell(None)
    measured = {part.strip() for part in source.split("+")} <= {"nvml", "rapl"}
    text = f"measured ({source})" if measured else source
    return Cell(text, text, badge="good" if measured else "warn", kind="text")


def failures_table(failures: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> View | None:
    """What failed: records first, then failed rows that no record speaks of."""
    records = [dict(f) for f in failures]
    if not records:
        seen: dict[tuple[Any, ...], Row] = {}
        for r in rows:
            if r["failure_reason"] or r["status"] == "failed":
                key = tuple(r[k] for k in ("deployment", "failure_stage", "failure_reason"))
                seen.setdefault(
                    key, {"deployment": r["deployment"], "stage": key[1], "reason": key[2], "log": r["failure_log"]}
                )
        records = list(seen.values())
    if not records:
        return None
    heads = [Head(t) for t in ("what", "stage", "reason", "again?", "log")]
    body = []
    for f in records:
        what = f.get("deployment") or " ".join(
            str(f[k]) for k in ("model", "precision", "engine", "hardware") if f.get(k)
        )
        point = " ".join(str(f[k]) for k in ("dataset", "batch_size") if f.get(k) is not None)
        permanent = f.get("permanent")
        again = None if permanent is None else ("no: would fail again" if permanent else "yes: may succeed")
        body.append(
            [
                _cell(what, note=point, kind="text"),
                _cell(f.get("stage")),
                _cell(f.get("reason") or f.get("message")),
                _cell(again),
                _cell(f.get("log") or f.get("file")),
            ]
        )
    return View("failures-table", heads, body, sortable=False)


def extra_view(table: ExtraTable, index: int) -> View:
    """A further table: its columns as their metadata say, numbers to four digits where they say nothing."""
    columns = list(dict.fromkeys(k for r in table.rows for k in r))
    heads, forms = [], []
    for c in columns:
        said = table.fields.get(c, {})
        unit, form = _FORMS.get(said.get("form") or said.get("unit") or "", (said.get("unit", ""), _plain))
        numeric = any(isinstance(r.get(c), int | float) and not isinstance(r.get(c), bool) for r in table.rows)
        heads.append(
            Head(
                said.get("label") or c.replace("_", " "),
                unit if unit != "1" else "",
                said.get("meaning", ""),
                number=numeric,
                first="ascending",
            )
        )
        forms.append(form)
    body = [[_cell(r.get(c), form) for c, form in zip(columns, forms, strict=True)] for r in table.rows[:MAX_ROWS]]
    return View(f"extra-{index}", heads, body, table.note)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


#: How a column of a further table is shown: its unit or form → the unit in its heading, and the number.
_FORMS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "B": ("B", lambda value: number(value, 6)),
    "s": ("", seconds),
    "share": ("", percent),
    "error": ("", lambda value: f"{signed(100 * value, 3)}%"),
    "USD": ("$", lambda value: f"{value:,.0f}"),
}


# --- machine and provenance ---------------------------------------------------------------------------------------

MACHINE_FACTS = (
    ("cpu_model", "processor", "detected"),
    ("sockets", "sockets", "detected"),
    ("cores", "cores", "detected"),
    ("available_cores", "cores that this process may use", "detected"),
    ("isa", "instruction sets", "detected"),
    ("memory_bytes", "memory", "detected"),
    ("memory_limit_bytes", "memory limit", "detected"),
    ("last_level_cache_bytes", "last-level cache", "detected"),
    ("power_cap_w", "power cap", "detected"),
    ("clocks", "clocks", "detected"),
    ("numa", "NUMA nodes", "detected"),
    ("driver", "GPU driver", "detected"),
    ("gpus", "GPUs", "detected"),
    ("kernel", "kernel", "detected"),
    ("virtualized", "virtual machine", "detected"),
    ("read_bandwidth_bytes_per_s", "read bandwidth", "measured"),
    ("copy_bandwidth_bytes_per_s", "copy bandwidth", "measured"),
    ("peak_flops", "peak FLOP/s", "measured"),
    ("fingerprint", "fingerprint", "detected"),
)


def machine_facts(machine: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, how it is known) of what detection and calibration found; what is null is said to be unknown."""
    found = []
    for key, name, how in MACHINE_FACTS:
        if key in machine:
            value = machine[key]
            found.append((name, _fact(key, value), how if value not in (None, [], {}) else "not readable here"))
    return found


def _fact(key: str, value: Any) -> str:
    if value in (None, [], {}):
        return "none" if key == "gpus" else "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        parts = [
            f"{k.removesuffix('_hz')} {_fact(k if '_' in k else key, v)}" for k, v in value.items() if v is not None
        ]
        return ", ".join(parts) or "–"
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], Mapping):
            names = [str(v.get("name") or f"node {v.get('node')}: {v.get('cpus')}") for v in value]
            return "; ".join(names)
        return ", ".join(map(str, value))
    if key.endswith("_bytes_per_s"):
        return f"{value / 1e9:,.1f} GB/s"
    if key.endswith("_bytes"):
        return binary(value)
    if key.endswith("_hz"):
        return f"{value / 1e9:.2f} GHz"
    if key.endswith("_w"):
        return f"{value:g} W"
    if key == "peak_flops":
        return f"{number(value)}FLOP/s"
    return str(value)


def provenance_facts(inputs: Inputs, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, value) of what the results were made from."""
    facts: list[tuple[str, str]] = []
    made = dict(inputs.provenance)
    commit = made.pop("git_commit", None)
    dirty = made.pop("git_dirty", None)
    if commit:
        facts.append(("commit", f"{commit}{' (with uncommitted changes)' if dirty else ''}"))
    made.pop("cap", None)  # the classes' rule; the leaderboard says it in words
    for key, value in made.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value is not None:
            facts.append((key.replace("_", " "), str(value)))
    for column, name in (("engine_version", "engine"), ("seed", "seed"), ("workload", "workload")):
        values = dict.fromkeys(
            f"{r['engine']} {r[column]}" if column == "engine_version" else str(r[column])
            for r in rows
            if r[column] is not None
        )
        if values:
            facts.append((name, "; ".join(list(values)[:12])))
    libraries: dict[str, Any] = {}
    for r in rows:
        if r["libraries"]:
            try:
                libraries |= json.loads(r["libraries"])
            except (ValueError, TypeError):
                libraries["libraries"] = r["libraries"]
    if libraries:
        facts.append(("libraries of the timed runs", ", ".join(f"{k} {v}" for k, v in sorted(libraries.items()))))
    times_ = [r["start_unix_s"] for r in rows if r["start_unix_s"]]
    if times_:
        first, last = (
            datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M UTC") for t in (min(times_), max(times_))
        )
        facts.append(("timed", first if first == last else f"{first} to {last}"))
    return facts


# --- the page ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A chart of the page, or the reason why it is not there."""

    id: str
    section: str
    caption: str
    spec: Mapping[str, Any] | None = None
    svg: str = ""
    why_not: str = ""


def figures(inputs: Inputs) -> list[Figure]:
    """Every chart that the inputs have data for; the others with the reason why not."""
    reference = inputs.reference or _default_reference(inputs.table)
    drawn, left_out = charts.draw_all(inputs.table, reference, inputs.routing)
    found = [Figure(name, *charts.caption_of(name), why_not=reason) for name, reason in left_out.items()]
    for name, chart in drawn.items():
        spec = charts.spec(chart)
        found.append(Figure(name, *charts.caption_of(name), spec, charts.to_svg(spec)))
    for index, table in enumerate(inputs.tables):
        if table.chart and table.rows:
            spec = charts.spec(charts.CHECKS[table.chart](table.rows))
            found.append(Figure(f"check-{index}", f"check-{index}", table.title, spec, charts.to_svg(spec)))
    return found


def render_report(inputs: Inputs) -> str:
    """The whole report as HTML text."""
    rows = inputs.table.to_pylist()
    reference = inputs.reference or _default_reference(inputs.table)
    status: dict[str, int] = {}
    for r in rows:
        status[r["status"]] = status.get(r["status"], 0) + 1
    drawn = figures(inputs)
    values = {
        "title": inputs.title or "CAP report",
        "facts": _headline(rows, reference),
        "banners": _banners(rows, status, inputs),
        "findings": findings(rows, reference),
        "reference": reference,
        "rule": rule(inputs.provenance["cap"]) if inputs.provenance.get("cap") else None,
        "leaderboard": leaderboard(rows),
        "figures": drawn,
        "accuracy": accuracy_table(rows, reference),
        "performance": performance_table(rows),
        "utilization": utilization_table(rows),
        "bytes": bytes_table(rows),
        "cache": [
            {**c, "weights": binary(c["weight_bytes"]), "cache": binary(c["cache_bytes"])}
            for c in cache_note(rows, inputs.machines)
        ],
        "cost": cost_table(rows),
        "unsure": _unsure(rows),
        "imbalance": _imbalance(inputs.routing),
        "machines": [(m.get("hardware") or "machine", machine_facts(m)) for m in inputs.machines],
        "extra": [(t.title, f"check-{i}", extra_view(t, i)) for i, t in enumerate(inputs.tables) if t.rows],
        "failures": failures_table(inputs.failures, rows),
        "samples": _answers(inputs.samples),
        "provenance": provenance_facts(inputs, rows),
        "cut": len(rows) > MAX_ROWS,
        "row_limit": MAX_ROWS,
        "specs": {f.id: f.spec for f in drawn if f.spec is not None},
        "themes": charts.themes(),
        "bundle": charts.vega_bundle(),
    }
    return render("report.html.j2", values)


def _default_reference(table: pa.Table) -> str | None:
    return table["deployment"][0].as_py() if table.num_rows else None


def _headline(rows: Sequence[Row], reference: str | None) -> list[tuple[str, str]]:
    def listed(column: str) -> str:
        values = list(dict.fromkeys(str(r[column]) for r in rows if r[column] is not None))
        return ", ".join(values) if len(values) <= 4 else f"{len(values)}"

    facts = [
        ("deployments", str(len({r["deployment"] for r in rows}))),
        ("points", str(len(rows))),
        ("models", listed("model")),
        ("precisions", listed("precision")),
        ("engines", listed("engine")),
        ("hardware", listed("hardware")),
        ("datasets", listed("dataset")),
        ("reference", reference or "–"),
        ("timed", _day(rows)),
    ]
    return [(name, value) for name, value in facts if value]


def _unsure(rows: Sequence[Row]) -> list[str]:
    """What the prices and figures behind the costs are called that nobody verified, in alphabetical order."""
    found = {r[c] for r in rows for c in ("price_status", "electricity_status") if r[c]} - set(GOOD_PRICES)
    return sorted(found | ({"unverified"} if any(r["figures_unverified"] for r in rows) else set()))


def _imbalance(routing: Mapping[str, Sequence[Row]]) -> View | None:
    """How evenly each layer's experts are loaded, of the deployments whose routing was analysed."""
    columns = {
        "load_max_over_mean": ("busiest / mean", "1 where even"),
        "load_gini": ("Gini coefficient", "0 where even"),
        "load_entropy_share": ("entropy", "1 where even"),
        "unused_experts": ("unused experts", ""),
    }
    rows = [(name, r) for name, group in routing.items() for r in group if r.get("load_gini") is not None]
    if not rows:
        return None
    heads = [Head("deployment"), Head("dataset"), Head("layer", number=True), Head("experts", number=True)]
    heads += [Head(text, unit, number=True, first="descending") for text, unit in columns.values()]
    body = [
        [
            _cell(name, kind="text"),
            _cell(r.get("dataset"), kind="text"),
            _cell(r["layer"]),
            _cell(r["experts"], note=f"top {r['top_k']}"),
            *(_cell(r.get(c), _plain, kind="number") for c in columns),
        ]
        for name, r in rows[:MAX_ROWS]
    ]
    return View("imbalance", heads, body, "Load of the routed experts, over the distinct sequences of a dataset.")


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


# --- the edge: files ----------------------------------------------------------------------------------------------


def read_inputs(
    cap: str | Path,
    machines: Iterable[str | Path] = (),
    anatomies: Iterable[str | Path] = (),
    routing: Iterable[str | Path] = (),
    samples: Iterable[str | Path] = (),
    failures: str | Path | None = None,
    tables: Iterable[Mapping[str, Any]] = (),
    reference: str | None = None,
    title: str | None = None,
) -> Inputs:
    """Read what :func:`render_report` needs.

    Args:
        cap: ``cap.parquet``.
        machines, anatomies: JSON files.
        failures: folder of failure records.
        routing: routing analyses; the deployment is the name of the folder that holds the file.
        samples: ``….samples.parquet`` of accuracy runs, named ``{model}/{precision}/{engine}/{dataset}-{hash}``.
        tables: ``title``, ``note`` (else the one in its metadata) and ``path`` of further Parquet tables, and which
            ``columns`` to show, if not all; those that do not exist are left out.
    """
    table = read_parquet(cap)
    rows = table.select(SCOPE).to_pylist()
    # Records of what the deployment table no longer asks for are of no interest; one that says not what it is about is.
    failed = [
        record
        for record in (read_failures(failures) if failures else [])
        if not any(record.get(key) for key in SCOPE) or any(applies(record, row) for row in rows)
    ]
    return Inputs(
        table=table,
        reference=reference,
        provenance=read_metadata(cap),
        machines=[read_json(p) for p in machines],
        anatomies=[read_json(p) for p in anatomies],
        routing=charts.routing_of(routing),
        samples=[(_sample_label(Path(p)), read_parquet(p).to_pylist()) for p in samples],
        failures=failed,
        tables=[_extra_table(**t) for t in tables if Path(t["path"]).exists()],
        title=title,
    )


def _extra_table(
    title: str,
    path: str | Path,
    note: str | None = None,
    columns: list[str] | None = None,
    chart: str | None = None,
) -> ExtraTable:
    """A Parquet file as a further table. Without a ``note``: what it says of itself in words, in its metadata."""
    table = read_parquet(path, columns)
    said = {f.name: {k.decode(): v.decode() for k, v in (f.metadata or {}).items()} for f in table.schema}
    return ExtraTable(title, table.to_pylist(), note or str(read_metadata(path).get("note") or ""), said, chart)


def _sample_label(path: Path) -> dict[str, str]:
    model, precision, engine = path.parts[-4:-1]
    dataset = path.name.removesuffix(".samples.parquet").rpartition("-")[0] or path.stem
    return {"model": model, "precision": precision, "engine": engine, "dataset": dataset}
