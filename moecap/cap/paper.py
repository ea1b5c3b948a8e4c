"""The paper's Tables 2, 3 and 4 as data, which enter where measured accuracy and throughput would.

``config/paper/table{2,3,4}.csv`` hold what is printed, row by row. From there on it is the pipeline of every other
campaign: the hardware catalogue's ``paper-a100-80gb`` gives the cost, and the printed cost stays beside it.
Power is not printed: it is estimated from the GPUs' TDP, and labelled so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from moecap.columns.accuracy import ACCURACY, EVALUATION
from moecap.columns.base import schema
from moecap.columns.deployment import DEPLOYMENT, POINT, STATUS
from moecap.columns.performance import PERFORMANCE
from moecap.documents import Row as CsvRow
from moecap.documents import read_csv
from moecap.errors import Collector, Place, nearest

Row = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")

TABLES = (2, 3, 4)
HARDWARE = "paper-a100-80gb"
COLUMNS = (
    "deployment",
    "case",
    "model",
    "precision",
    "engine",
    "devices",
    "offload",
    "dataset",
    "batch_size",
    "accuracy_percent",
    "cost_kusd",
    "tokens_per_s",
    "note",
)
WORKLOADS = {2: "GSM8K, as printed in Table 2", 3: "as printed in Table 3", 4: "as printed in Table 4"}

#: Deployments that Figures 4 and 5 compare with, by model: bf16 on four GPUs with TensorRT-LLM (Figure 4), and the
#: smallest number of GPUs of Table 4 (Figure 5).
FIGURE_4 = {"mixtral-8x22b": "t3-mixtral-8x22b-bf16", "dbrx": "t3-dbrx-bf16"}
FIGURE_5 = {"mixtral-8x7b": "t4-mixtral-8x7b-2gpu", "qwen1.5-moe-a2.7b": "t4-qwen1.5-moe-1gpu"}
#: Columns that hold a number, and whether it is a whole one.
NUMBERS = {"devices": int, "batch_size": int, "accuracy_percent": float, "cost_kusd": float, "tokens_per_s": float}
#: What a deployment is, the same in all of its rows.
_OF_A_DEPLOYMENT = ("model", "precision", "engine", "devices", "offload")


def read_tables(folder: str | Path = "config/paper", tables: Iterable[int] = TABLES) -> list[Row]:
    """What the tables print, one row per deployment × dataset, with ``table`` and ``source``; empty cells are None.

    Raises:
        Mistakes: a file is missing, a column is missing, unknown or given twice, a cell is no number, a figure is given
            twice; all of it.
    """
    rows: list[Row] = []
    found = Collector()
    seen: dict[str, tuple[Place, Row]] = {}
    printed: dict[tuple[Any, ...], Place] = {}
    for number in tables:
        path = Path(folder) / f"table{number}.csv"
        with found.taking(Place(str(path))):
            table = read_csv(path, COLUMNS, COLUMNS, f"Table {number} of the paper")
            found.mistakes += table.mistakes
            for line in table.rows:
                row = _read_row(line, number, Place(str(path), line.line, line.cells.get("deployment")), found)
                _check_twice(row, Place(str(path), line.line, row["deployment"]), seen, printed, found)
                rows.append(row)
    found.finish()
    return rows


def _read_row(line: CsvRow, number: int, place: Place, found: Collector) -> Row:
    row: Row = {column: line.cells.get(column) for column in COLUMNS}
    for column in ("deployment", "model", "precision", "devices", "dataset"):
        if row[column] is None:
            found.add(place, f"`{column}` is missing.", column)
    if row["deployment"] and not _NAME.fullmatch(row["deployment"]):
        found.add(
            place, f"`deployment` is {row['deployment']!r}: letters, digits, `.`, `_` and `-` only.", "deployment"
        )
    if row["offload"] not in (None, "none", "dram", "ssd"):
        found.add(
            place, f"`offload` is {row['offload']!r}. {nearest(row['offload'], ('none', 'dram', 'ssd'))}", "offload"
        )
    for column, kind in NUMBERS.items():
        value = row[column]
        row[column] = None
        if value is not None:
            try:
                figure = kind(value)
                if not 0 <= figure < 1e15 or (kind is int and figure < 1) or figure != figure:
                    raise ValueError
                row[column] = figure
            except (ValueError, OverflowError):
                what = "a whole number from 1" if kind is int else "a number"
                text = f"`{column}` is {value[:60]!r}; {what} is needed, or nothing where none is printed."
                found.add(place, text, column)
    if (row["accuracy_percent"] or 0) > 100:
        found.add(place, f"`accuracy_percent` is {row['accuracy_percent']:g}, more than 100.", "accuracy_percent")
    return {**row, "table": number, "source": f"MoE-CAP paper, Table {number}"}


def _check_twice(
    row: Row,
    place: Place,
    seen: dict[str, tuple[Place, Row]],
    printed: dict[tuple[Any, ...], Place],
    found: Collector,
) -> None:
    """A figure is printed once, and rows of one deployment agree on what it is."""
    name = str(row["deployment"])
    other, first = seen.setdefault(name, (place, row))
    for column in _OF_A_DEPLOYMENT:
        if first[column] != row[column]:
            text = f"`{column}` is {row[column]!r}, and {first[column]!r} in {other}; a deployment has one."
            found.add(place, text, column)
    key = (name, row["dataset"], row["batch_size"])
    if key in printed:
        found.add(place, f"the same deployment, dataset and batch size as in {printed[key]}. Keep one.", "deployment")
    printed.setdefault(key, place)


def deployments(rows: Sequence[Mapping[str, Any]], hardware: str = HARDWARE) -> list[Row]:
    """Rows of the deployment table, one per deployment in the tables."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(
            str(row["deployment"]),
            {
                "deployment": row["deployment"],
                "model": row["model"],
                "precision": row["precision"],
                "engine": row["engine"],
                "hardware": hardware,
                "devices": row["devices"],
                "tensor_parallel": row["devices"] if row["offload"] in (None, "none") else None,
                "offload": None if row["offload"] == "none" else row["offload"],
            },
        )
    return list(found.values())


