"""The paper's Tables 2, 3 and 4 in their own layout: printed, ours, and how far apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moecap.report.numbers import signed

Row = Mapping[str, Any]

_TITLES = {
    2: "Table 2: Mixtral-8x22B under PA, CP and CA configurations",
    3: "Table 3: throughput against accuracy at one cost",
    4: "Table 4: throughput against cost at one accuracy",
}
_PRECISIONS = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class PaperTable:
    """A table as the paper lays it out. ``rows`` are cells; ``notes`` are numbered and referred to by ``[n]``."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def paper_tables(rows: Sequence[Row]) -> list[PaperTable]:
    """Tables 2, 3 and 4 of the rows that were printed there; none where there are no such rows."""
    found = []
    for number in _TITLES:
        own = [r for r in rows if r.get("status") == "paper" and (r.get("source") or "").endswith(f"Table {number}")]
        if own:
            found.append(_table(number, own))
    return found


def _table(number: int, rows: Sequence[Row]) -> PaperTable:
    notes: list[str] = []
    body = [
        [
            *_identity(number, r),
            f"{100 * r['accuracy']:.2f}" if r["accuracy"] is not None else "–",
            f"{r['output_tokens_per_s']:,.2f}{_mark(r.get('printed_note'), notes)}",
            *_cost(r),
            *_classes(r),
        ]
        for r in rows
    ]
    heads = [
        *({2: ["case", "precision", "engine"], 3: ["model", "precision"], 4: ["model", "GPUs"]}[number]),
        *(["dataset"] if number != 2 else ["GPUs", "batch"]),
        "accuracy, %",
        "token/s",
        "cost, k$, printed",
        "ours",
        "difference",
        "class, printed",
        "ours, per token",
        "ours, by purchase",
        "against",
    ]
    return PaperTable(_TITLES[number], heads, body, notes)


def _identity(number: int, row: Row) -> list[str]:
    if number == 2:
        offload = f" + {row['offload']}" if row["offload"] else ""
        engine = row["engine"] or "–"
        return [
            row.get("printed_class") or row["deployment"],
            row["precision"],
            engine,
            f"{row['devices']}{offload}",
            str(row["batch_size"] or "–"),
        ]
    second = row["precision"] if number == 3 else str(row["devices"])
    return [row["model"], second, row["dataset"]]


def _cost(row: Row) -> list[str]:
    printed, ours = (None if v is None else v / 1000 for v in (row.get("printed_hardware_usd"), row["hardware_usd"]))
    found = ["–" if v is None else f"{v:.2f}" for v in (printed, ours)]
    if printed is None or ours is None:
        return [*found, "–"]
    return [*found, f"{signed(ours - printed, 2)} ({signed(100 * (ours - printed) / printed, 2)}%)"]


def _classes(row: Row) -> list[str]:
    return [
        row.get("printed_class") or "–",
        row["cap_class"] or "–",
        row["cap_class_purchase"] or "–",
        row["cap_reference"] or "–",
    ]


def _mark(note: str | None, notes: list[str]) -> str:
    if not note:
        return ""
    if note not in notes:
        notes.append(note)
    return f" [{notes.index(note) + 1}]"
