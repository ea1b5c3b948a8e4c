"""The paper's Tables 2, 3 and 4 as data, which enter where measured accuracy and throughput would.

``config/paper/table{2,3,4}.csv`` hold what is printed, row by row. From there on it is the pipeline of every other
campaign: the hardware catalogue's ``paper-a100-80gb`` gives the cost, and the printed cost stays beside it.
Power is not printed: it is estimated from the GPUs' TDP, and labelled so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from moecap.errors import MoecapError, nearest

Row = dict[str, Any]

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


def read_tables(folder: str | Path = "config/paper", tables: Iterable[int] = TABLES) -> list[Row]:
    """What the tables print, one row per deployment × dataset, with ``table`` and ``source``; empty cells are None.

    Raises:
        MoecapError: a file is missing, a column is missing or unknown, a cell is no number.
    """
    rows: list[Row] = []
    for number in tables:
        path = Path(folder) / f"table{number}.csv"
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            raise MoecapError(f"{path} does not exist; it holds Table {number} of the paper.") from None
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]
        reader = csv.reader(line for _, line in numbered)
        header = next(reader)
        for column in header:
            if column not in COLUMNS:
                raise MoecapError(f"{path}: unknown column `{column}`. {nearest(column, COLUMNS)}")
        for column in COLUMNS:
            if column not in header:
                raise MoecapError(f"{path}: column `{column}` is missing. Needed: {', '.join(COLUMNS)}.")
        for (line, _), cells in zip(numbered[1:], reader, strict=True):
            row: Row = {k: v or None for k, v in zip(header, cells, strict=True)}
            for name, kind in (
                ("devices", int),
                ("batch_size", int),
                ("accuracy_percent", float),
                ("cost_kusd", float),
                ("tokens_per_s", float),
            ):
                row[name] = _number(row[name], kind, f"{path}, line {line}: `{name}`")
            row["table"] = number
            row["source"] = f"MoE-CAP paper, Table {number}"
            rows.append(row)
    return rows


def _number(value: str | None, kind: type, where: str) -> Any:
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError:
        raise MoecapError(f"{where} is {value!r}; a number is needed, or nothing where none is printed.") from None


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


METRICS_SCHEMA = pa.schema(
    [
        pa.field("deployment", pa.string()),
        pa.field("dataset", pa.string()),
        pa.field("batch_size", pa.int32(), metadata={"meaning": "as printed; null where it is not"}),
        pa.field("workload", pa.string()),
        pa.field("output_tokens_per_s", pa.float64(), metadata={"unit": "1/s", "meaning": "throughput as printed"}),
        pa.field("status", pa.string()),
        pa.field("source", pa.string()),
        pa.field("printed_cost_kusd", pa.float64(), metadata={"unit": "kUSD", "meaning": "cost as printed"}),
        pa.field("printed_case", pa.string(), metadata={"meaning": "the paper's own label"}),
        pa.field("note", pa.string()),
    ]
)

ACCURACY_SCHEMA = pa.schema(
    [
        pa.field("deployment", pa.string()),
        pa.field("dataset", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("accuracy", pa.float64(), metadata={"unit": "1", "meaning": "share of right answers, as printed"}),
        pa.field("source", pa.string()),
    ]
)


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
                "printed_cost_kusd": r["cost_kusd"],
                "printed_case": r["case"],
                "note": r["note"],
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
