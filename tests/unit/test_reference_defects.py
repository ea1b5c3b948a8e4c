"""Formula defects that an audit of the paper authors' own code found, each with its numbers, against ours.

What it gets wrong in prices and peaks (D8, D21, D22) is in test_hardware and test_cost.

Qwen3-30B-A3B in bf16 on an H100 (989 TFLOP/s dense, 3.35 TB/s), where nothing else is said.
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest

from moecap import s_mbu, s_mfu
from moecap.metrics import utilization as u
from moecap.metrics.amounts import AMOUNTS, step_amounts
from moecap.metrics.peaks import Peaks, peaks_of, replication_of
from moecap.metrics.steps import step_table
from moecap.metrics.table import metrics_table
from moecap.model.quantization import recipe_from_quantization_config
from moecap.model.reads import pairs as attention_pairs

from .systems import FakeRouting, anatomy_of, deepseek_v3, make_run, qwen3_30b, requests_of, schedule_of, small

FLOPS, BANDWIDTH = 989e12, 3.35e12
PEAKS = Peaks(BANDWIDTH, FLOPS)


def points_for(requests: pa.Table, wall_s: float, generated: int) -> pa.Table:
    row = requests.slice(0, 1).to_pylist()[0]
    prompt = sum(len(r) for r in requests["prompt_token_ids"].to_pylist())
    return pa.Table.from_pylist(
        [
            {
                **{k: row[k] for k in ("dataset", "batch_size", "repeat")},
                "wall_s": wall_s,
                "requests": requests.num_rows,
                "prompt_tokens": prompt,
                "generated_tokens": generated,
            }
        ]
    )


def measure(anatomy, rows, prompts, routing, peaks=PEAKS):
    """Metrics (one row) of a hand-made schedule."""
    requests = requests_of(prompts)
    steps = step_table(schedule_of(rows), requests, routing, anatomy)
    wall = sum(r["wall_s"] for r in rows)
    return metrics_table(points_for(requests, wall, 4), requests, steps, anatomy, peaks, draws=10).to_pylist()[0]


def spread_routing(anatomy, name_tokens):
    """Each token and layer has its own run of experts, so that a few dozen tokens touch them all."""
    layers, k, e = len(anatomy.moe_layers), anatomy.top_k, anatomy.experts
    ids = {
        name: (
            (np.arange(tokens)[:, None, None] * k + np.arange(layers)[:, None] + np.arange(k)) % e
        ).astype(np.uint8)
        for name, tokens in name_tokens.items()
    }  # fmt: skip
    return FakeRouting(ids, anatomy.moe_layers)


def test_d1_s_mfu_counts_top_k_experts_and_the_router():
    anatomy = qwen3_30b()
    printed = s_mfu(100, u.printed_sparse_flops_per_token(anatomy), FLOPS)
    assert printed == pytest.approx(5.52e-4, rel=0.005)  # theirs: 3.08e-4
    complete = u.complete_flops(anatomy, tokens=[1], requests=[1], attention_pairs=[[1000]])
    assert s_mfu(100, sum(complete.values())[0], FLOPS) == pytest.approx(6.94e-4, rel=0.005)
    one_expert = anatomy.kinds[0].expert_params * 48 * 2
    router = anatomy.kinds[0].router_params * 48 * 2
    assert s_mfu(100, u.printed_sparse_flops_per_token(anatomy) - 7 * one_expert - router, FLOPS) < printed / 1.7


def decode_at(anatomy, batch, context, wall_s):
    """One decode step of ``batch`` requests with ``context`` tokens each, their prompts from the prefix cache."""
    rows = [
        {
            "request": list(range(batch)),
            "first_position": [context - 1] * batch,
            "tokens": [1] * batch,
            "cached_tokens": [context - 1] * batch,
            "wall_s": wall_s,
        }
    ]
    routing = spread_routing(anatomy, {f"seq-{i}": context for i in range(batch)})
    return measure(anatomy, rows, [context - 1] * batch, routing)


def test_d2_attention_flops_are_not_multiplied_by_the_batch():
    anatomy = qwen3_30b()
    row = decode_at(anatomy, 64, 4096, 0.020)
    scores = u.complete_flops(anatomy, tokens=[64], requests=[64], attention_pairs=[[64 * 4096]])["attention_scores"][0]
    assert scores / 0.020 / FLOPS == pytest.approx(0.0104, rel=0.01)  # theirs: 0.667, 64 times as much
    assert row["decode_s_mfu_complete"] == pytest.approx(0.030, abs=0.0005)  # theirs: 0.674


def test_d3_prefill_attention_is_causal():
    anatomy = qwen3_30b()
    pairs = sum(attention_pairs(anatomy.kinds[0].caches[0], start, 2048) for start in range(0, 16384, 2048))
    flops = u.complete_flops(anatomy, tokens=[16384], requests=[1], attention_pairs=[[pairs]])["attention_scores"][0]
    assert flops / 0.4 / FLOPS == pytest.approx(0.267, rel=0.005)  # theirs: 0.533


def test_d4_decode_reads_the_whole_context_not_the_scheduled_tokens():
    row = decode_at(qwen3_30b(), 64, 4096, 0.020)
    assert row["decode_kv_bytes"] / 0.020 / BANDWIDTH == pytest.approx(1.223 - 0.838, abs=0.001)


def test_d5_chunked_prefill_reads_the_weights_in_every_chunk():
    anatomy = qwen3_30b()
    chunk = 2048
    rows = [
        {"request": [0], "first_position": [i * chunk], "tokens": [chunk], "wall_s": 0.05} for i in range(8)
    ]  # fmt: skip
    row = measure(anatomy, rows, [16384], spread_routing(anatomy, {"seq-0": 16384}))
    weights = row["prefill_s_mbu_bytes"] - row["prefill_kv_bytes"]
    assert s_mbu(weights, 0, row["prefill_step_s"], BANDWIDTH) == pytest.approx(0.357, abs=0.001)  # theirs: 0.046
    assert row["prefill_steps"] == 8


def test_d6_batched_prefill_counts_the_tokens_of_all_requests():
    anatomy = small()
    rows = [{"request": list(range(8)), "first_position": [0] * 8, "tokens": [512] * 8, "wall_s": 0.05}]
    routing = spread_routing(anatomy, {f"seq-{i}": 512 for i in range(8)})
    row = measure(anatomy, rows, [512] * 8, routing)
    assert row["prefill_tokens_per_s"] == pytest.approx(81_920)  # theirs: 10,240


@pytest.mark.parametrize("dense_peak", [2250e12, 1307e12, 2500e12, 383e12])  # B200, MI300X, MI355X, MI250X
def test_d7_a_dense_peak_is_taken_as_it_is(dense_peak):
    peaks = peaks_of({}, "bf16", catalogue={"bytes_per_s": 1e12, "flops": {"bf16": dense_peak}})
    assert peaks.flops == dense_peak  # theirs: half of it


def test_d9_weight_only_quantization_computes_in_bf16():
    table = {"bf16": 312e12, "int8": 624e12, "int4": 1248e12}
    peaks = peaks_of({}, "bf16", catalogue={"bytes_per_s": 2e12, "flops": table})
    assert peaks.flops == 312e12  # theirs: 1248e12 for GPTQ and AWQ on an A100


def test_d10_an_unknown_peak_leaves_the_rest_standing(caplog):
    anatomy, rng = small(), np.random.default_rng(0)
    run = make_run(anatomy, rng)
    with caplog.at_level(logging.WARNING):
        peaks = peaks_of({"read_bandwidth_bytes_per_s": 1e9, "peak_flops": {"bf16": 1e12}}, "gptq")
    assert "No peak FLOP/s is known for compute type 'gptq'" in caplog.text
    steps = step_table(run.schedule, run.requests, run.routing, anatomy)
    row = metrics_table(run.points, run.requests, steps, anatomy, peaks, draws=10).to_pylist()[0]
    assert row["decode_mfu"] is None and row["s_mfu"] is None
    assert row["decode_s_mbu"] > 0 and row["tpot_s"] > 0


def test_d11_kv_has_its_own_dtype():
    anatomy = deepseek_v3(weight_bytes=1)  # fp8 weights, bf16 KV
    assert u.printed_kv_bytes(anatomy, [1, 1]) == 70_272  # theirs: 35,136


@pytest.mark.parametrize(
    ("layout", "bits", "kind", "name"),
    [("int-quantized", 8, "int", "int8"), ("nvfp4-pack-quantized", 4, "float", "nvfp4"),
     ("mxfp4-pack-quantized", 4, "float", "mxfp4"), ("float-quantized", 8, "float", "fp8")],
)  # fmt: skip
def test_d12_a_compressed_checkpoint_is_called_by_what_it_stores(layout, bits, kind, name):
    weights = {"num_bits": bits, "type": kind, "strategy": "channel"}
    config = {"quant_method": "compressed-tensors", "config_groups": {"g": {"format": layout, "weights": weights}}}
    assert recipe_from_quantization_config(config).name == name  # theirs: int8 is fp8, nvfp4 is mxfp4


def test_d14_a_models_name_does_not_matter():
    pytest.importorskip("transformers")
    from moecap.model.counted import anatomy as count

    # No word of "DeepSeek" in its name, but its attention: 61 × (512 + 64). Theirs: 874,496.
    assert count("kimi-k2").kv_elements_per_token == 35_136
    assert count("kimi-k2").components["shared_experts"].params == 60 * 3 * 7168 * 2048
    # "Qwen3" in its name, but most layers are linear, and experts are shared too.
    linear = count("qwen3-next-80b-a3b")
    assert linear.kv_elements_per_token == 12 * 2 * 2 * 256 and linear.components["shared_experts"].params > 0
    # Windows are the model's own, not a family's.
    assert [kind.kv_window for kind in count("gpt-oss-20b").kinds] == [128, None]


def test_d13_one_shared_expert_is_one():
    anatomy = deepseek_v3()
    dense, moe = anatomy.kinds
    expert = 44_040_192
    by_hand = 61 * moe.attention_params + 58 * (moe.router_params + (8 + 1) * expert) + 3 * dense.dense_mlp_params
    assert u.printed_sparse_flops_per_token(anatomy) == 2 * by_hand  # theirs: 2.55 B parameters more
    used = np.full((1, 58), 8)
    read = u.complete_bytes(anatomy, tokens=[1], requests=[1], context_tokens=[[1, 1]], unique_experts=used)
    assert read["shared_experts"][0] == 58 * expert


def test_d15_dense_layers_are_not_averaged_in():
    anatomy = deepseek_v3()
    run = make_run(anatomy, np.random.default_rng(0), batch_sizes=(1,), prompt=(1, 2), output=3)
    steps = step_table(run.schedule, run.requests, run.routing, anatomy)
    assert steps["unique_experts"].to_pylist() == [[8] * 58] * 3
    assert u.expert_bytes_read(anatomy, np.full(58, 8)) == 58 * 8 * 44_040_192  # theirs: 4.9% less
    row = metrics_table(run.points, run.requests, steps, anatomy, PEAKS, draws=10).to_pylist()[0]
    assert row["unique_experts"] == 8 and (row["layers"], row["moe_layers"]) == (61, 58)


def test_d16_head_router_and_norms_are_read():
    anatomy = qwen3_30b()
    eight = np.full((1, 48), 8)
    printed = u.printed_activated_bytes(anatomy, eight)[0]
    kv = u.printed_kv_bytes(anatomy, [[1000]])[0]
    assert s_mbu(printed, kv, 0.010, BANDWIDTH) == pytest.approx(0.1652, abs=0.0002)
    read = u.complete_bytes(anatomy, tokens=[1], requests=[1], context_tokens=[[1000]], unique_experts=eight)
    activations = read.pop("activations")[0]
    counted = sum(read.values())[0]
    assert s_mbu(counted, 0, 0.010, BANDWIDTH) == pytest.approx(0.1845, abs=0.0001)
    assert activations < 0.002 * counted


def test_d17_only_the_tokens_own_experts_count():
    anatomy = deepseek_v3()
    run = make_run(anatomy, np.random.default_rng(1), batch_sizes=(1,), prompt=(1, 2), output=4)
    steps = step_table(run.schedule, run.requests, run.routing, anatomy)
    assert np.array(steps["unique_experts"].to_pylist()).max() == 8  # theirs: 8 to 17 at batch 1


def test_d18_more_than_60_experts_are_told_apart():
    anatomy = small(experts=128, top_k=4, moe_layers=2, dense_layers=0)
    routing = spread_routing(anatomy, {"seq-0": 32})
    steps = step_table(
        schedule_of([{"request": [0], "first_position": [0], "tokens": [32]}]), requests_of([32]), routing, anatomy
    )
    assert steps["unique_experts"].to_pylist() == [[128, 128]]  # theirs: at most 60


def test_d19_mixed_steps_are_split_and_said():
    """A step of 90 prompt and 10 decode tokens: decode has a tenth of its time and bytes, not all of both."""
    anatomy = small(moe_layers=1, dense_layers=0)
    routing = spread_routing(anatomy, {f"seq-{i}": 200 for i in range(11)})
    rows = [
        {"request": list(range(10)), "first_position": [0] * 10, "tokens": [5] * 10, "wall_s": 0.01},
        {
            "request": list(range(11)),
            "first_position": [5] * 10 + [0],
            "tokens": [1] * 10 + [90],
            "wall_s": 0.10,
        },
        {"request": list(range(10)), "first_position": [6] * 10, "tokens": [1] * 10, "wall_s": 0.01},
    ]
    row = measure(anatomy, rows, [5] * 10 + [90], routing)
    assert row["mixed_steps"] == 1 and row["mixed_step_share"] == pytest.approx(1 / 3)
    assert row["decode_tokens_per_s"] == pytest.approx(20 / (0.010 + 0.010))
    assert row["prefill_tokens_per_s"] == pytest.approx(140 / (0.010 + 0.090))


def test_d20_ttft_has_queueing_and_tpot_is_of_requests():
    anatomy = small()
    run = make_run(anatomy, np.random.default_rng(0), batch_sizes=(6,), prompt=(8, 12), chunk=8, output=6)
    steps = step_table(run.schedule, run.requests, run.routing, anatomy)
    row = metrics_table(run.points, run.requests, steps, anatomy, PEAKS, draws=10).to_pylist()[0]
    requests = run.requests.to_pylist()
    assert row["ttft_s"] == pytest.approx(np.mean([r["first_token_s"] for r in requests]))
    assert row["tpot_s"] == pytest.approx(np.mean([(r["finished_s"] - r["first_token_s"]) / 5 for r in requests]))
    assert row["ttft_s"] > 2 * row["prefill_step_s"]  # the last request waited for the others' prompts
    assert abs(row["tpot_s"] / np.mean(steps["wall_s"].to_numpy()) - 1) > 0.01


def test_d23_bytes_over_time_not_the_mean_of_ratios():
    anatomy = small(moe_layers=1, dense_layers=0)
    routing = spread_routing(anatomy, {"seq-0": 20})
    rows = [
        {"request": [0], "first_position": [0], "tokens": [4]},
        {"request": [0], "first_position": [4], "tokens": [1], "wall_s": 0.001},
        {"request": [0], "first_position": [5], "tokens": [1], "wall_s": 0.009},
    ]
    rows[0]["wall_s"] = 0.005
    row = measure(anatomy, rows, [4], routing)
    mean_bytes = row["decode_s_mbu_bytes"]
    assert row["decode_s_mbu"] == pytest.approx(mean_bytes / 0.005 / BANDWIDTH, rel=1e-6)
    mean_of_ratios = mean_bytes / BANDWIDTH * (1 / 0.001 + 1 / 0.009) / 2
    assert mean_of_ratios > 2.5 * row["decode_s_mbu"]


def test_d24_no_record_is_null_never_zero():
    anatomy = small()
    run = make_run(anatomy, np.random.default_rng(0))
    row = metrics_table(run.points, run.requests, [], anatomy, PEAKS, draws=10).to_pylist()[0]
    assert row["decode_s_mbu"] is None and row["unique_experts"] is None and row["steps"] is None
    assert row["output_tokens_per_s"] > 0


def test_d30_replicated_kv_is_counted_once_per_copy():
    """Four KV heads over eight devices: every KV byte is held, and read, twice."""
    anatomy = anatomy_of([{"count": 2, "attention_params": 100, "kv_elements_per_token": 8, "dense_mlp_params": 50}])
    run = make_run(anatomy, np.random.default_rng(0))
    steps = step_table(run.schedule, run.requests, None, anatomy)
    (once,), (twice,) = (step_amounts(steps, anatomy, r).values() for r in ({}, {"kv": 2.0}))
    kv = once.components["decode"]["kv"]
    assert kv > 0 and twice.components["decode"]["kv"] == 2 * kv
    index = AMOUNTS.index("s_mbu_complete")
    assert (twice.phases["decode"] - once.phases["decode"])[:, index].sum() == pytest.approx(kv)


def test_d30_copies_follow_from_the_heads():
    anatomy = qwen3_30b()  # 4 KV heads
    assert replication_of(anatomy, 4)["kv"] == 1
    copies = replication_of(anatomy, 8)
    assert copies["kv"] == 2 and copies["router"] == 8 and copies["attention"] < 8
    assert "routed_experts" not in copies
    assert replication_of(deepseek_v3(), 8)["kv"] == 8  # a compressed KV lies on every rank
    assert replication_of(anatomy) == {}
