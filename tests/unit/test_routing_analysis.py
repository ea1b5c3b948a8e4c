"""Routing analysis: counts against loops, imbalance of known loads, the closed form of uniform routing."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.errors import MoecapError
from moecap.metrics import routing_analysis as r
from moecap.metrics.steps import step_table

from .systems import make_run, small


def test_doctests():
    assert doctest.testmod(r).failed == 0 and doctest.testmod(r).attempted >= 3


def test_counts_against_loops():
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 5, (n, 2, 3)) for n in (4, 7)]
    counts, tokens = r.activation_counts(ids, 2, 5)
    assert tokens == 11 and counts.sum() == 11 * 2 * 3
    for layer in range(2):
        for expert in range(5):
            assert counts[layer, expert] == sum((a[:, layer] == expert).sum() for a in ids)


@given(st.lists(st.integers(0, 100), min_size=2, max_size=30).filter(any))
def test_imbalance_bounds(loads):
    found = r.load_imbalance(np.array(loads))
    n = len(loads)
    assert 1 - 1e-9 <= found["max_over_mean"] <= n + 1e-9
    assert -1e-9 <= found["gini"] <= 1 - 1 / n + 1e-9
    assert -1e-9 <= found["entropy_bits"] <= np.log2(n) + 1e-9
    differences = sum(abs(a - b) for a in loads for b in loads)
    assert found["gini"] == pytest.approx(differences / (2 * n * sum(loads)), abs=1e-9)


@pytest.mark.parametrize("experts, top_k", [(8, 2), (64, 6)])
def test_closed_form_agrees_with_uniform_routing(experts, top_k):
    rng = np.random.default_rng(0)
    for n in (1, 4, 16, 64):
        drawn = [
            len(np.unique(np.argsort(rng.random((n, experts)), axis=1)[:, :top_k])) for _ in range(400)
        ]  # fmt: skip
        assert np.mean(drawn) == pytest.approx(r.expected_unique(n, experts, top_k), rel=0.02)


def test_top_k_above_experts_is_refused():
    with pytest.raises(MoecapError, match="top_k is 9 of 8"):
        r.expected_unique(1, 8, 9)


def test_analysis_table():
    anatomy = small(8, 2, moe_layers=2)
    run = make_run(anatomy, np.random.default_rng(0), batch_sizes=(1, 5), repeats=2, output=30, chunk=100)
    steps = step_table(run.schedule, run.requests, run.routing, anatomy)
    table = r.analysis_table(run.routing, run.requests, [steps], anatomy)
    assert table.schema.equals(r.ANALYSIS_SCHEMA)
    rows = table.to_pylist()
    experts = [row for row in rows if row["table"] == "expert"]
    assert len(experts) == 2 * 8
    tokens = sum(len(ids) for ids in run.routing.ids.values())  # six sequences, each once however often it was served
    for layer in anatomy.moe_layers:
        own = [row for row in experts if row["layer"] == layer]
        assert sum(row["activations"] for row in own) == 2 * tokens
        assert sum(row["frequency"] for row in own) == pytest.approx(2)
        assert np.mean([row["load"] for row in own]) == pytest.approx(1)
    layers = [row for row in rows if row["table"] == "layer"]
    assert [row["layer"] for row in layers] == list(anatomy.moe_layers)
    assert all(row["unused_experts"] == 0 and row["load_max_over_mean"] >= 1 for row in layers)
    of_steps = [row for row in rows if row["table"] == "step"]
    one = next(row for row in of_steps if row["tokens"] == 1 and row["layer"] == anatomy.moe_layers[0])
    assert one["unique_experts"] == one["unique_experts_uniform"] == 2
    assert sum(row["steps"] for row in of_steps) == 2 * steps.num_rows
    five = [row for row in of_steps if row["tokens"] == 5]
    assert all(row["unique_experts"] == pytest.approx(row["unique_experts_uniform"], rel=0.1) for row in five)


def test_dense_model_has_no_rows():
    anatomy = small(moe_layers=0)
    assert r.analysis_table(None, None, [], anatomy).num_rows == 0


def test_wide_steps_share_bins():
    tokens = np.array([64, 65, 70, 500, 510])
    found = r.unique_against_tokens(tokens, np.arange(5)[:, None], 8, 2)
    assert found["steps"].tolist() == [1, 2, 2]
    assert found["tokens"].tolist() == [64, 67.5, 505]
    assert found["unique_experts"].ravel().tolist() == [0, 1.5, 3.5]