METRICS_SCHEMA = schema(
    "deployment dataset batch_size workload output_tokens_per_s status source printed_hardware_usd printed_class "
    "printed_note",
    *(DEPLOYMENT, POINT, PERFORMANCE, STATUS),
)
ACCURACY_SCHEMA = schema("deployment dataset metric accuracy source", DEPLOYMENT, POINT, ACCURACY, EVALUATION, STATUS)


def metrics_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The printed throughputs, as the metrics stage would write them (``status`` is ``paper``)."""
    return pa.Table.from_pylist(
        [
            {
                "deployment": r["deployment"],
                "dataset": r["dataset"],
                "batch_size": r["batch_size"],
                "workload": WORKLOADS.get(r["table"]),
                "output_tokens_per_s": r["tokens_per_s"],
                "status": "paper",
                "source": r["source"],
                "printed_hardware_usd": None if r["cost_kusd"] is None else round(r["cost_kusd"] * 1000, 2),
                "printed_class": r["case"],
                "printed_note": r["note"],
            }
            for r in rows
        ],
        schema=METRICS_SCHEMA,
    )


def accuracy_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The printed accuracies, one per deployment × dataset; how many questions were asked is not printed."""
    found = {(r["deployment"], r["dataset"]): r for r in rows}
    return pa.Table.from_pylist(
        [
            {
                "deployment": deployment,
                "dataset": dataset,
                "metric": "as printed",
                "accuracy": round(r["accuracy_percent"] / 100.0, 6),
                "source": r["source"],
            }
            for (deployment, dataset), r in found.items()
        ],
        schema=ACCURACY_SCHEMA,
    )
