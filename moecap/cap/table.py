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

from moecap.cap.schema import CAP_SCHEMA
from moecap.columns.base import F64, I32, I64, TEXT
from moecap.errors import MoecapError, nearest
from moecap.io import METADATA_KEY
from moecap.jobs.failures import SCOPE, applies

log = logging.getLogger(__name__)

Row = dict[str, Any]

KEY = ("deployment", "dataset", "batch_size")
STATUSES = ("measured", "estimated", "paper", "failed", "missing")
# What an accuracy or the record of a failure may be keyed by: the fields that it has must agree with the row's.
Z95 = 1.959963984540054  # two-sided 95% of the normal distribution


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
            row["status"] = _status(measured, failed)
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
                f"CAP table, column {field.name}: expected {field.type}, "
                f"got {_first_odd(values, field.type)!r} ({error})."
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


def dominated(costs: np.ndarray, accuracies: np.ndarray, throughputs: np.ndarray) -> np.ndarray:
    """Which points are dominated: another one is no worse in all three and better in one.

    Args:
        costs, accuracies, throughputs: shape (..., points); lower cost, higher accuracy and throughput are better.

    Returns:
        Booleans of the same shape.
    """
    points = costs.shape[-1]
    result = np.zeros(np.broadcast_shapes(costs.shape, accuracies.shape, throughputs.shape), bool)
    for i in range(points):  # one column against all others keeps memory at (draws, points)
        c, a, t = costs[..., i, None], accuracies[..., i, None], throughputs[..., i, None]
        no_worse = (costs <= c) & (accuracies >= a) & (throughputs >= t)
        better = (costs < c) | (accuracies > a) | (throughputs > t)
        result[..., i] = (no_worse & better).any(-1)
    return result


def pareto_frequency(
    rows: Sequence[Mapping[str, Any]],
    cost: str = "usd_per_million_tokens",
    draws: int = 1000,
    seed: int = 0,
) -> list[float | None]:
    """How often each row is on the Pareto frontier of its dataset when its figures vary within their intervals.

    Throughput is drawn per row. The price of a hardware entry is drawn once for all deployments on it, so that two rows
    on the same machine are not told apart by a price they share. A model × precision × engine has one accuracy, drawn
    once. The cost per token follows from throughput and price (which moves the capital's share of it), it is not drawn
    again.

    Returns:
        A share of ``draws`` per row; null where cost, accuracy or throughput is null.
    """
    result: list[float | None] = [None] * len(rows)
    needed = (cost, "accuracy", "output_tokens_per_s")
    complete = [i for i, r in enumerate(rows) if all(r.get(k) is not None for k in needed)]
    for dataset in dict.fromkeys(rows[i]["dataset"] for i in complete):
        chosen = [i for i in complete if rows[i]["dataset"] == dataset]
        group = [rows[i] for i in chosen]
        rng = np.random.default_rng(seed)
        speed = np.exp(_draw(rng, group, "output_tokens_per_s", lambda r: (r["deployment"], r["batch_size"]), draws))
        price = np.exp(
            _draw(rng, group, "hardware_usd", lambda r: (r.get("hardware"), r.get("devices")), draws, default=0.0)
        )
        accuracy = _draw(rng, group, "accuracy", lambda r: tuple(r.get(k) for k in SCOPE[1:4]), draws, logs=False)
        middle = {k: np.array([r[k] for r in group], float) for k in (cost, "output_tokens_per_s")}
        bought = np.array([r.get("hardware_usd") or 1.0 for r in group], float)
        share = np.array([1.0 if cost == "hardware_usd" else _capital_share(r) for r in group])
        costs = middle[cost] * (share * price / bought + 1.0 - share)
        if cost != "hardware_usd":
            costs = costs * (middle["output_tokens_per_s"] / speed)
        keys = [tuple(r.get(k) for k in (*SCOPE[1:4], "accuracy", "accuracy_stderr")) for r in group]
        number = {k: i for i, k in enumerate(dict.fromkeys(keys))}
        same_accuracy = np.array([number[k] for k in keys])
        alive = np.flatnonzero(~_always_dominated(costs, accuracy, speed, same_accuracy))
        shares = np.zeros(len(group))
        shares[alive] = 1.0 - dominated(costs[:, alive], accuracy[:, alive], speed[:, alive]).mean(0)
        for i, share in zip(chosen, shares, strict=True):
            result[i] = float(share)
    return result


def _capital_share(row: Mapping[str, Any]) -> float:
    """Share of the purchase in the cost per token; all of it where the row does not say."""
    share = row.get("capital_share")
    return 1.0 if share is None else share


def _always_dominated(costs: np.ndarray, accuracy: np.ndarray, speed: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Points that one and the same other point beats in every draw, so that neither need be looked at draw by draw.

    Leaving them out changes nothing: what they would beat, the one that beats them beats too.

    Args:
        costs, accuracy, speed: shape (draws, points).
        same: per point, equal where two points share their accuracy.
    """
    (cost_low, accuracy_low, speed_low), (cost_high, accuracy_high, speed_high) = (
        [end(axis=0) for end in ends]
        for ends in ((costs.min, accuracy.min, speed.min), (costs.max, accuracy.max, speed.max))
    )
    found = np.zeros(costs.shape[1], bool)
    for i in range(costs.shape[1]):
        as_accurate = (same == same[i]) | (accuracy_low >= accuracy_high[i])
        found[i] = (as_accurate & (cost_high < cost_low[i]) & (speed_low >= speed_high[i])).any()
    return found


def _draw(
    rng: np.random.Generator,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    shared: Any,
    draws: int,
    logs: bool = True,
    default: float | None = None,
) -> np.ndarray:
    """Normal draws (of logarithms, where ``logs``), shape (draws, rows); rows with one ``shared`` key vary together."""
    noise: dict[Any, np.ndarray] = {}
    columns = []
    for row in rows:
        key = shared(row)
        if key not in noise:
            noise[key] = rng.standard_normal(draws)
        value, low, high = row.get(column), row.get(f"{column}_low"), row.get(f"{column}_high")
        if value is None or (logs and value <= 0):
            columns.append(np.full(draws, default))
            continue
        if logs:
            spread = math.log(high / low) / (2 * Z95) if low and high and low > 0 and high > low else 0.0
            columns.append(math.log(value) + spread * noise[key])
        else:
            spread = row.get(f"{column}_stderr")
            if spread is None:
                spread = (high - low) / (2 * Z95) if low is not None and high is not None else 0.0
            columns.append(value + spread * noise[key])
    return np.stack(columns, axis=-1)


# --- the join's parts ---------------------------------------------------------------------------------------------


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
        **({"source": score["source"]} if score.get("source") else {}),
    }


def _evaluation(row: Row) -> Row:
    """Cost of an evaluation: as many requests as there were questions, at the cost of one of the timed run."""
    requests, questions = row.get("requests"), row.get("accuracy_n")
    if not requests or questions is None:
        return {}
    ends = {end: row.get(f"run_usd{end}") for end in ("", "_low", "_high")}
    return {f"evaluation_usd{end}": usd / requests * questions for end, usd in ends.items() if usd is not None}


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
