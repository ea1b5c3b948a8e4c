"""The CAP table: one tidy row per deployment × dataset × batch size, with what it costs, how well it answers, how fast.

Its columns are in :mod:`moecap.cap.schema`. :func:`cap_table` is a pure join of what the stages before wrote. A
value that nobody measured is null, never 0; a deployment that failed keeps its rows.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.cap.frontier import pareto_frequency
from moecap.cap.schema import CAP_SCHEMA
from moecap.columns.base import F64, I32, I64, TEXT
from moecap.errors import MoecapError, nearest
from moecap.io import METADATA_KEY
from moecap.jobs.failures import applies
from moecap.metrics.intervals import Z95

log = logging.getLogger(__name__)
Row = dict[str, Any]
KEY = ("deployment", "dataset", "batch_size")
STATUSES = ("measured", "estimated", "paper", "failed", "missing")


# What an accuracy or the record of a failure may be keyed by: the fields that it has must agree with the row's.


def cap_table(
    deployments: Iterable[Mapping[str, Any]],
    metrics: Iterable[pa.Table] | pa.Table,
    accuracy: Iterable[pa.Table] | pa.Table,
    cost: Iterable[pa.Table] | pa.Table,
    failures: Iterable[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Join what each stage wrote into the CAP table.

    Args:
        deployments: rows of the deployment table; ``datasets`` and ``batch_sizes`` are lists, or texts with spaces
            between. Where a deployment has none, its rows are those that ``metrics`` has.
        metrics: one row per deployment × dataset × batch size.
        accuracy: one row per dataset and what it is keyed by of ``SCOPE`` (model, precision, engine; or deployment).
        cost: one row per deployment × dataset × batch size, or per deployment.
        failures: records with any of ``SCOPE``, and ``stage``, ``reason``, ``log``.
        provenance: goes into the table's metadata, so into the file's.

    Returns:
        A table of ``CAP_SCHEMA``, in the order of the deployment table, then dataset and batch size.

    Raises:
        MoecapError: two rows for one key, or a value that does not fit its column.
    """
    failures = list(failures)
    metric_rows = _index(_rows(metrics), KEY, "metrics")
    cost_rows = _rows(cost)
    cost_index = _index([r for r in cost_rows if r.get("dataset") is not None], KEY, "cost")
    cost_whole = _index([r for r in cost_rows if r.get("dataset") is None], ("deployment",), "cost")
    accuracy_rows = _rows(accuracy)

    ends = {(str(r["deployment"]), r["dataset"]): r["batch_size"] for r in metric_rows.values() if r.get("saturates")}
    rows: list[Row] = []
    for deployment in deployments:
        deployment = {k: v for k, v in deployment.items() if v not in (None, "")}
        name = str(deployment["deployment"])
        for dataset, batch_size in _points(deployment, metric_rows):
            key = (name, dataset, batch_size)
            row: Row = {**deployment, "dataset": dataset, "batch_size": batch_size}
            measured = metric_rows.get(key)
            for part in (measured, cost_index.get(key) or cost_whole.get((name,))):
                row.update({k: v for k, v in (part or {}).items() if v is not None})
            row.update(_accuracy(row, accuracy_rows))
            row.update(_evaluation(row))
            # A failure that left a figure of this row out; with all of them there, it was about another row.
            lacks = [c for c in ("output_tokens_per_s", "accuracy", "usd_per_million_tokens") if row.get(c) is None]
            failed = next((f for f in failures if applies(f, row)), None) if lacks else None
            if failed:
                row["failure_stage"] = failed.get("stage")
                row["failure_reason"] = failed.get("reason") or failed.get("message")
                row["failure_log"] = failed.get("log")
            end = ends.get((name, dataset))
            if measured is None and not failed and end is not None and batch_size > end:
                row["failure_reason"] = f"not run: throughput saturates at {end} requests in flight"
            row["status"] = _status(measured, failed)
            row["origin"] = _origin(row, measured)
            rows.append(row)

    frequency = pareto_frequency(rows)
    for row, share in zip(rows, frequency, strict=True):
        row["pareto_frequency"] = share
    return to_table(rows, provenance)


