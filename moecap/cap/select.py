"""Rows and columns of a CAP table that answer a question: conditions, an order, a choice of columns. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from moecap.errors import MoecapError, nearest

#: What is shown where nobody chose: what a row is, then accuracy, performance and cost.
COLUMNS = (
    *("deployment", "model", "precision", "engine", "hardware", "devices", "dataset", "batch_size", "status"),
    *("accuracy", "tpot_s", "ttft_s", "output_tokens_per_s", "decode_s_mbu_complete", "usd_per_million_tokens"),
)

_CONDITION = re.compile(r"\s*([A-Za-z_]\w*)\s*(>=|<=|!=|==|=|>|<|~)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    **{">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt},
    **{"==": operator.eq, "=": operator.eq, "!=": operator.ne},
}


def select(
    table: pd.DataFrame,
    where: Sequence[str] = (),
    sort: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """The rows that meet every condition, in order, with the columns that were chosen.

    Args:
        table: rows of a CAP table, or of any other.
        where: ``COLUMN OP VALUE`` with one of ``>= <= > < = != ~``; ``~`` finds a part of a text, whatever its case. A
            row whose value is null meets no condition but ``!=``.
        sort: columns, the first one first; ``-COLUMN`` from the largest down. Nulls come last.
        columns: names; None: those of :data:`COLUMNS` that the table has. ``["all"]``: every one.
        top: at most so many rows.

    Raises:
        MoecapError: no such column, a condition that cannot be read, a value that is no number where one is needed.

    >>> rows = pd.DataFrame({"deployment": ["a", "b"], "tpot_s": [0.02, 0.01]})
    >>> select(rows, where=["tpot_s <= 0.015"])["deployment"].tolist()
    ['b']
    """
    chosen = table
    for condition in where:
        chosen = chosen[_meets(chosen, condition)]
    if sort:
        names = [name.removeprefix("-") for name in sort]
        for name in names:
            _known(name, table)
        chosen = chosen.sort_values(names, ascending=[not n.startswith("-") for n in sort], kind="stable")
    if top is not None:
        chosen = chosen.head(top)
    if columns is None:
        columns = [name for name in COLUMNS if name in table] or list(table)
    elif list(columns) == ["all"]:
        columns = list(table)
    for name in columns:
        _known(name, table)
    return chosen[list(columns)].reset_index(drop=True)


def _known(name: str, table: pd.DataFrame) -> None:
    if name not in table:
        raise MoecapError(f"There is no column {name!r}. {nearest(name, table.columns)}")


def _meets(table: pd.DataFrame, condition: str) -> pd.Series:
    parts = _CONDITION.fullmatch(condition)
    if parts is None:
        raise MoecapError(f"The condition {condition!r} is not COLUMN OP VALUE, such as 'accuracy>=0.9'.")
    name, sign, text = parts.groups()
    _known(name, table)
    column = table[name]
    if sign == "~":
        return column.astype("string").str.contains(text, case=False, regex=False).fillna(False).astype(bool)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        try:
            value: Any = float(text)
        except ValueError:
            raise MoecapError(f"In the condition {condition!r}, {text!r} is no number; {name} holds numbers.") from None
    else:
        column, value = column.astype("string"), text
    missing = column.isna()
    met = _COMPARE[sign](column, value).fillna(False).astype(bool)
    return met | missing if sign == "!=" else met & ~missing
