"""The CAP table: schema, join, intervals, Pareto frontier."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.cap import frontier
from moecap.cap import table as cap
from moecap.cap.schema import CAP_SCHEMA, schema_markdown
from moecap.cluster.start import start
from moecap.errors import MoecapError
from moecap.io import read_metadata, write_parquet

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import synthetic  # noqa: E402

RELIED_ON = """
deployment model precision engine hardware devices dataset workload batch_size status accuracy accuracy_stderr
accuracy_n ttft_s tpot_s output_tokens_per_s total_tokens_per_s decode_mbu decode_s_mbu decode_mfu
decode_s_mfu prefill_mbu prefill_s_mbu prefill_mfu prefill_s_mfu decode_mbu_complete decode_s_mbu_complete
decode_mfu_complete decode_s_mfu_complete power_w energy_source hardware_usd usd_per_million_tokens
tokens_per_usd tokens_per_kwh
""".split()  # noqa: SIM905


@pytest.fixture
def table() -> pa.Table:
    return cap.cap_table(**synthetic.tables())


def test_columns_that_others_rely_on_are_there_and_documented():
    assert set(RELIED_ON) <= set(CAP_SCHEMA.names)
    assert len(set(CAP_SCHEMA.names)) == len(CAP_SCHEMA.names)
    for field in CAP_SCHEMA:
        assert field.metadata[b"meaning"].endswith(b"."), field.name
        assert b"unit" in field.metadata or not pa.types.is_floating(field.type), field.name


def test_units_agree_with_names():
    suffixes = {"_bytes": "B", "_usd": ("USD", "1/USD"), "_w": "W", "_kwh": ("kWh", "1/kWh", "USD/kWh")}
    for field in CAP_SCHEMA:
        for suffix, units in suffixes.items():
            if field.name.endswith(suffix):
                assert field.metadata[b"unit"].decode() in units, field.name


def test_generated_documentation_is_in_step():
    assert (ROOT / "docs" / "schema.md").read_text() == schema_markdown()


def test_one_row_per_point_and_no_null_where_everything_was_measured(table):
    assert table.num_rows == 3 * 2 * 4
    assert set(table["status"].to_pylist()) == {"measured"}
    for name in RELIED_ON:
        if not name.startswith("prefill") or not name.endswith("complete"):
            assert table[name].null_count == 0, name


def test_join_puts_each_value_into_its_row(table):
    row = next(
        r
        for r in table.to_pylist()
        if (r["deployment"], r["dataset"], r["batch_size"]) == ("demo-int4", "arithmetic", 16)
    )
    source = next(
        m
        for m in synthetic.metrics()
        if (m["deployment"], m["dataset"], m["batch_size"]) == ("demo-int4", "arithmetic", 16)
    )
    assert row["accuracy"] == 0.81
    assert row["tpot_s"] == source["tpot_s"]
    assert row["usd_per_million_tokens"] * row["tokens_per_usd"] == pytest.approx(1e6)


def test_what_was_not_measured_is_null_not_zero():
    given = synthetic.tables()
    rows = [{**m, "ttft_s": math.nan} for m in synthetic.metrics()]
    given["metrics"] = pa.Table.from_pylist(rows).drop_columns(["decode_mfu"])
    given["accuracy"] = given["accuracy"].slice(0, 2)
    table = cap.cap_table(**given)
    assert table["ttft_s"].null_count == table["decode_mfu"].null_count == table.num_rows
    assert table["accuracy"].null_count == 16
    assert 0.0 not in table["accuracy"].to_pylist()
    assert table["pareto_frequency"].null_count == 16


def test_failed_and_missing_deployments_keep_their_rows():
    given = synthetic.tables()
    metrics = [m for m in synthetic.metrics() if m["deployment"] == "demo-bf16"]
    given["metrics"] = pa.Table.from_pylist(metrics)
    given["failures"] = [
        {"deployment": "demo-int4", "stage": "performance", "reason": "no kernel", "log": "results/logs/x.log"}
    ]
    rows = cap.cap_table(**given).to_pylist()
    status = {r["deployment"]: r["status"] for r in rows}
    assert status == {"demo-bf16": "measured", "demo-int8": "missing", "demo-int4": "failed"}
    failed = [r for r in rows if r["status"] == "failed"]
    assert len(failed) == 8
    assert failed[0]["failure_reason"] == "no kernel"
    assert failed[0]["failure_log"] == "results/logs/x.log"
    assert failed[0]["tpot_s"] is None
    assert failed[0]["accuracy"] is not None  # accuracy is a stage of its own


def test_a_failure_of_one_point_leaves_the_others():
    given = synthetic.tables()
    metrics = [m for m in synthetic.metrics() if (m["deployment"], m["batch_size"]) != ("demo-bf16", 64)]
    given["metrics"] = pa.Table.from_pylist(metrics)
    given["failures"] = [{"deployment": "demo-bf16", "batch_size": 64, "reason": "out of memory"}]
    rows = cap.cap_table(**given).to_pylist()
    assert {(r["deployment"], r["batch_size"]) for r in rows if r["status"] == "failed"} == {("demo-bf16", 64)}


def test_two_rows_for_one_key_are_refused():
    given = synthetic.tables()
    given["metrics"] = [given["metrics"], given["metrics"].slice(0, 1)]
    with pytest.raises(MoecapError, match="two rows for deployment demo-bf16, dataset arithmetic, batch_size 1"):
        cap.cap_table(**given)
    given = synthetic.tables()
    other = given["accuracy"].set_column(4, "metric", pa.array(["flexible"] * given["accuracy"].num_rows))
    given["accuracy"] = [given["accuracy"], other]
    with pytest.raises(MoecapError, match="exact_match, flexible"):
        cap.cap_table(**given)


def test_a_value_that_does_not_fit_is_named():
    with pytest.raises(MoecapError, match=r"column tpot_s.*infinite"):
        cap.to_table([{"deployment": "a", "model": "m", "dataset": "d", "status": "measured", "tpot_s": math.inf}])
    with pytest.raises(MoecapError, match="column accuracy_n"):
        cap.to_table([{"deployment": "a", "model": "m", "dataset": "d", "status": "measured", "accuracy_n": 1.5}])


def test_rows_of_the_paper_need_no_lists_and_join_by_deployment():
    deployments = [{"deployment": "t3-1", "model": "DBRX", "precision": "bf16", "hardware": "paper", "devices": 4}]
    point = {"deployment": "t3-1", "dataset": "GSM8K", "batch_size": None}
    table = cap.cap_table(
        deployments,
        pa.Table.from_pylist([{**point, "output_tokens_per_s": 135.18, "status": "paper", "source": "Table 3"}]),
        pa.Table.from_pylist([{"deployment": "t3-1", "dataset": "GSM8K", "accuracy": 0.7187}]),
        pa.Table.from_pylist([{"deployment": "t3-1", "hardware_usd": 92_100.0}]),
    )
    row = table.to_pylist()[0]
    assert (row["status"], row["engine"], row["batch_size"], row["source"]) == ("paper", None, None, "Table 3")
    assert (row["accuracy"], row["accuracy_low"], row["hardware_usd"]) == (0.7187, None, 92_100.0)


def test_file_round_trip_keeps_units_and_provenance(tmp_path, table):
    table = cap.cap_table(**synthetic.tables(), provenance={"git_commit": "abc"})
    write_parquet(table, tmp_path / "cap.parquet")
    read = pq.read_table(tmp_path / "cap.parquet")
    assert read.schema.equals(CAP_SCHEMA)
    assert read.schema.field("tpot_s").metadata[b"unit"] == b"s"
    assert read_metadata(tmp_path / "cap.parquet") == {"git_commit": "abc"}
    assert json.loads(read.schema.metadata[b"moecap"])["git_commit"] == "abc"


@given(st.integers(1, 5000), st.floats(0, 1))
def test_accuracy_interval_contains_the_estimate(n, share):
    right = round(share * n)
    p = right / n
    low, high = cap.accuracy_interval(p, math.sqrt(p * (1 - p) / max(n - 1, 1)), n)
    assert 0 <= low <= p <= high <= 1
    assert high > low


def test_accuracy_interval_of_a_mean_that_is_no_share():
    assert cap.accuracy_interval(0.5, 0.1, 1000) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert cap.accuracy_interval(0.5, None, None) == (None, None)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_domination_against_the_definition(points):
    c, a, t = (np.array(v, float) for v in zip(*points, strict=True))
    expected = [
        any(
            q[0] <= p[0] and q[1] >= p[1] and q[2] >= p[2] and q != p
            for q in points
        )
        for p in points
    ]  # fmt: skip
    assert frontier.dominated(c, a, t).tolist() == expected
    assert not all(expected)


def _point(name: str, cost: float, accuracy: float, rate: float, spread: float = 0.0, **more):
    row = {"deployment": name, "precision": name, "dataset": "d", "batch_size": 1, "usd_per_million_tokens": cost}
    row |= {"accuracy": accuracy, "accuracy_stderr": 0.0, "output_tokens_per_s": rate}
    row |= {"output_tokens_per_s_low": rate * (1 - spread), "output_tokens_per_s_high": rate * (1 + spread)}
    return row | more


def test_pareto_frequency_is_certain_without_uncertainty_and_even_for_equals():
    rows = [_point("best", 1, 0.9, 100), _point("worse", 2, 0.8, 50)]
    assert frontier.pareto_frequency(rows) == [1.0, 0.0]
    twins = [_point("a", 1, 0.9, 100, 0.1), _point("b", 1, 0.9, 100, 0.1)]
    shares = frontier.pareto_frequency(twins)
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] == pytest.approx(0.5, abs=0.06)
    assert shares == frontier.pareto_frequency(twins)  # fixed seed
    assert frontier.pareto_frequency([_point("a", 1, 0.9, 100), _point("b", 1, None, 9)]) == [1.0, None]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3)), max_size=12))
def test_points_left_out_in_advance_change_nothing(points):
    rows = [_point(str(p[3]), p[0], p[1] / 10, p[2] * 10, 0.1 * p[3], deployment=str(i)) for i, p in enumerate(points)]
    expected = frontier.pareto_frequency(rows, draws=50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "_always_dominated", lambda costs, *_: np.zeros(costs.shape[1], bool))
        assert frontier.pareto_frequency(rows, draws=50) == expected


def test_a_price_shared_by_a_machine_does_not_tell_its_deployments_apart():
    price = {"hardware": "m", "devices": 1, "hardware_usd": 100, "hardware_usd_low": 20, "hardware_usd_high": 500}
    rows = [_point("cheap", 1.0, 0.9, 100, **price), _point("dear", 1.1, 0.8, 90, **price)]
    assert frontier.pareto_frequency(rows) == [1.0, 0.0]


def test_cost_of_an_evaluation_is_that_of_as_many_requests() -> None:
    key = {"deployment": "d", "dataset": "x", "batch_size": 4}
    metrics = [{**key, "output_tokens_per_s": 10.0, "requests": 12}]
    cost = [{**key, "run_usd": 0.6, "run_usd_low": 0.5, "run_usd_high": 0.9}]
    accuracy = [{"deployment": "d", "dataset": "x", "accuracy": 0.5, "accuracy_n": 200}]
    deployment = {"deployment": "d", "model": "m", "precision": "bf16"}
    tables = [pa.Table.from_pylist(rows) for rows in (metrics, accuracy, cost)]
    (row,) = cap.cap_table([deployment], *tables).to_pylist()
    assert row["evaluation_usd"] == pytest.approx(10.0)
    assert (row["evaluation_usd_low"], row["evaluation_usd_high"]) == (pytest.approx(25 / 3), pytest.approx(15.0))
    (row,) = cap.cap_table([deployment], tables[0], [], tables[2]).to_pylist()
    assert row["evaluation_usd"] is None


def test_cost_of_a_right_answer_is_that_of_a_request_over_the_accuracy() -> None:
    key = {"deployment": "d", "dataset": "x", "batch_size": 4}
    metrics = [{**key, "output_tokens_per_s": 10.0, "requests": 12, "generated_tokens": 120, "schedule": "exact"}]
    cost = [{**key, "run_usd": 0.6, "run_usd_low": 0.5, "run_usd_high": 0.9, "joules_per_token": 2.0}]
    deployment = {"deployment": "d", "model": "m", "precision": "bf16"}

    def row(**accuracy: float) -> dict:
        tables = [metrics, [{"deployment": "d", "dataset": "x", **accuracy}] if accuracy else [], cost]
        return cap.cap_table([deployment], *(pa.Table.from_pylist(t) if t else [] for t in tables)).to_pylist()[0]

    sure = row(accuracy=0.5, accuracy_low=0.5, accuracy_high=0.5)
    assert sure["usd_per_correct_answer"] == pytest.approx(0.1)
    assert (sure["usd_per_correct_answer_low"], sure["usd_per_correct_answer_high"]) == pytest.approx((1 / 12, 0.15))
    assert sure["joules_per_correct_answer"] == pytest.approx(40.0) and sure["joules_per_correct_answer_low"] is None
    unsure = row(accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6)
    assert unsure["usd_per_correct_answer_low"] < 1 / 12 and 0.15 < unsure["usd_per_correct_answer_high"] < 0.15 / 0.8
    assert (unsure["origin"], unsure["schedule"]) == ("measured", "exact")
    for none in (row(accuracy=0.0), row()):  # no answer was right, or none was asked for
        assert none["usd_per_correct_answer"] is None and none["joules_per_correct_answer"] is None


def test_a_price_range_moves_only_the_purchase_in_the_frontier() -> None:
    def row(name: str, usd: float, **more: float) -> dict:
        return {
            "deployment": name,
            "hardware": name,
            "dataset": "x",
            "batch_size": 1,
            "accuracy": 0.5,
            "output_tokens_per_s": 10.0,
            "usd_per_million_tokens": usd,
            "hardware_usd": 100.0,
            **more,
        }

    wide = {"hardware_usd_low": 50.0, "hardware_usd_high": 200.0}
    bought, powered = ({**wide, "capital_share": share} for share in (1.0, 0.01))
    assert 0.1 < frontier.pareto_frequency([row("a", 1.0), row("b", 1.1, **bought)])[1] < 0.9
    assert frontier.pareto_frequency([row("a", 1.0), row("b", 1.1, **powered)])[1] == 0.0


@pytest.mark.parametrize("config", ["config", "paper", "engines"])
def test_a_measured_row_says_the_kind_of_its_engine(config: str) -> None:
    campaign = start([ROOT / "config" / f"{config}.yaml"]).campaign
    for row in campaign.params.cap()["deployments"]:
        measured = campaign.deployments.get(row["deployment"])
        assert row.get("engine_kind") == (campaign.engine(measured.engine).kind if measured else None)
