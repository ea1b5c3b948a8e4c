"""A plan as a table for a reader: cheapest first with runners-up, why others fall out, what holds a limit."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moecap.errors import MoecapError
from moecap.plan.answers import meets

Row = Mapping[str, Any]

#: What rows can be sorted by: name → (column, largest first).
SORTS = {
    "cost": ("usd_per_million_tokens", False),
    "price": ("hardware_usd", False),
    "tpot": ("tpot_s", False),
    "ttft": ("ttft_s", False),
    "throughput": ("output_tokens_per_s", True),
    "energy": ("joules_per_token", False),
}
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "": 1.0}
SYSTEM = ("model", "precision", "hardware", "devices", "layout")


def seconds(text: str) -> float:
    """A time as people write it.

    >>> [seconds(t) for t in ("20ms", "0.1 s", "0.1", "250us")]
    [0.02, 0.1, 0.1, 0.00025]

    Raises:
        ValueError: no number with a unit of time, or not above 0.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zµ]*)\s*", text)
    if not found or found.group(2) not in _UNITS:
        raise ValueError(f"{text!r} is no time: write 20ms, 0.1 s or 0.1")
    value = float(found.group(1)) * _UNITS[found.group(2)]
    if not value > 0:
        raise ValueError(f"{text!r} is not above 0")
    return value


def ranked(rows: Iterable[Row], limits: Mapping[str, float | None], sort: str = "cost", each: bool = True) -> list[Row]:
    """Rows that hold the limits, best first; with ``each``, only the best of every system.

    Raises:
        MoecapError: an unknown order.
    """
    if sort not in SORTS:
        raise MoecapError(f"--sort is {sort!r}; it is one of {', '.join(SORTS)}.")
    column, largest = SORTS[sort]
    held = [r for r in rows if r.get(column) is not None and _held(r, limits)]
    held.sort(key=lambda r: -r[column] if largest else r[column])
    if not each:
        return held
    best: dict[tuple[Any, ...], Row] = {}
    for row in held:
        best.setdefault(tuple(row.get(k) for k in SYSTEM), row)
    return list(best.values())


def _held(row: Row, limits: Mapping[str, float | None]) -> bool:
    return meets(row, limits.get("tpot_s"), limits.get("ttft_s"), limits.get("accuracy"))


def why_out(rows: Iterable[Row], limits: Mapping[str, float | None]) -> list[tuple[str, int]]:
    """Why points do not hold the limits: reason → how many, most frequent first; a point counts under its first."""
    counts: Counter[str] = Counter()
    for row in rows:
        if not row["feasible"]:
            counts[_kind(str(row["reason"]))] += 1
        elif not _held(row, limits):
            for key, name in (("tpot_s", "TPOT above the limit"), ("ttft_s", "TTFT above the limit")):
                limit = limits.get(key)
                if limit is not None and row[key] > limit:
                    counts[name] += 1
                    break
            else:
                counts["accuracy below the limit, or not known"] += 1
        elif row["usd_per_million_tokens"] is None:
            counts["no price is known"] += 1
    return counts.most_common()


def _kind(reason: str) -> str:
    if "GB are there" in reason:
        return "it does not fit into the memory"
    return re.sub(r"^\S+ has no (\S+) units\.$", r"the chip has no \1 units", reason)


def holds(rows: Iterable[Row], tpot_s: float) -> list[str]:
    """Which systems hold a TPOT, and up to which batch (the paper's section 4.4), smallest purchase first."""
    largest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["feasible"] and row["tpot_s"] <= tpot_s:
            key = tuple(row.get(k) for k in SYSTEM)
            if key not in largest or row["batch_size"] > largest[key]["batch_size"]:
                largest[key] = row
    order = sorted(largest.values(), key=lambda r: (r["hardware_usd"] is None, r["hardware_usd"] or 0.0))
    found = []
    for row in order:
        sure = row["tpot_s_high"] is not None and row["tpot_s_high"] <= tpot_s
        found.append(
            f"{row['devices']} x {row['hardware']} hold {tpot_s * 1e3:,.3g} ms for {row['model']} {row['precision']} "
            f"up to batch {row['batch_size']}" + (", its interval too" if sure else "")
        )
    return found


HEADERS = ("", "model", "devices", "layout", "batch", "TPOT ms (90%)", "TTFT s", "token/s", "USD/10⁶ (90%)", "J/token",
           "rests on")  # fmt: skip


def as_text(rows: Sequence[Row], top: int) -> str:
    """The first rows as a table."""
    lines = [HEADERS, *(_cells(i, row) for i, row in enumerate(rows[:top], 1))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADERS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if len(rows) > top:
        text.append(f"and {len(rows) - top} more (--top)")
    return "\n".join(text)


def _cells(number: int, row: Row) -> tuple[str, ...]:
    return (
        str(number),
        f"{row['model']} {row['precision']}",
        f"{row['devices']} x {row['hardware']}",
        row.get("layout") or "",
        str(row["batch_size"]),
        _between(row, "tpot_s", 1e3),
        f"{row['ttft_s']:,.3g}",
        f"{row['output_tokens_per_s']:,.0f}",
        _between(row, "usd_per_million_tokens", 1.0),
        "" if row.get("joules_per_token") is None else f"{row['joules_per_token']:,.3g}",
        row["basis"] + ("*" if row["figures_unverified"] else ""),
    )


def _between(row: Row, name: str, scale: float) -> str:
    value, low, high = row[name], row.get(f"{name}_low"), row.get(f"{name}_high")
    if value is None:
        return "?"
    if low is None or high is None or high <= low:
        return f"{value * scale:,.3g}"
    return f"{value * scale:,.3g} ({low * scale:,.3g}-{high * scale:,.3g})"


def as_csv(rows: Sequence[Row], top: int) -> str:
    """The first rows with every column."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[:top])
    return out.getvalue().rstrip("\n")
