"""The check of the replay: it agrees where ids do, says by how much where they do not; null where it cannot tell."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from moecap.checks import replay_check
from moecap.metrics.amounts import AMOUNTS, step_amounts
from moecap.metrics.steps import step_table
from moecap.routing.store import RoutingStore, RoutingWriter

from .systems import FakeRouting, make_run, small

ANATOMY = small(8, 2)


@pytest.fixture
def run():
    return make_run(ANATOMY, np.random.default_rng(3), batch_sizes=(1, 4), repeats=2)


def store(run, folder, without=(), replay_s=0.5, tokens=100):
    shape = {"layers": ANATOMY.moe_layers, "top_k": 2, "n_experts": 8}
    metadata = {"replay": {"replay_s": replay_s, "tokens": tokens}}
    with RoutingWriter(folder / "routing.parquet", metadata=metadata, **shape) as out:
        for name, ids in run.routing.ids.items():
            if name not in without:
                out.add(name, ids)
    return RoutingStore([folder / "routing.parquet"])


def decoded(run, ids=None):
    """The table that hooks would have left, had they seen ``ids``."""
    ids = {**run.routing.ids, **(ids or {})}
    raw = [np.asarray(ids[name]).astype(np.uint8).tobytes() for name in run.requests["sequence_sha256"].to_pylist()]
    return run.requests.append_column("expert_ids", pa.array(raw, pa.binary()))


def checked(run, folder, ids=None, **more):
    found = replay_check.check(
        "d", decoded(run, ids), run.schedule, run.points, run.requests, store(run, folder, **more), ANATOMY
    )
    assert found.schema == replay_check.SCHEMA
    return found.to_pylist()


def test_where_ids_agree_everything_does(run, tmp_path):
    rows = checked(run, tmp_path)
    assert [row["batch_size"] for row in rows] == [1, 4] and [row["runs"] for row in rows] == [2, 2]
    for row in rows:
        assert row["sets_equal"] == row["prefill_sets_equal"] == row["unique_equal"] == row["same_tokens"] == 1
        assert row["s_mbu_error"] == row["s_mbu_complete_error"] == row["worst_run_error"] == row["unique_error"] == 0
        assert row["control_sets_equal"] < 0.5
        assert row["step_layers"] == row["decode_steps"] * len(ANATOMY.moe_layers) > 0
        assert row["replay_over_run"] == pytest.approx(row["replay_s"] / row["run_s"])
    ratio = sum(row["replay_s"] for row in rows) / sum(row["run_s"] for row in rows)
    assert "0.000% (goal: at most 0.2%: met)" in replay_check.in_words(rows)
    assert f"took {ratio:.2f} of the time" in replay_check.in_words(rows)


def test_the_order_of_a_tokens_experts_is_of_no_account(run, tmp_path):
    turned = {name: ids[..., ::-1] for name, ids in run.routing.ids.items()}
    assert all(row["sets_equal"] == 1 and row["s_mbu_error"] == 0 for row in checked(run, tmp_path, turned))


def test_one_token_that_went_elsewhere_is_counted_and_costs_what_it_costs(run, tmp_path):
    single = run.requests.filter(pa.compute.field("batch_size") == 1).to_pylist()[0]
    name, prompt = single["sequence_sha256"], len(single["prompt_token_ids"])
    ids = np.array(run.routing.ids[name])
    row_of_ids = ids[prompt, 0]
    ids[prompt, 0] = [row_of_ids[0], row_of_ids[0]]  # one expert instead of two, in the first decode step
    row = checked(run, tmp_path, {name: ids})[0]
    runs = sum(r["sequence_sha256"] == name and r["batch_size"] == 1 for r in run.requests.to_pylist())
    assert row["sets_equal"] == pytest.approx(1 - runs / row["token_layers"])
    assert row["prefill_sets_equal"] == 1
    assert row["unique_equal"] == pytest.approx(1 - runs / row["step_layers"])
    assert row["unique_error"] == pytest.approx(runs / row["step_layers"])
    own = [t.filter(pa.compute.field("batch_size") == 1) for t in (run.schedule, run.requests)]
    bytes_of = []
    for found in (run.routing.ids, {**run.routing.ids, name: ids}):
        steps = step_table(*own, FakeRouting(found, run.routing.layers), ANATOMY)
        phases = [amounts.phases["decode"].sum(axis=0) for amounts in step_amounts(steps, ANATOMY).values()]
        bytes_of.append(sum(phases)[AMOUNTS.index("s_mbu")])
    assert row["s_mbu_error"] == pytest.approx(bytes_of[0] / bytes_of[1] - 1) and row["s_mbu_error"] > 0


def test_a_run_that_came_out_otherwise_is_not_compared_and_none_is_null(run, tmp_path):
    names = run.requests.filter(pa.compute.field("batch_size") == 4)["sequence_sha256"].to_pylist()
    first, second = checked(run, tmp_path, without=names)
    assert first["same_tokens"] == 1
    assert second["same_tokens"] == 0 and second["runs"] == 2
    assert second["s_mbu_error"] is None and second["sets_equal"] is None and second["token_layers"] is None
    assert "0.000%" in replay_check.in_words([first, second])
    assert "nothing could be compared" in replay_check.in_words([second])


def test_a_replay_that_had_nothing_to_do_has_no_time(run, tmp_path):
    assert all(row["replay_s"] is None for row in checked(run, tmp_path, replay_s=None))
    assert all(row["replay_over_run"] is None for row in checked(run, tmp_path, tokens=0))


def test_an_error_beyond_the_goal_is_said():
    row = {"s_mbu_error": -0.003, "replay_s": 0.3, "run_s": 1.0}
    assert "0.300% (goal: at most 0.2%: not met)" in replay_check.in_words([row])
    assert "took 0.30 of the time of the timed runs (goal: at most 0.25: not met)" in replay_check.in_words([row])
    assert "replay took" not in replay_check.in_words([{**row, "replay_s": None}])
