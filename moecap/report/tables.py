"""Tables of the report that need no script: the leaderboard's top, checks, failures, and pairs of facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moecap.cap.schema import CAP_SCHEMA
from moecap.report.columns import label_of
from moecap.report.findings import anchors_of, standard_errors
from moecap.report.inputs import ExtraTable
from moecap.report.numbers import dollars, number, percent, prefixed, seconds, signed
from moecap.report.pairs import Pairs, in_words

Row = dict[str, Any]

MAX_ROWS = 500  # of each long table; cap.parquet has everything
TOP = 20
GOOD_PRICES = ("verified", "derived")


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


def best_points(rows: Sequence[Row]) -> list[Row]:
    """One row per deployment and dataset, at its fastest batch size; the best deployments first.

    Best: most often on the Pareto frontier, then the cheapest per token, then the fastest; what failed comes last.
    """
    best: dict[tuple[str, str], Row] = {}
    for r in rows:
        key = (r["deployment"], r["dataset"])
        if key not in best or (r["output_tokens_per_s"] or -1) > (best[key]["output_tokens_per_s"] or -1):
            best[key] = r
    infinite = float("inf")
    return sorted(
        best.values(),
        key=lambda r: (
            r["output_tokens_per_s"] is None,
            -(r["pareto_frequency"] or 0.0),
            infinite if r["usd_per_million_tokens"] is None else r["usd_per_million_tokens"],
            -(r["output_tokens_per_s"] or 0.0),
        ),
    )


def leaderboard(rows: Sequence[Row], limit: int = TOP) -> View:
    """The best deployments and datasets (:func:`best_points`); a failed one stands there as failed."""
    lacking: dict[tuple[str, str], int] = {}
    for r in rows:
        key = (r["deployment"], r["dataset"])
        lacking[key] = lacking.get(key, 0) + (r["status"] in ("failed", "missing"))
    best = best_points(rows)
    heads = [
        *_text_heads("deployment", "dataset", "batch_size"),
        *_text_heads("model", "precision", "engine", "hardware", "devices"),
        _head("accuracy", "accuracy"),
        _head("output_tokens_per_s", "throughput", "tokens/s"),
        _head("tpot_s", "TPOT", "per token", first="ascending"),
        _head("usd_per_million_tokens", "cost", "per 10⁶ tokens", first="ascending"),
        _head("hardware_usd", "to buy", first="ascending"),
        _head("decode_s_mbu", "S-MBU", "decode"),
        _head("cap_class", "CAP class", number=False),
        _head("pareto_frequency", "on the frontier", "share of draws"),
        _head("status", "status", number=False),
    ]
    body = [
        [
            *_identity(r, "deployment", "dataset", "batch_size", "model", "precision", "engine", "hardware", "devices"),
            _cell(r["accuracy"], percent, _plus_minus(r), kind="number"),
            _interval(r, "output_tokens_per_s", number),
            _interval(r, "tpot_s", seconds),
            _money(r, "usd_per_million_tokens"),
            _money(r, "hardware_usd"),
            _interval(r, "decode_s_mbu", percent),
            _cell(r["cap_class"], note=_differing_class(r), kind="text"),
            _cell(r["pareto_frequency"], lambda v: percent(v, 0), kind="number"),
            _status_cell(r, _others(lacking[r["deployment"], r["dataset"]]) if r["status"] == "measured" else ""),
        ]
        for r in best[:limit]
    ]
    total = len(best)
    which = f"The best {limit} of {total}" if total > limit else f"All {total}"
    return View("leaderboard", heads, body, f"{which} deployments and datasets, each at its fastest batch size.")


def _others(count: int) -> str:
    return f"{count} other point(s) not" if count else ""


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


#: What came in place of a proper answer: columns `accuracy_…` of the CAP table.
_IMPROPER = ("failed", "empty", "cut", "unparsed")


def accuracy_table(rows: Sequence[Row], reference: str | None, pairs: Pairs | None = None) -> View:
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
        *(_head(f"accuracy_{what}", what, first="ascending") for what in _IMPROPER),
        Head("against the reference", "points", "", True, "descending"),
    ]
    body = []
    for r in seen.values():
        anchor = anchor_of(r)
        difference, note = None, ""
        own = anchor is not None and all(anchor[c] == r[c] for c in ("model", "precision", "engine"))
        if anchor is not None and anchor["accuracy"] is not None and not own:
            difference = 100 * (r["accuracy"] - anchor["accuracy"])
            z, same = standard_errors(r, anchor), pairs(r, anchor) if pairs else None
            note = "" if z is None else f"{abs(z):.1f} standard errors, as if independent"
            note = note if same is None else in_words(same)
        body.append(
            [
                *_identity(r, "model", "precision", "engine", "dataset"),
                _cell(r["accuracy_metric"]),
                _interval(r, "accuracy", percent),
                _cell(r["accuracy_stderr"], lambda v: f"{100 * v:.2f}", kind="number"),
                _cell(r["accuracy_n"], lambda v: f"{v:,}", kind="number"),
                *(_cell(r[f"accuracy_{what}"], lambda v: f"{v:,}", kind="number") for what in _IMPROPER),
                _cell(difference, signed, note, kind="number"),
            ]
        )
    return View("accuracy-table", heads, body)


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


def extra_view(table: ExtraTable, id_: str) -> View:
    """A further table: its columns as their metadata say, numbers to four digits where they say nothing."""
    columns = list(dict.fromkeys(k for r in table.rows for k in r))
    heads, forms = [], []
    for c in columns:
        said = table.fields.get(c, {})
        unit, form = _FORMS.get(said.get("form") or said.get("unit") or "", (said.get("unit", ""), _plain))
        numeric = any(isinstance(r.get(c), int | float) and not isinstance(r.get(c), bool) for r in table.rows)
        heads.append(
            Head(
                said.get("label") or label_of(c),
                unit if unit != "1" else "",
                said.get("meaning", ""),
                number=numeric,
                first="ascending",
            )
        )
        forms.append(form)
    body = [[_cell(r.get(c), form) for c, form in zip(columns, forms, strict=True)] for r in table.rows[:MAX_ROWS]]
    return View(f"{id_}-table", heads, body, table.note)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


#: How a column of a further table is shown: its unit or form → the unit in its heading, and the number.
_FORMS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "B": ("", lambda value: f"{prefixed(value, 6)}B"),
    "s": ("", seconds),
    "share": ("", percent),
    "error": ("", lambda value: f"{signed(100 * value, 3)}%"),
    "USD": ("", dollars),
}
