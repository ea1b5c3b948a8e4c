"""CAP classes: which of cost (C), accuracy (A) and performance (P) a deployment holds, by a stated rule.

Everything is measured against one **named reference deployment** (or one per model, ``references``) and thresholds in
the config, never against the other rows: adding a row moves no other row's label.

* **A**: accuracy ≥ ``accuracy_ratio`` × the reference's;
* **P**: generated tokens per second ≥ ``performance_ratio`` × the reference's;
* **C**: cost ≤ ``cost_ratio`` × the reference's. Cost is ambiguous in the paper: its CA case is cheap *to buy*, its CP
  case cheap *per token*. Both are classified, and where they differ both are shown.

The reference holds A and P by definition; with ``cost_ratio`` below 1 it does not hold C, so it is the paper's PA case.
The reference's point is the one at the same dataset and batch size; where it was not measured there, its only point on
that dataset; ``reference_batch_size`` names one for all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from moecap.errors import MoecapError, nearest
from moecap.io import METADATA_KEY

Row = dict[str, Any]

#: Cost notion -> column of the CAP table.
COSTS = {"per token": "usd_per_million_tokens", "purchase": "hardware_usd"}

#: Which two, as the paper writes them.
LABELS = {
    frozenset("PA"): "PA",
    frozenset("CP"): "CP",
    frozenset("CA"): "CA",
    frozenset("CAP"): "CAP",
    frozenset("C"): "C",
    frozenset("A"): "A",
    frozenset("P"): "P",
    frozenset(): "none",
}

DEFAULTS = {"accuracy_ratio": 0.98, "performance_ratio": 1.0, "cost_ratio": 0.9}

#: Ratios of measured figures are compared with this much slack, so that a figure equals itself.
SLACK = 1e-9


def label(held: Iterable[str]) -> str:
    """``PA``, ``CP``, ``CA``, ``CAP``, a single letter, or ``none``.

    >>> label({"A", "P"})
    'PA'
    """
    return LABELS[frozenset(held)]


def thresholds(settings: Mapping[str, Any]) -> dict[str, float]:
    """The three ratios of the config's ``cap`` part, checked.

    Raises:
        MoecapError: one is not positive.
    """
    found = {name: float(DEFAULTS[name] if settings.get(name) is None else settings[name]) for name in DEFAULTS}
    for name, value in found.items():
        if not value > 0:
            raise MoecapError(
                f"cap: `{name}` is {value:g}; it is a ratio to the reference's figure, so it must be positive."
            )
    return found


def held(
    row: Mapping[str, Any], reference: Mapping[str, Any], cost: str, ratios: Mapping[str, float]
) -> set[str] | None:
    """Which of C, A and P a row holds against a reference row; None where a figure is missing.

    Args:
        row, reference: rows of the CAP table.
        cost: column that is the cost: ``usd_per_million_tokens`` or ``hardware_usd``.
        ratios: ``accuracy_ratio``, ``performance_ratio``, ``cost_ratio``.
    """
    needed = (cost, "accuracy", "output_tokens_per_s")
    if any(r.get(name) is None for r in (row, reference) for name in needed):
        return None
    found = set()
    if row["accuracy"] >= ratios["accuracy_ratio"] * reference["accuracy"] * (1 - SLACK):
        found.add("A")
    if row["output_tokens_per_s"] >= ratios["performance_ratio"] * reference["output_tokens_per_s"] * (1 - SLACK):
        found.add("P")
    if row[cost] <= ratios["cost_ratio"] * reference[cost] * (1 + SLACK):
        found.add("C")
    return found


def classify(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[Row]:
    """Add ``cap_class`` (cost per token), ``cap_class_purchase``, ``cap_reference`` and ``cap_classes_differ``.

    Args:
        rows: rows of the CAP table.
        settings: ``reference`` (a deployment) and/or ``references`` (model → deployment), the three ratios,
            ``reference_batch_size``. Without a reference the classes are null.

    Raises:
        MoecapError: a reference that is no deployment of the rows, or a ratio that is not positive.
    """
    ratios = thresholds(settings)
    known = {str(r["deployment"]) for r in rows}
    by_model = dict(settings.get("references") or {})
    for name in (settings.get("reference"), *by_model.values()):
        if name is not None and name not in known:
            raise MoecapError(f"cap: the reference deployment {name!r} is not in the table. {nearest(name, known)}")
    points: dict[tuple[str, Any], dict[Any, Mapping[str, Any]]] = {}
    for row in rows:
        points.setdefault((str(row["deployment"]), row.get("dataset")), {})[row.get("batch_size")] = row
    found = []
    for row in rows:
        name = by_model.get(row.get("model"), settings.get("reference"))
        point = _reference_point(points.get((str(name), row.get("dataset")), {}), row, settings)
        classes: dict[str, str | None] = {}
        for notion, column in COSTS.items():
            holds = None if point is None else held(row, point, column, ratios)
            classes[notion] = None if holds is None else label(holds)
        per_token, purchase = classes["per token"], classes["purchase"]
        found.append(
            {
                **row,
                "cap_class": per_token,
                "cap_class_purchase": purchase,
                "cap_reference": None if point is None else name,
                "cap_classes_differ": None if per_token is None or purchase is None else per_token != purchase,
            }
        )
    return found


def _reference_point(
    points: Mapping[Any, Mapping[str, Any]], row: Mapping[str, Any], settings: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    fixed = settings.get("reference_batch_size")
    if fixed is not None:
        return points.get(fixed)
    if row.get("batch_size") in points:
        return points[row.get("batch_size")]
    return next(iter(points.values())) if len(points) == 1 else None


def classify_table(table: pa.Table, settings: Mapping[str, Any]) -> pa.Table:
    """The CAP table with its class columns filled in; the rule goes into the table's metadata (key ``cap``).

    Raises:
        MoecapError: see :func:`classify`.
    """
    rows = classify(table.to_pylist(), settings)
    for name in ("cap_class", "cap_class_purchase", "cap_reference"):
        values = pa.array([r[name] for r in rows], pa.string())
        index = table.schema.get_field_index(name)
        if index < 0:
            table = table.append_column(pa.field(name, pa.string()), values)
        else:
            table = table.set_column(index, table.schema.field(index), values)
    metadata = dict(table.schema.metadata or {})
    existing = json.loads(metadata.get(METADATA_KEY, b"{}"))
    named = {k: settings[k] for k in ("reference", "references", "reference_batch_size") if settings.get(k) is not None}
    existing["cap"] = {**named, **thresholds(settings)}
    metadata[METADATA_KEY] = json.dumps(existing, sort_keys=True, default=str).encode()
    return table.replace_schema_metadata(metadata)


def differing(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, Any, str, str]]:
    """Where the two notions of cost disagree: (deployment, dataset, batch size, class per token, class by purchase)."""
    return [
        (str(r["deployment"]), str(r.get("dataset")), r.get("batch_size"), r["cap_class"], r["cap_class_purchase"])
        for r in rows
        if r.get("cap_class") and r.get("cap_class_purchase") and r["cap_class"] != r["cap_class_purchase"]
    ]


def rule(settings: Mapping[str, Any]) -> str:
    """The rule in one sentence, for reports."""
    ratios = thresholds(settings)
    by_model = settings.get("references") or {}
    against = ", ".join(
        [*([str(settings["reference"])] if settings.get("reference") else []), *map(str, by_model.values())]
    )
    return (
        f"Against {against or 'no reference'}: a deployment holds A with at least {ratios['accuracy_ratio']:.0%} of "
        f"the reference's accuracy, P with at least {ratios['performance_ratio']:.0%} of its generated tokens per "
        f"second, C with at most {ratios['cost_ratio']:.0%} of its cost, per token and by purchase apart."
    )
