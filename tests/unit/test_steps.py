"""The step table against a count by loops over tokens, and what it refuses."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.errors import MoecapError
from moecap.io import read_metadata
from moecap.metrics import steps as steps_module
from moecap.metrics.steps import STEP_SCHEMA, step_batches, step_table, write_steps
from moecap.model.reads import entries_read, pairs
from moecap.model.structure import LayerKind
from moecap.routing.store import RoutingWriter
from moecap.routing.store import read as read_routing

from .systems import FakeRouting, anatomy_of, brute_force, make_run, requests_of, schedule_of, small


def assert_equal_to_brute_force(run, anatomy):
    table = step_table(run.schedule, run.requests, run.routing, anatomy)
    assert table.schema.equals(STEP_SCHEMA)
    expected = brute_force(run, anatomy)
    assert table.num_rows == len(expected)
    for name, key in {
        "prefill_tokens": "prefill",
        "decode_tokens": "decode",
        "recomputed_tokens": "recomputed",
        "preempted_tokens": "lost",
        "context_tokens": "context",
        "attention_pairs": "pairs",
        "unique_experts": "unique",
    }.items():
        assert table.column(name).to_pylist() == [row[key] for row in expected], name
    return table


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    experts=st.sampled_from([2, 7, 64, 65, 200]),
    top_k=st.integers(1, 2),
    moe_layers=st.integers(1, 4),
    window=st.sampled_from([None, 1, 3, 8]),
    chunk=st.integers(1, 12),
    preempt=st.sampled_from([0.0, 0.2]),
    batch=st.integers(1, 6),
)
def test_join_equals_a_count_by_loops(seed, experts, top_k, moe_layers, window, chunk, preempt, batch):
    anatomy = small(experts, top_k, moe_layers, window=window)
    rng = np.random.default_rng(seed)
    run = make_run(anatomy, rng, batch_sizes=(batch, batch + 1), repeats=2, chunk=chunk, preempt=preempt)
    assert_equal_to_brute_force(run, anatomy)


@pytest.mark.parametrize("ids, seen", [(1, 1), (100, 1), (1 << 19, 1), (1, 1 << 21)])
def test_blocks_do_not_change_the_count(monkeypatch, ids, seen):
    monkeypatch.setattr(steps_module, "BLOCK_IDS", ids)
    monkeypatch.setattr(steps_module, "BLOCK_SEEN_BYTES", seen)
    anatomy = small(16, 2)
    assert_equal_to_brute_force(make_run(anatomy, np.random.default_rng(0), batch_sizes=(5,), preempt=0.1), anatomy)


def test_mixed_and_chunked_steps_are_rows_of_their_own():
    anatomy = small(8, 2)
    run = make_run(anatomy, np.random.default_rng(1), batch_sizes=(6,), prompt=(8, 20), chunk=7)
    table = assert_equal_to_brute_force(run, anatomy)
    prefill, decode = table["prefill_tokens"].to_numpy(), table["decode_tokens"].to_numpy()
    assert ((prefill > 0) & (decode > 0)).any() and ((prefill > 0) & (decode == 0)).any()
    assert decode.sum() == 6 * 4  # the last token of five is never an input
    assert prefill.sum() == run.points["prompt_tokens"][0].as_py()


def test_order_of_rows_does_not_matter():
    anatomy = small(8, 2)
    run = make_run(anatomy, np.random.default_rng(2), batch_sizes=(2, 4), repeats=2, preempt=0.1)
    expected = step_table(run.schedule, run.requests, run.routing, anatomy).to_pylist()
    order = np.random.default_rng(3).permutation(run.schedule.num_rows)
    shuffled = step_table(run.schedule.take(pa.array(order)), run.requests, run.routing, anatomy)
    key = ["dataset", "batch_size", "repeat", "step"]
    assert shuffled.sort_by([(k, "ascending") for k in key]).to_pylist() == sorted(
        expected, key=lambda r: tuple(r[k] for k in key)
    )


def test_prefix_cache_and_preemption_are_told_apart():
    anatomy = small(8, 2, moe_layers=1, dense_layers=0)
    routing = FakeRouting({"seq-0": np.zeros((20, 1, 2), int), "seq-1": np.ones((20, 1, 2), int)}, (0,))
    schedule = schedule_of(
        [
            {"request": [0, 1], "first_position": [4, 0], "tokens": [2, 3], "cached_tokens": [4, 0]},
            {"request": [0, 1], "first_position": [6, 3], "tokens": [1, 1]},
            {"request": [1], "first_position": [4], "tokens": [1], "preempted": [0]},
            {"request": [0], "first_position": [0], "tokens": [7]},
            {"request": [0], "first_position": [7], "tokens": [1]},
        ]
    )
    table = step_table(schedule, requests_of([6, 3]), routing, anatomy).to_pydict()
    assert table["cached_tokens"] == [4, 0, 0, 0, 0]
    assert table["prefill_tokens"] == [5, 0, 0, 7, 0]
    assert table["decode_tokens"] == [0, 2, 1, 0, 1]
    assert table["preempted_tokens"] == [0, 0, 7, 0, 0]
    assert table["recomputed_tokens"] == [0, 0, 0, 7, 0]
    assert table["context_tokens"] == [[9], [11], [5], [7], [8]]
    assert table["running_requests"] == [2, 2, 1, 1, 1]


def test_a_preempted_request_that_the_prefix_cache_takes_up_beyond_its_prompt():
    """Outputs that are computed again are prefill, though no position of the prompt is computed."""
    anatomy = small(8, 2, moe_layers=1, dense_layers=0)
    routing = FakeRouting({"seq-0": np.zeros((20, 1, 2), int)}, (0,))
    schedule = schedule_of(
        [
            {"request": [0], "first_position": [0], "tokens": [4]},
            *({"request": [0], "first_position": [at], "tokens": [1]} for at in range(4, 8)),
            {"request": [0], "first_position": [6], "tokens": [3], "cached_tokens": [6], "preempted": [0]},
        ]
    )
    table = step_table(schedule, requests_of([4], output=6), routing, anatomy).to_pydict()
    assert (table["prefill_tokens"][-1], table["decode_tokens"][-1], table["recomputed_tokens"][-1]) == (2, 1, 2)
    assert sum(table["decode_tokens"]) == 5


@given(first=st.integers(0, 60), tokens=st.integers(1, 40), window=st.integers(1, 30), chunked=st.booleans())
def test_windows(first, tokens, window, chunked):
    kind = LayerKind(count=1, kv_elements_per_token=2, kv_window=window, attention="chunked" if chunked else "sliding")
    (cache,) = kind.caches
    seen = [
        [p for p in range(q + 1) if (p // window == q // window if chunked else p > q - window)]
        for q in range(first, first + tokens)
    ]
    a, b = np.array([first]), np.array([tokens])
    if not chunked:
        assert entries_read(cache, a, b) == [len(set().union(*seen))]
    else:  # what lies between is read too: chunks are contiguous from the first query's on
        assert entries_read(cache, a, b) == [first + tokens - first // window * window]
    assert pairs(cache, a, b) == [sum(map(len, seen))]


def test_linear_attention_reads_no_context():
    kind = LayerKind(count=1, attention="linear", state_bytes=10, query_heads=4, qk_head_dim=8, v_head_dim=8)
    assert entries_read(kind.caches[0], np.array([5]), np.array([3])) == [0]
    assert pairs(kind.caches[0], np.array([5]), np.array([3])) == [0]


def test_dense_model_needs_no_routing():
    anatomy = small(moe_layers=0, dense_layers=2)
    run = make_run(anatomy, np.random.default_rng(0))
    table = step_table(run.schedule, run.requests, None, anatomy)
    assert table["unique_experts"].to_pylist() == [[]] * table.num_rows
    assert set(table["routed_tokens"].to_pylist()) == {0}


def test_real_store_gives_the_same(tmp_path):
    anatomy = small(16, 3)
    run = make_run(anatomy, np.random.default_rng(5), batch_sizes=(4,), repeats=2)
    path = tmp_path / "routing.parquet"
    with RoutingWriter(path, layers=anatomy.moe_layers, top_k=3, n_experts=16, row_group_bytes=64) as writer:
        for name, ids in run.routing.ids.items():
            writer.add(name, ids)
    store = read_routing(path, anatomy)
    expected = step_table(run.schedule, run.requests, run.routing, anatomy)
    assert step_table(run.schedule, run.requests, store, anatomy).equals(expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), extra=st.integers(1, 5))
def test_more_tokens_in_a_step_never_touch_fewer_experts(seed, extra):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 16, (4 + extra, 3, 2))
    few = steps_module.count_unique(ids, np.arange(4), np.zeros(4, int), 1, 64)
    more = steps_module.count_unique(ids, np.arange(4 + extra), np.zeros(4 + extra, int), 1, 64)
    assert (more >= few).all()


# ---------------------------------------------------------------- bad input


def good():
    anatomy = small(8, 2, moe_layers=2, dense_layers=0)
    routing = FakeRouting({"seq-0": np.zeros((8, 2, 2), np.uint8)}, (0, 1))
    rows = [
        {"request": [0], "first_position": [0], "tokens": [4]},
        {"request": [0], "first_position": [4], "tokens": [1]},
    ]
    return anatomy, routing, rows


@pytest.mark.parametrize(
    "change, message",
    [
        ({"wall_s": 0.0}, "step 1 takes no time"),
        ({"wall_s": -1.0}, "step 1 takes no time"),
        ({"wall_s": float("nan")}, "step 1 takes no time"),
        ({"request": [], "first_position": [], "tokens": []}, "step 1 is empty"),
        ({"tokens": [0]}, "must be at least 1"),
        ({"first_position": [-1]}, "must not be negative"),
        ({"request": [7]}, "request 7 is scheduled"),
        ({"first_position": [5]}, "the schedule lacks steps"),
        ({"tokens": [1, 1]}, "run in parallel"),
        ({"tokens": [9]}, "covers 8 tokens, the schedule computed 13"),
    ],
)
def test_bad_schedules_are_refused(change, message):
    anatomy, routing, rows = good()
    rows[1] = {**rows[1], **change}
    if "cached_tokens" not in change and len(rows[1]["request"]) == 0:
        rows[1]["cached_tokens"] = []
    with pytest.raises(MoecapError, match=message):
        step_table(schedule_of(rows), requests_of([4]), routing, anatomy)


@pytest.mark.parametrize(
    "ids, message",
    [
        (np.zeros((8, 3, 2), np.uint8), "needs \\(tokens, 2 MoE layers, top-2\\)"),
        (np.zeros((8, 2, 4), np.uint8), "top-2"),
        (np.full((8, 2, 2), 8, np.uint8), "experts 0 to 7"),
        (np.full((8, 2, 2), -1, np.int16), "experts 0 to 7"),
    ],
)
def test_routing_of_another_model_is_refused(ids, message):
    anatomy, _, rows = good()
    with pytest.raises(MoecapError, match=message):
        step_table(schedule_of(rows), requests_of([4]), FakeRouting({"seq-0": ids}, (0, 1)), anatomy)


def test_routing_of_other_layers_is_refused():
    anatomy, routing, rows = good()
    with pytest.raises(MoecapError, match=r"MoE layers \[1, 2\]"):
        step_table(schedule_of(rows), requests_of([4]), FakeRouting(routing.ids, (1, 2)), anatomy)
    with pytest.raises(MoecapError, match="their routing is needed"):
        step_table(schedule_of(rows), requests_of([4]), None, anatomy)


def test_an_encoder_is_refused():
    layer = {"count": 1, "attention_params": 10, "dense_mlp_params": 30, "kv_elements_per_token": 4}
    anatomy = anatomy_of([{**layer, "stack": "encoder"}, layer])
    schedule = schedule_of([{"request": [0], "first_position": [0], "tokens": [4]}])
    with pytest.raises(MoecapError, match="has an encoder"):
        step_table(schedule, requests_of([4]), None, anatomy)


def test_top_k_above_experts_is_refused():
    _, routing, rows = good()
    with pytest.raises(MoecapError, match="top_k is 3 of 2 experts"):
        step_table(schedule_of(rows), requests_of([4]), routing, small(2, 3, moe_layers=2, dense_layers=0))


def test_steps_without_requests_and_missing_columns_are_refused():
    anatomy, routing, rows = good()
    with pytest.raises(MoecapError, match="has steps but no requests"):
        step_table(schedule_of(rows), requests_of([4], batch_size=2), routing, anatomy)
    with pytest.raises(MoecapError, match="has no column wall_s"):
        step_table(schedule_of(rows).drop_columns(["wall_s"]), requests_of([4]), routing, anatomy)
    with pytest.raises(MoecapError, match="step 0 occurs twice"):
        step_table(pa.concat_tables([schedule_of(rows)] * 2), requests_of([4]), routing, anatomy)


# ---------------------------------------------------------------- files


def test_written_in_row_groups_with_provenance(tmp_path):
    anatomy = small()
    run = make_run(anatomy, np.random.default_rng(0), batch_sizes=(2, 3))
    path = tmp_path / "steps.parquet"
    batches = step_batches(run.schedule, run.requests, run.routing, anatomy)
    assert write_steps(batches, path, {"seed": 1}) == run.schedule.num_rows
    assert pq.ParquetFile(path).num_row_groups == 2
    assert read_metadata(path) == {"seed": 1}
    written = pq.read_table(path)
    assert written.schema.equals(STEP_SCHEMA)
    assert written.equals(step_table(run.schedule, run.requests, run.routing, anatomy))
    assert written.schema.field("wall_s").metadata[b"unit"] == b"s"


def test_nothing_half_written_when_a_later_point_is_bad(tmp_path):
    anatomy = small()
    run = make_run(anatomy, np.random.default_rng(0), batch_sizes=(2, 3))
    path = tmp_path / "steps.parquet"
    path.write_bytes(b"the old file")
    run.routing.ids = {k: v for k, v in run.routing.ids.items() if "toy-2" in k} | {
        k: v[:1] for k, v in run.routing.ids.items() if "toy-3" in k
    }
    with pytest.raises(MoecapError, match="covers 1 tokens"):
        write_steps(step_batches(run.schedule, run.requests, run.routing, anatomy), path)
    assert path.read_bytes() == b"the old file"
    assert [p.name for p in tmp_path.iterdir()] == ["steps.parquet"]
