"""Checks of the report as pass or fail: a further table whose columns state a goal is held against it."""

from __future__ import annotations

from dataclasses import dataclass

from moecap.report.inputs import ExtraTable
from moecap.report.numbers import number, percent


@dataclass(frozen=True)
class Check:
    """A further table with its verdict: ``pass``, ``fail``, or ``shown`` (without a reason) where no goal is stated."""

    id: str
    table: ExtraTable
    verdict: str
    reason: str


def check(table: ExtraTable, id_: str) -> Check:
    """Hold every column with a ``goal`` (the largest absolute value that is good enough) against it, row by row."""
    parts, failed = [], False
    for column, about in table.fields.items():
        if "goal" not in about:
            continue
        values = [abs(r[column]) for r in table.rows if r.get(column) is not None]
        if not values:
            continue
        goal, worst = float(about["goal"]), max(values)
        show = (lambda v: percent(v, 3)) if about.get("form") in ("error", "share") else number
        failed |= worst > goal
        parts.append(f"{about.get('label') or column}: at most {show(worst)}, goal {show(goal)}")
    if not parts:
        return Check(id_, table, "shown", "")
    return Check(id_, table, "fail" if failed else "pass", "; ".join(parts))