def to_table(rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any] | None = None) -> pa.Table:
    """Rows as a table of ``CAP_SCHEMA``; keys that it does not have are left out, NaN becomes null.

    Raises:
        MoecapError: a value does not fit its column, or is infinite.
    """
    unknown = sorted({key for row in rows for key in row} - set(CAP_SCHEMA.names) - {"datasets", "batch_sizes"})
    if unknown:
        log.debug("not part of the CAP table: %s", ", ".join(unknown))
    arrays = []
    for field in CAP_SCHEMA:
        values = [_plain(row.get(field.name), field) for row in rows]
        try:
            arrays.append(pa.array(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
            raise MoecapError(
                f"CAP table, column {field.name}: expected {field.type}, got {_first_odd(values, field.type)!r} "
                f"({error})."
            ) from error
    metadata = {METADATA_KEY: _json(provenance)} if provenance is not None else None
    return pa.Table.from_arrays(arrays, schema=CAP_SCHEMA.with_metadata(metadata))


def accuracy_interval(accuracy: float, stderr: float | None, n: int | None) -> tuple[float | None, float | None]:
    """95% interval of an accuracy: Wilson's for a share of right answers, ± 1.96 standard errors for other means.

    At 100% of 50 right the standard error is 0, but the interval is not: Wilson's gives (0.929, 1).

    >>> [round(x, 3) for x in accuracy_interval(1.0, 0.0, 50)]
    [0.929, 1.0]
    """
    if n and 0 <= accuracy <= 1:
        binomial = math.sqrt(accuracy * (1 - accuracy) / max(n - 1, 1))
        if stderr is None or math.isclose(stderr, binomial, rel_tol=0.02, abs_tol=1e-9):
            z2 = Z95**2
            centre = (accuracy + z2 / (2 * n)) / (1 + z2 / n)
            half = Z95 / (1 + z2 / n) * math.sqrt(accuracy * (1 - accuracy) / n + z2 / (4 * n * n))
            return min(max(0.0, centre - half), accuracy), max(min(1.0, centre + half), accuracy)
    if stderr is None:
        return None, None
    return accuracy - Z95 * stderr, accuracy + Z95 * stderr


def _rows(tables: Iterable[pa.Table] | pa.Table) -> list[Row]:
    tables = [tables] if isinstance(tables, pa.Table) else tables
    return [row for table in tables for row in table.to_pylist()]


def _index(rows: Iterable[Row], key: Sequence[str], what: str) -> dict[tuple[Any, ...], Row]:
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        missing = [k for k in key if k not in row]
        if missing:
            raise MoecapError(f"The {what} table has no column {', '.join(missing)}; it has {', '.join(row)}.")
        identity = tuple(row[k] for k in key)
        if identity in found:
            named = ", ".join(f"{k} {v}" for k, v in zip(key, identity, strict=True))
            raise MoecapError(f"The {what} tables have two rows for {named}; one is expected.")
        found[identity] = row
    return found


def _points(deployment: Mapping[str, Any], metrics: Mapping[tuple[Any, ...], Row]) -> list[tuple[str, int | None]]:
    datasets, batch_sizes = _listed(deployment.get("datasets")), _listed(deployment.get("batch_sizes"))
    if datasets and batch_sizes:
        return [(dataset, int(batch)) for dataset in datasets for batch in batch_sizes]
    return [(dataset, batch) for name, dataset, batch in metrics if name == deployment["deployment"]]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return value.split()
    return list(value) if isinstance(value, list | tuple) else [value]


def _accuracy(row: Row, rows: Sequence[Row]) -> Row:
    found = [r for r in rows if applies(r, row)]
    if not found:
        return {}
    if len(found) > 1:
        metrics = [str(r.get("metric")) for r in found]
        raise MoecapError(
            f"Accuracy of deployment {row['deployment']} on {row['dataset']}: {len(found)} rows fit (metrics "
            f"{', '.join(metrics)}); one is expected. Name the task's main metric in the dataset's catalogue entry."
        )
    score = found[0]
    value, stderr, n = score.get("accuracy"), score.get("accuracy_stderr"), score.get("accuracy_n")
    low, high = score.get("accuracy_low"), score.get("accuracy_high")
    if low is None and value is not None:
        low, high = accuracy_interval(value, stderr, n)
    return {
        "accuracy": value,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_stderr": stderr,
        "accuracy_n": n,
        "accuracy_metric": score.get("accuracy_metric") or score.get("metric"),
        **{
            name: score.get(name) for name in ("accuracy_failed", "accuracy_empty", "accuracy_cut", "accuracy_unparsed")
        },
        **{name: score.get(name) for name in ("perplexity", "perplexity_stderr")},
        **({"source": score["source"]} if score.get("source") else {}),
    }


ENDS = ("", "_low", "_high")


def _evaluation(row: Row) -> Row:
    """Cost of an evaluation (as many requests as there were questions) and of a right answer, from the timed run's."""
    requests, questions = row.get("requests"), row.get("accuracy_n")
    if not requests:
        return {}
    found: Row = {}
    usd = {end: row[f"run_usd{end}"] / requests for end in ENDS if row.get(f"run_usd{end}") is not None}
    if questions is not None:
        found |= {f"evaluation_usd{end}": value * questions for end, value in usd.items()}
    found |= _per_correct("usd_per_correct_answer", usd, row)
    tokens = (row.get("generated_tokens") or 0) / requests
    joules = {e: row[f"joules_per_token{e}"] * tokens for e in ENDS if row.get(f"joules_per_token{e}") is not None}
    return found | (_per_correct("joules_per_correct_answer", joules, row) if tokens else {})


def _per_correct(name: str, spent: Mapping[str, float], row: Row) -> Row:
    """What a request takes over the share of right answers; both intervals together, as independent of one another."""
    accuracy = row.get("accuracy")
    if "" not in spent or not accuracy:
        return {}
    value = spent[""] / accuracy
    found = {name: value}
    if not spent[""] > 0:
        return found
    # Distances to the ends, as shares: dearer is a higher price and a lower accuracy.
    low, high = row.get("accuracy_low"), row.get("accuracy_high")
    up = (math.log(max(spent.get("_high", spent[""]), spent[""]) / spent[""]), math.log(accuracy / low) if low else 0.0)
    least = spent.get("_low", spent[""])
    down = (math.log(spent[""] / least) if least > 0 else 0.0, math.log(high / accuracy) if high else 0.0)
    if any(up) or any(down):
        found |= {f"{name}_low": value / math.exp(math.hypot(*down)), f"{name}_high": value * math.exp(math.hypot(*up))}
    return found


def _origin(row: Row, measured: Row | None) -> str | None:
    """Where the figures of a row come from; None: it has none yet."""
    if row.get("origin") or measured is None:
        return row.get("origin")
    return "printed" if row["status"] == "paper" else "measured"


def _status(measured: Row | None, failed: Mapping[str, Any] | None) -> str:
    if measured is None or measured.get("output_tokens_per_s") is None:
        return "failed" if failed else "missing"
    status = measured.get("status") or "measured"
    if status not in STATUSES:
        raise MoecapError(f"The metrics table has status {status!r}. {nearest(status, STATUSES)}")
    return str(status)


def _plain(value: Any, field: pa.Field) -> Any:
    if value is None or (isinstance(value, str) and not value and field.type != TEXT):
        return None
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        if math.isinf(value):
            raise MoecapError(
                f"CAP table, column {field.name}: the value is infinite; a division by zero lies upstream."
            )
    if field.type in (I32, I64):  # Arrow would cut 1.5 down to 1
        whole = int(value)
        if whole != float(value):
            raise MoecapError(f"CAP table, column {field.name}: {value!r} is not a whole number.")
        return whole
    if field.type == F64 and not isinstance(value, bool):
        return float(value)
    return value


def _first_odd(values: Sequence[Any], kind: pa.DataType) -> Any:
    for value in values:
        try:
            pa.array([value], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return value
    return None


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
