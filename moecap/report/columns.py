"""The CAP table as the page stores it: every row once, column by column, and what each column is.

Label, unit, form and section of a column come from the table's own schema, by rules: a column that is new to the table
is shown without a change here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from moecap.cap.schema import SECTIONS
from moecap.charts.parts import all_visible

ENDS = ("_low", "_high")
DIGITS = 10  # significant ones that the page keeps of a figure; cap.parquet has all of them
DIGITS_OF_ENDS = 6

_WORDS = {
    "api": "API", "cap": "CAP", "dram": "DRAM", "e2e": "E2E", "gpu": "GPU", "hbm": "HBM", "itl": "ITL", "kv": "KV",
    "kw": "kW", "kwh": "kWh", "mbu": "MBU", "mfu": "MFU", "pcie": "PCIe", "pue": "PUE", "smbu": "S-MBU",
    "smfu": "S-MFU", "ssd": "SSD", "tpot": "TPOT", "ttft": "TTFT", "usd": "$",
}  # fmt: skip
FORMS = ("text", "flag", "list", "count", "seconds", "usd", "prefixed", "share", "ratio", "time", "number")
_SHARES = re.compile(r"accuracy|mbu|mfu|share|utilization|utilisation|frequency|error|attainment|rate$")


@dataclass(frozen=True)
class Described:
    """A column of the page: ``form`` says how its values are written, ``interval`` that it has ends."""

    name: str
    label: str
    unit: str
    form: str
    section: str
    meaning: str
    interval: bool


def label_of(name: str) -> str:
    """A heading from a column's name, its unit left out where every value is written with it.

    >>> label_of("ttft_p99_s"), label_of("decode_s_mbu"), label_of("usd_per_million_tokens"), label_of("power_w")
    ('TTFT p99', 'decode S-MBU', '$/million tokens', 'power')
    """
    name = name.replace("s_mbu", "smbu").replace("s_mfu", "smfu")
    name = name if "_per_" in name else re.sub(r"_(s|w|usd)(_p\d+)?$", r"\2", name)
    text = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return text.replace(" per ", "/")


def form_of(field: pa.Field, unit: str) -> str:
    """How values of a column are written, one of ``FORMS``; the page's script has a writer for each."""
    if pa.types.is_string(field.type):
        return "text"
    if pa.types.is_boolean(field.type):
        return "flag"
    if pa.types.is_list(field.type):
        return "list"
    if pa.types.is_integer(field.type):
        return "count"
    if "unix" in field.name:
        return "time"
    if unit in ("s", "USD"):
        return {"s": "seconds", "USD": "usd"}[unit]
    if unit in ("B", "B/s", "FLOP/s"):
        return "prefixed"
    if unit == "1":
        return "ratio" if "_over_" in field.name else "share" if _SHARES.search(field.name) else "number"
    return "number"


def described(schema: pa.Schema) -> list[Described]:
    """What the page is told of each column; the ends of an interval belong to their column."""
    section_of = {column.name: title for title, columns in SECTIONS.items() for column in columns}
    names = set(schema.names)
    found = []
    for field in schema:
        if any(field.name.endswith(end) and field.name.removesuffix(end) in names for end in ENDS):
            continue
        about = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        unit = about.get("unit", "")
        meaning = " ".join(filter(None, [about.get("meaning"), about.get("source")]))
        label = about.get("label") or label_of(field.name)
        form = about.get("form") or form_of(field, unit)
        interval = all(field.name + end in names for end in ENDS)
        section = section_of.get(field.name, "Other")
        found.append(Described(field.name, label, "" if unit == "1" else unit, form, section, meaning, interval))
    return found


def stored(table: pa.Table) -> dict[str, Any]:
    """Rows and columns as plain data for the page's JSON (:func:`packed`); a column without a value is left out."""
    values = {name: table[name].to_pylist() for name in table.column_names if table[name].null_count < table.num_rows}
    columns = [asdict(c) for c in described(table.schema) if c.name in values]
    data = {n: packed([_short(n, v) for v in column]) for n, column in values.items()}
    return all_visible({"count": table.num_rows, "columns": columns, "data": data})


def packed(values: Sequence[Any]) -> Any:
    """A column as plain data, by the shortest of: a list; ``{"all": value}`` where every row has that; ``{"of":
    distinct values, "at": their index by row}``, null where the value is.

    >>> packed(["a", "a", "b", None]), packed([1, 1]), packed([0.1, 0.2])
    ({'of': ['a', 'b'], 'at': [0, 0, 1, None]}, {'all': 1}, [0.1, 0.2])
    """
    first = values[0] if values else None
    if first is not None and all(v == first and type(v) is type(first) for v in values):
        return {"all": first}
    if any(isinstance(v, list) for v in values):
        return list(values)
    index = {v: i for i, v in enumerate(dict.fromkeys(v for v in values if v is not None))}
    texts = any(isinstance(v, str) for v in index)
    if len({type(v) for v in index}) > 1 or (not texts and 2 * len(index) > len(values)):
        return list(values)
    return {"of": list(index), "at": [None if v is None else index[v] for v in values]}


def _short(name: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    digits = DIGITS_OF_ENDS if name.endswith(ENDS) else DIGITS
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def unpacked(stored_table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of :func:`stored` again, as the page's script reads them."""
    rows: list[dict[str, Any]] = [{} for _ in range(stored_table["count"])]
    for name, column in stored_table["data"].items():
        for i, row in enumerate(rows):
            if isinstance(column, list):
                row[name] = column[i]
            elif "all" in column:
                row[name] = column["all"]
            else:
                row[name] = None if column["at"][i] is None else column["of"][column["at"][i]]
    return rows
