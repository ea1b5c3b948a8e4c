"""CAP classes: the stated rule, and that no other row moves a label."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.cap.classes import classify, classify_table, differing, rule
from moecap.errors import MoecapError

SETTINGS = {"reference": "base", "accuracy_ratio": 0.98, "performance_ratio": 1.0, "cost_ratio": 0.75}


def row(name: str, cost: float, accuracy: float, rate: float, bought: float = 100.0, **more: Any) -> dict[str, Any]:
    return {
        "deployment": name,
        "model": "m",
        "dataset": "d",
        "batch_size": 1,
        "usd_per_million_tokens": cost,
        "hardware_usd": bought,
        "accuracy": accuracy,
        "output_tokens_per_s": rate,
        **more,
    }


BASE = row("base", 1.0, 0.8, 100.0)


def test_the_reference_is_fast_and_accurate() -> None:
    found = classify([BASE], SETTINGS)[0]
    assert (found["cap_class"], found["cap_class_purchase"], found["cap_reference"]) == ("PA", "PA", "base")


@pytest.mark.parametrize(
    ("cost", "accuracy", "rate", "bought", "token", "purchase"),
    [
        (0.2, 0.7, 500.0, 100.0, "CP", "P"),
        (9.0, 0.8, 5.0, 50.0, "A", "CA"),
        (0.5, 0.8, 200.0, 50.0, "CAP", "CAP"),
        (0.76, 0.5, 50.0, 76.0, "none", "none"),
        (0.75, 0.784, 100.0, 75.0, "CAP", "CAP"),  # on the thresholds
    ],
)
def test_both_notions_of_cost(
    cost: float, accuracy: float, rate: float, bought: float, token: str, purchase: str
) -> None:
    found = classify([BASE, row("x", cost, accuracy, rate, bought)], SETTINGS)[1]
    assert (found["cap_class"], found["cap_class_purchase"]) == (token, purchase)
    assert found["cap_classes_differ"] == (token != purchase)
    assert bool(differing([found])) == (token != purchase)


figures = st.tuples(*[st.floats(1e-3, 1e3)] * 4)


@given(st.lists(figures, max_size=5), st.lists(figures, min_size=1, max_size=5))
def test_adding_rows_moves_no_label(first: list[Any], second: list[Any]) -> None:
    def rows(tuples: list[Any], prefix: str) -> list[dict[str, Any]]:
        return [row(f"{prefix}{i}", c, a, r, b) for i, (c, a, r, b) in enumerate(tuples)]

    alone = [BASE, *rows(first, "a")]
    together = classify([*alone, *rows(second, "b")], SETTINGS)
    assert classify(alone, SETTINGS) == together[: len(alone)]


def test_the_reference_point_is_at_the_same_batch_or_its_only_one() -> None:
    other = row("x", 1.0, 0.8, 150.0, batch_size=4)
    assert classify([BASE, other], SETTINGS)[1]["cap_class"] == "PA"
    two = [BASE, row("base", 0.5, 0.8, 200.0, batch_size=4), other, row("x", 1.0, 0.8, 150.0, batch_size=8)]
    assert [r["cap_class"] for r in classify(two, SETTINGS)] == ["PA", "PA", "A", None]
    fixed = classify(two, {**SETTINGS, "reference_batch_size": 1})
    assert [r["cap_class"] for r in fixed] == ["PA", "CAP", "PA", "PA"]


def test_what_is_missing_is_null() -> None:
    rows = [BASE, row("x", 1.0, None, 1.0), row("y", 1.0, 0.8, 1.0, dataset="e")]  # type: ignore[arg-type]
    found = classify(rows, SETTINGS)
    assert [r["cap_class"] for r in found] == ["PA", None, None]
    assert classify(rows, {})[0]["cap_class"] is None


def test_a_reference_per_model() -> None:
    rows = [BASE, row("own", 5.0, 0.4, 10.0, model="n"), row("x", 1.0, 0.4, 20.0, model="n")]
    found = classify(rows, {**SETTINGS, "references": {"n": "own"}})
    assert [r["cap_class"] for r in found] == ["PA", "PA", "CAP"]


def test_errors_and_rule() -> None:
    with pytest.raises(MoecapError, match="Did you mean 'base'"):
        classify([BASE], {**SETTINGS, "reference": "bas"})
    with pytest.raises(MoecapError, match="cost_ratio"):
        classify([BASE], {**SETTINGS, "cost_ratio": 0})
    assert "75%" in rule(SETTINGS) and "base" in rule(SETTINGS)


def test_table_keeps_its_other_columns() -> None:
    table = pa.Table.from_pylist([BASE, row("x", 0.2, 0.7, 500.0)])
    found = classify_table(table, SETTINGS)
    assert found.column("cap_class").to_pylist() == ["PA", "CP"]
    assert found.select(table.column_names).equals(table)
    noted = classify_table(table, {**SETTINGS, "deployments": []}).schema.metadata[b"moecap"]
    assert b"cost_ratio" in noted and b"deployments" not in noted
