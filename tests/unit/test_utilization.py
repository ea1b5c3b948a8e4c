"""Equations (1) to (4): values, kinds of input, properties that hold for every model, and what is refused."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moecap.metrics.utilization as u
from moecap import mbu, mfu, s_mbu, s_mfu
from moecap.errors import MoecapError

from .systems import anatomy_of, mixtral_8x7b, small


def test_doctests():
    assert doctest.testmod(u).failed == 0 and doctest.testmod(u).attempted > 8


def test_values():
    assert mbu(90e9, 10e9, 0.1, 2e12) == pytest.approx(0.5)
    assert s_mbu(20e9, 10e9, 0.1, 2e12) == pytest.approx(0.15)
    assert mfu(100, 2e9, 1e12) == pytest.approx(0.2)
    assert s_mfu(100, 1e9, 1e12) == pytest.approx(0.1)
    assert isinstance(mbu(90, 10, 0.1, 2), float)


def test_arrays_series_and_frames():
    times = np.array([0.1, 0.2])
    assert s_mbu(1e9, 0, times, 1e11) == pytest.approx([0.1, 0.05])
    frame = pd.DataFrame({"bytes": [1e9, 3e9], "kv": [0.0, 1e9], "s": [0.1, 0.2]}, index=["a", "b"])
    found = s_mbu(frame["bytes"], frame["kv"], frame["s"], 1e11)
    assert isinstance(found, pd.Series) and found.to_dict() == pytest.approx({"a": 0.1, "b": 0.2})
    assert mfu(frame["s"], 1.0, 2.0).index.tolist() == ["a", "b"]
    assert s_mbu([1e9, 2e9], 0, 0.1, 1e11) == pytest.approx([0.1, 0.2])


def test_missing_stays_missing():
    assert np.isnan(s_mbu(float("nan"), 0, 0.1, 1e11))
    found = mbu(pd.Series([1e9, None]), 0, pd.Series([0.1, 0.1]), 1e11)
    assert found[0] == pytest.approx(0.1) and np.isnan(found[1])


@pytest.mark.parametrize("bad", [0, -0.1, np.array([0.1, 0.0]), pd.Series([0.1, -1.0])])
def test_times_must_be_positive(bad):
    for function in (mbu, s_mbu):
        with pytest.raises(MoecapError, match="tpot_s must be positive"):
            function(1e9, 0, bad, 1e12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mbu(1, 0, 1, 0), "peak_bytes_per_s must be positive"),
        (lambda: mfu(1, 1, 0), "peak_flops must be positive"),
        (lambda: s_mfu(-1, 1, 1), "tokens_per_s must not be negative"),
        (lambda: s_mbu(-1, 0, 1, 1), "activated_bytes must not be negative"),
        (lambda: mbu(1, -1, 1, 1), "kv_bytes must not be negative"),
        (lambda: mbu(1, 1, "soon", 1), "tpot_s is 'soon'"),
        (lambda: u.aggregate([1], [0], 1), "time_s must be positive"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(MoecapError, match=message):
        call()


def test_above_one_is_flagged_not_clipped():
    value = s_mbu(3e12, 0, 1.0, 2e12)
    assert value == 1.5 and u.above_one(value) is True
    assert u.above_one(np.array([0.5, 1.0, 1.1, np.nan])).tolist() == [False, False, True, False]


def test_aggregate_weights_bytes_over_time():
    # A step of 9 ms at 10% and one of 1 ms at 100%: the mean of ratios would say 55%.
    assert u.aggregate([0.9e9, 1e9], [0.009, 0.001], 1e12) == pytest.approx(0.19)


def test_peak_is_that_of_the_compute_type():
    peaks = {"bf16": 312e12, "int8": 624e12, "fp8": None}
    assert u.peak_flops_of(peaks, "bf16") == 312e12
    for missing in ("int4", "fp8"):
        with pytest.raises(MoecapError, match=r"No peak FLOP/s is known .*W4A16: bf16"):
            u.peak_flops_of(peaks, missing, "A100")
    with pytest.raises(MoecapError, match="must be positive"):
        u.peak_flops_of({"bf16": 0}, "bf16")


# ---------------------------------------------------------------- properties over models


@st.composite
def models(draw):
    experts = draw(st.integers(1, 16))
    return small(
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        moe_layers=draw(st.integers(1, 4)),
        dense_layers=draw(st.integers(0, 2)),
        window=draw(st.sampled_from([None, 3])),
        tied=draw(st.booleans()),
        weight_bytes=draw(st.sampled_from([0.5, 1, 2])),
    )


def step_of(anatomy, rng, steps=5):
    """Random steps: tokens, requests, context, pairs, unique experts that such tokens could have touched."""
    tokens = rng.integers(1, 20, steps)
    most = np.array([[min(k.experts, t * k.top_k) for k in u.moe_kinds(anatomy)] for t in tokens])
    least = np.array([k.top_k for k in u.moe_kinds(anatomy)])
    unique = rng.integers(np.broadcast_to(least, most.shape), most + 1)
    context = rng.integers(1, 100, (steps, len(anatomy.kinds)))
    return tokens, rng.integers(1, tokens + 1), context, context * 3, unique


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(0, 10**6))
def test_sparse_never_exceeds_dense_in_the_same_form(anatomy, seed):
    tokens, requests, context, pairs, unique = step_of(anatomy, np.random.default_rng(seed))
    assert (u.printed_activated_bytes(anatomy, unique) <= u.printed_model_bytes(anatomy)).all()
    shared = {"tokens": tokens, "requests": requests, "context_tokens": context}
    sparse = u.complete_bytes(anatomy, **shared, unique_experts=unique)
    dense = u.complete_bytes(anatomy, **shared)
    assert (sum(sparse.values()) <= sum(dense.values())).all()
    assert u.printed_sparse_flops_per_token(anatomy) <= u.printed_flops_per_token(anatomy)
    flops = {"tokens": tokens, "requests": requests, "attention_pairs": pairs}
    assert (
        sum(u.complete_flops(anatomy, **flops).values()) <= sum(u.complete_flops(anatomy, **flops, dense=True).values())
    ).all()


@given(models())
def test_equal_when_every_expert_is_active(anatomy):
    every = np.array([k.experts for k in u.moe_kinds(anatomy)])
    assert u.printed_activated_bytes(anatomy, every) == u.printed_model_bytes(anatomy)
    context = np.ones((1, len(anatomy.kinds)))
    some = {"tokens": [3], "requests": [1], "context_tokens": context}
    sparse = u.complete_bytes(anatomy, **some, unique_experts=every[None])
    assert sum(sparse.values()) == sum(u.complete_bytes(anatomy, **some).values())
    assert u.overestimation(u.printed_model_bytes(anatomy), u.printed_activated_bytes(anatomy, every)) == 1


def test_equal_for_a_dense_model():
    anatomy = small(moe_layers=0, dense_layers=3)
    none = np.zeros((2, 0))
    assert u.printed_activated_bytes(anatomy, none) == pytest.approx([u.printed_model_bytes(anatomy)] * 2)
    inside = u.printed_flops_per_token(anatomy) - u.printed_sparse_flops_per_token(anatomy)
    outside = sum(anatomy.components[c].params for c in ("embedding", "lm_head", "norms"))
    assert inside == 2 * outside


@settings(max_examples=40, deadline=None)
@given(models(), st.integers(0, 10**6), st.integers(1, 5))
def test_bytes_never_shrink_when_tokens_are_added(anatomy, seed, extra):
    tokens, requests, context, _, unique = step_of(anatomy, np.random.default_rng(seed))
    more = np.minimum(unique + extra, [k.experts for k in u.moe_kinds(anatomy)])
    before = u.complete_bytes(anatomy, tokens=tokens, requests=requests, context_tokens=context, unique_experts=unique)
    after = u.complete_bytes(
        anatomy,
        tokens=tokens + extra,
        requests=requests + extra,
        context_tokens=context + extra,
        unique_experts=more,
    )
    for name in before:
        assert (after[name] >= before[name]).all(), name


@settings(max_examples=30, deadline=None)
@given(models(), st.integers(0, 10**6))
def test_invariant_to_the_order_of_steps_and_layers(anatomy, seed):
    rng = np.random.default_rng(seed)
    tokens, requests, context, _, unique = step_of(anatomy, rng)
    times = rng.uniform(0.1, 1, len(tokens))
    amount = u.printed_activated_bytes(anatomy, unique) + u.printed_kv_bytes(anatomy, context)
    order = rng.permutation(len(tokens))
    assert u.aggregate(amount, times, 1e9) == pytest.approx(u.aggregate(amount[order], times[order], 1e9))
    # Reverse the layers of the model, and the columns that belong to them.
    import dataclasses

    turned = dataclasses.replace(anatomy, layer_kind=anatomy.layer_kind[::-1])
    assert u.printed_activated_bytes(turned, unique[:, ::-1]) == pytest.approx(
        u.printed_activated_bytes(anatomy, unique)
    )
    some = {"tokens": tokens, "requests": requests, "context_tokens": context}
    a = u.complete_bytes(anatomy, **some, unique_experts=unique)
    b = u.complete_bytes(turned, **some, unique_experts=unique[:, ::-1])
    assert sum(a.values()) == pytest.approx(sum(b.values()))


@given(models())
def test_complete_weights_are_all_that_is_stored(anatomy):
    """With every expert active a step reads each stored byte once: rows of the embedding apart, a tied head again."""
    read = u.complete_bytes(
        anatomy, tokens=[1], requests=[1], context_tokens=np.zeros((1, len(anatomy.kinds)), dtype=int)
    )
    weights = sum(v[0] for k, v in read.items() if k not in ("embedding", "kv", "state", "activations"))
    embedding = 0 if anatomy.tied_embeddings else anatomy.components["embedding"].bytes
    assert weights == anatomy.weight_bytes - embedding


def test_complete_counts_by_hand():
    anatomy = small(experts=4, top_k=2, moe_layers=2, dense_layers=1, window=None)
    read = u.complete_bytes(
        anatomy,
        tokens=[3],
        requests=[2],
        context_tokens=[[10, 10]],
        unique_experts=[[2, 4]],
    )
    attention = 64 * 16 * (2 * 4 + 2 * 2)
    assert read["attention"] == 3 * attention * 2
    assert read["router"] == 2 * 64 * 4 * 2
    assert read["routed_experts"] == 6 * 3 * 64 * 32 * 2
    assert read["shared_experts"] == 2 * 3 * 64 * 16 * 2
    assert read["dense_mlp"] == 3 * 64 * 128 * 2
    assert read["norms"] == (3 * 2 * 64 + 64) * 2
    assert read["lm_head"] == 64 * 1000 * 2
    assert read["embedding"] == 3 * 64 * 2
    assert read["kv"] == 3 * 10 * (2 * 2 * 16) * 2
    assert read["state"] == 0
    done = u.complete_flops(anatomy, tokens=[3], requests=[2], attention_pairs=[[7, 7]])
    assert done["routed_experts"] == 3 * 2 * 2 * 2 * 3 * 64 * 32
    assert done["attention_scores"] == 3 * 7 * 2 * 4 * (16 + 16)
    assert done["lm_head"] == 2 * 2 * 64 * 1000
    whole = u.complete_flops(anatomy, tokens=[3], requests=[2], attention_pairs=[[7, 7]], dense=True)
    assert whole["routed_experts"] == 2 * done["routed_experts"]  # four experts instead of two
    assert all(whole[name] == done[name] for name in done if name != "routed_experts")


def test_linear_attention_state_is_read_per_request():
    kind = {"count": 2, "attention": "linear", "state_bytes": 1000, "attention_params": 10, "dense_mlp_params": 30}
    anatomy = anatomy_of([kind])
    read = u.complete_bytes(anatomy, tokens=[5], requests=[3], context_tokens=[[0]], unique_experts=np.zeros((1, 0)))
    assert read["state"] == 3 * 2 * 1000 and read["kv"] == 0


def test_step_table_of_another_model_is_refused():
    anatomy = mixtral_8x7b()
    with pytest.raises(MoecapError, match="last axis must have 32 entries"):
        u.printed_activated_bytes(anatomy, np.ones((3, 31)))
    with pytest.raises(MoecapError, match="belongs to another model"):
        u.printed_activated_bytes(anatomy, np.full((3, 32), 9))


# ---------------------------------------------------------------- memory tiers


def test_tiers():
    read = {"attention": np.array([10.0, 10.0]), "routed_experts": np.array([80.0, 40.0]), "kv": np.array([1.0, 1.0])}
    tiers = u.split_by_tier(read, {"routed_experts": {"hbm": 0.25, "dram": 0.5, "ssd": 0.25}})
    assert tiers["hbm"].tolist() == [31.0, 21.0]
    assert tiers["dram"].tolist() == [60.0, 30.0]  # its own half, and what passes from the SSD
    assert tiers["ssd"].tolist() == [20.0, 10.0]
    assert tiers["pcie"].tolist() == [60.0, 30.0]
    peaks = {"hbm": 100.0, "dram": 50.0, "pcie": 25.0, "ssd": 10.0}
    assert u.tier_utilization(tiers, [1.0, 2.0], peaks) == pytest.approx(
        {"hbm": 52 / 3 / 100, "dram": 90 / 3 / 50, "pcie": 90 / 3 / 25, "ssd": 30 / 3 / 10}
    )
    with pytest.raises(MoecapError, match="memory tier ssd"):
        u.tier_utilization(tiers, [1.0, 2.0], {k: v for k, v in peaks.items() if k != "ssd"})


@pytest.mark.parametrize(
    "placement, message",
    [({"router": {"hbm": 1.0}}, "Unknown component 'router'"), ({"kv": {"hbm": 0.5}}, "add up to 1")],
)
def test_bad_placements(placement, message):
    with pytest.raises(MoecapError, match=message):
        u.split_by_tier({"kv": 1.0}, placement)
