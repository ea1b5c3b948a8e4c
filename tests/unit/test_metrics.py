"""The metrics table: recomputed by hand from the step table, intervals, nulls, flags."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow as pa
import pytest

from moecap.errors import MoecapError
from moecap.metrics import amounts
from moecap.metrics.intervals import block_length, bootstrap_sums, with_interval
from moecap.metrics.peaks import Peaks, peaks_of
from moecap.metrics.steps import read_steps, step_batches, step_table, write_steps
from moecap.metrics.table import METRICS_SCHEMA, metrics_table

from .systems import make_run, small

PEAKS = Peaks(1e9, 1e11)


@pytest.fixture(scope="module")
def anatomy():
    return small(16, 2, window=4)


@pytest.fixture(scope="module")
def run(anatomy):
    return make_run(anatomy, np.random.default_rng(0), batch_sizes=(1, 4), repeats=3, output=24, chunk=9, preempt=0.02)


@pytest.fixture(scope="module")
def steps(run, anatomy):
    return step_table(run.schedule, run.requests, run.routing, anatomy)


@pytest.fixture(scope="module")
def rows(run, steps, anatomy):
    table = metrics_table(run.points, run.requests, steps, anatomy, PEAKS, deployment="toy")
    assert table.schema.equals(METRICS_SCHEMA)
    return {row["batch_size"]: row for row in table.to_pylist()}


def test_utilizations_recomputed_from_the_step_table(rows, steps, anatomy):
    """By loops over the step table, with the sizes written out: no function of the library's is used."""
    moe = [anatomy.layer_kinds[i] for i in anatomy.moe_layers]
    always = sum(k.attention_bytes + k.shared_bytes + k.dense_mlp_bytes for k in anatomy.layer_kinds)
    for batch, row in rows.items():
        sums = {"decode": np.zeros(5), "prefill": np.zeros(5)}
        for step in steps.to_pylist():
            if step["batch_size"] != batch:
                continue
            tokens = step["prefill_tokens"] + step["decode_tokens"]
            read = zip(step["context_tokens"], anatomy.kinds, strict=True)
            kv = sum(c * k.count * k.kv_bytes_per_token for c, k in read)
            routed = sum(n * k.expert_bytes for n, k in zip(step["unique_experts"], moe, strict=True))
            model = always + sum(k.experts * k.expert_bytes for k in moe)
            for phase in sums:
                share = step[f"{phase}_tokens"] / tokens
                sums[phase] += share * np.array([step["wall_s"], model + kv, always + routed + kv, tokens, 1])
        for phase, (time_s, dense, sparse, tokens, count) in sums.items():
            assert row[f"{phase}_mbu"] == pytest.approx(dense / time_s / 1e9)
            assert row[f"{phase}_s_mbu"] == pytest.approx(sparse / time_s / 1e9)
            assert row[f"{phase}_mfu"] == pytest.approx(tokens / time_s * 2 * anatomy.total_params / 1e11)
            assert row[f"{phase}_s_mbu_bytes"] == pytest.approx(sparse / count)
        assert row["mbu_over_s_mbu"] == pytest.approx(row["decode_mbu"] / row["decode_s_mbu"])


def test_rates_and_latencies(rows, run):
    points = [p for p in run.points.to_pylist() if p["batch_size"] == 4]
    requests = [r for r in run.requests.to_pylist() if r["batch_size"] == 4]
    row = rows[4]
    wall = sum(p["wall_s"] for p in points)
    assert row["output_tokens_per_s"] == pytest.approx(3 * 4 * 24 / wall)
    assert row["total_tokens_per_s"] == pytest.approx((3 * 4 * 24 + sum(p["prompt_tokens"] for p in points)) / wall)
    assert row["ttft_s"] == pytest.approx(np.mean([r["first_token_s"] - r["arrival_s"] for r in requests]))
    assert row["tpot_s"] == pytest.approx(np.mean([(r["finished_s"] - r["first_token_s"]) / 23 for r in requests]))
    gaps = np.concatenate([np.diff(r["token_times_s"]) for r in requests])
    assert row["itl_s"] == pytest.approx(gaps.mean())
    assert row["itl_p99_s"] == pytest.approx(np.percentile(gaps, 99))
    assert row["itl_s_p99"] == row["itl_p99_s"] and row["itl_s_p50"] < row["itl_s_p90"] < row["itl_s_p99"]
    whole = [r["finished_s"] - r["arrival_s"] for r in requests]
    assert row["e2e_s"] == pytest.approx(np.mean(whole)) and row["e2e_s_p90"] == pytest.approx(np.percentile(whole, 90))
    assert row["schedule"] is None  # these points do not say
    assert row["repeats"] == 3 and row["requests"] == 12
    assert row["step_time_share"] == pytest.approx(1.0)
    assert row["deployment"] == "toy" and row["status"] == "measured"


def test_every_figure_lies_in_its_interval(rows):
    for row in rows.values():
        named = [n.removesuffix("_low") for n in row if n.endswith("_low") and row[n] is not None]
        assert len(named) > 20
        for name in named:
            assert 0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"], name


def test_intervals_of_many_steps_are_tight_around_the_figure(rows):
    """Step times vary by ±50%, over some 250 steps: the intervals are of a few per cent, on both sides."""
    for row in rows.values():
        for name in (*amounts.BYTES, *amounts.FLOPS):
            value = row[f"decode_{name}"]
            assert 0.8 * value < row[f"decode_{name}_low"] < value < row[f"decode_{name}_high"] < 1.25 * value


def test_sparse_below_dense(rows):
    for row in rows.values():
        for phase in ("decode", "prefill"):
            for suffix in ("", "_complete"):
                assert row[f"{phase}_s_mbu{suffix}"] <= row[f"{phase}_mbu{suffix}"]
                assert row[f"{phase}_s_mfu{suffix}"] <= row[f"{phase}_mfu{suffix}"]
            assert row[f"{phase}_s_mbu"] < row[f"{phase}_s_mbu_complete"]
            assert row[f"{phase}_mbu"] < row[f"{phase}_mbu_complete"]
        assert row["mbu_over_s_mbu"] >= 1


def test_components_add_up(rows):
    for row in rows.values():
        parts = {c["component"]: c["bytes"] for c in row["decode_component_bytes"]}
        assert sum(parts.values()) == pytest.approx(row["decode_s_mbu_complete_bytes"])
        assert parts["kv"] == pytest.approx(row["decode_kv_bytes"])


def test_same_seed_same_table_any_order(run, steps, anatomy):
    def table(points, requests, parts, seed=0):
        return metrics_table(points, requests, parts, anatomy, PEAKS, seed=seed, draws=50)

    rng = np.random.default_rng(1)
    shuffled = [t.take(pa.array(rng.permutation(t.num_rows))) for t in (run.points, run.requests, steps)]
    first = table(run.points, run.requests, steps)
    for a, b in zip(first.to_pylist(), table(*shuffled).to_pylist(), strict=True):
        for name in ("decode_s_mbu", "decode_s_mbu_low", "output_tokens_per_s", "ttft_s", "prefill_mfu_complete"):
            assert a[name] == pytest.approx(b[name]), name
    assert first.equals(table(run.points, run.requests, steps))
    assert not first.equals(table(run.points, run.requests, steps, seed=1))


def test_reading_in_parts_gives_the_same(run, steps, anatomy, tmp_path):
    path = tmp_path / "steps.parquet"
    write_steps(step_batches(run.schedule, run.requests, run.routing, anatomy), path)
    parts = list(read_steps(path))
    assert len(parts) == 6
    a = metrics_table(run.points, run.requests, iter(parts), anatomy, PEAKS, draws=20)
    assert a.equals(metrics_table(run.points, run.requests, steps, anatomy, PEAKS, draws=20))


def test_chunks_do_not_matter(run, steps, anatomy, monkeypatch):
    whole = metrics_table(run.points, run.requests, steps, anatomy, PEAKS, draws=20).to_pylist()
    monkeypatch.setattr(amounts, "CHUNK", 7)
    chunked = metrics_table(run.points, run.requests, steps, anatomy, PEAKS, draws=20).to_pylist()
    for a, b in zip(whole, chunked, strict=True):
        for name, value in a.items():
            if isinstance(value, float):
                assert b[name] == pytest.approx(value), name


def test_above_one_is_flagged(run, steps, anatomy, caplog):
    with caplog.at_level(logging.WARNING):
        row = metrics_table(run.points, run.requests, steps, anatomy, Peaks(1e5, 1e15), draws=10).to_pylist()[0]
    assert row["decode_s_mbu"] > 1 and row["utilization_above_one"]
    assert "decode_s_mbu" in row["utilizations_above_one"] and "decode_mfu" not in row["utilizations_above_one"]
    assert "above 1" in caplog.text
    calm = metrics_table(run.points, run.requests, steps, anatomy, Peaks(1e15, 1e18), draws=10).to_pylist()[0]
    assert calm["utilization_above_one"] is False and calm["utilizations_above_one"] == []


def test_one_token_of_output_has_no_decode(anatomy):
    run = make_run(anatomy, np.random.default_rng(0), output=1)
    steps = step_table(run.schedule, run.requests, run.routing, anatomy)
    row = metrics_table(run.points, run.requests, steps, anatomy, PEAKS, draws=10).to_pylist()[0]
    assert row["decode_s_mbu"] is None and row["tpot_s"] is None and row["itl_s"] is None
    assert row["prefill_s_mbu"] > 0 and row["ttft_s"] > 0
    assert row["decode_steps"] == 0


def test_a_single_repeat_has_no_interval_of_rates(anatomy):
    run = make_run(anatomy, np.random.default_rng(0))
    steps = step_table(run.schedule, run.requests, run.routing, anatomy)
    row = metrics_table(run.points, run.requests, steps, anatomy, PEAKS, draws=10).to_pylist()[0]
    assert row["output_tokens_per_s"] > 0 and row["output_tokens_per_s_low"] is None


def test_energy_only_where_measured(run, steps, anatomy):
    rows = run.points.to_pylist()
    for row in rows:
        row.update(energy_j=50.0 * row["wall_s"], energy_source="nvml")
    table = metrics_table(pa.Table.from_pylist(rows), run.requests, steps, anatomy, PEAKS, draws=10)
    row = table.to_pylist()[1]
    assert row["power_w"] == pytest.approx(50.0) and row["energy_source"] == "nvml"
    assert row["joules_per_token"] == pytest.approx(row["energy_j"] / row["generated_tokens"])
    rows[0]["energy_j"] = None
    row = metrics_table(pa.Table.from_pylist(rows), run.requests, steps, anatomy, PEAKS, draws=10).to_pylist()[0]
    assert row["energy_j"] is None and row["joules_per_token"] is None


def test_tiers(run, steps, anatomy):
    peaks = Peaks(1e9, 1e11, tiers={"hbm": 1e9, "pcie": 1e8, "dram": 2e8})
    placement = {"routed_experts": {"dram": 1.0}}
    row = metrics_table(run.points, run.requests, steps, anatomy, peaks, placement=placement, draws=10).to_pylist()[0]
    tiers = {t["tier"]: t for t in row["decode_tiers"]}
    routed = next(c["bytes"] for c in row["decode_component_bytes"] if c["component"] == "routed_experts")
    assert tiers["dram"]["bytes"] == tiers["pcie"]["bytes"] == pytest.approx(routed)
    assert tiers["pcie"]["utilization"] == pytest.approx(routed / row["decode_step_s"] / 1e8)
    assert tiers["hbm"]["bytes"] + routed == pytest.approx(row["decode_s_mbu_complete_bytes"])


def test_moved_whole_whatever_is_needed(run, steps, anatomy):
    """An engine that fetches all experts of a layer moves them all; a CPU's own memory is the device's."""
    rows = run.points.to_pylist()
    for row in rows:
        row["weights_by_tier"] = json.dumps({"device": 10, "ssd": 32})
        row["moved_per_step"] = json.dumps({"checkpoint": 2, "offload folder": 30})
    points, placement = pa.Table.from_pylist(rows), {"routed_experts": {"ssd": 1.0}}
    for device, names in (("hbm", {"hbm", "pcie", "dram", "ssd"}), ("dram", {"dram", "ssd"})):
        peaks = Peaks(1e9, 1e11, tiers={"ssd": 1e3, "dram": 1e9}, device=device)
        table = metrics_table(points, run.requests, steps, anatomy, peaks, placement=placement, draws=10)
        row = table.to_pylist()[0]
        tiers = {t["tier"]: t for t in row["decode_tiers"]}
        assert set(tiers) == names and tiers["ssd"]["bytes"] == row["moved_bytes_per_step"] == 32
        assert tiers["ssd"]["utilization"] == pytest.approx(32 / row["decode_step_s"] / 1e3)
        assert (row["device_weight_bytes"], row["offloaded_weight_bytes"]) == (10, 32)
    assert tiers["dram"]["bytes"] == pytest.approx(row["decode_s_mbu_complete_bytes"] + 32)
    rows[0]["moved_per_step"] = None
    with pytest.raises(MoecapError, match="differs between the repeats"):
        metrics_table(pa.Table.from_pylist(rows), run.requests, steps, anatomy, peaks, draws=10)


def test_bad_tables(run, steps, anatomy):
    with pytest.raises(MoecapError, match="not in the table of points"):
        metrics_table(run.points.slice(1), run.requests, steps, anatomy, PEAKS)
    with pytest.raises(MoecapError, match="has 2 rows"):
        metrics_table(pa.concat_tables([run.points] * 2), run.requests, steps, anatomy, PEAKS)
    with pytest.raises(MoecapError, match="come in two parts"):
        metrics_table(run.points, run.requests, [steps, steps], anatomy, PEAKS)
    with pytest.raises(MoecapError, match="belongs to another model"):
        metrics_table(run.points, run.requests, steps, small(16, 2, moe_layers=2, window=4), PEAKS)
    for wall in (0.0, -1.0):
        rows = run.points.to_pylist()
        rows[0]["wall_s"] = wall
        with pytest.raises(MoecapError, match="wall_s is"):
            metrics_table(pa.Table.from_pylist(rows), run.requests, steps, anatomy, PEAKS)
    index = steps.schema.get_field_index("wall_s")
    frozen = steps.set_column(index, steps.schema.field(index), pa.array(np.zeros(steps.num_rows)))
    with pytest.raises(MoecapError, match="both must be positive"):
        metrics_table(run.points, run.requests, frozen, anatomy, PEAKS)
    late = run.requests.to_pylist()
    late[0]["arrival_s"] = 100.0
    with pytest.raises(MoecapError, match="out of order"):
        metrics_table(run.points, pa.Table.from_pylist(late, schema=run.requests.schema), steps, anatomy, PEAKS)


# ---------------------------------------------------------------- peaks


def test_peaks_of_machine_and_catalogue():
    machine = {"hardware": "this", "read_bandwidth_bytes_per_s": 2e10, "peak_flops": {"bf16": 1e12, "int8": None}}
    peaks = peaks_of(machine, "bf16")
    assert (peaks.bytes_per_s, peaks.flops, peaks.source) == (2e10, 1e12, "measured")
    assert peaks_of(machine, "int8").flops is None
    sheet = {"bytes_per_s": 2e12, "flops": {"bf16": 312e12}}
    peaks = peaks_of(machine, "bf16", devices=4, catalogue=sheet)
    assert (peaks.bytes_per_s, peaks.flops, peaks.source) == (8e12, 4 * 312e12, "catalogue")
    assert peaks_of(machine, "bf16", catalogue={**sheet, "status": "unverified"}).source == "catalogue (unverified)"
    with pytest.raises(MoecapError, match="bandwidth of the hardware is None"):
        peaks_of({}, "bf16")


# ---------------------------------------------------------------- bootstrap


def test_bootstrap_of_constant_rows_is_exact():
    rows = np.ones((37, 2)) * [2.0, 4.0]
    drawn = bootstrap_sums([rows, rows], np.random.default_rng(0), 50)
    assert drawn == pytest.approx(np.full((50, 2), [37 * 2 * 2.0, 37 * 2 * 4.0]))


def test_bootstrap_covers_the_truth_for_autocorrelated_steps():
    """Steps that follow one another like AR(1): the 95% interval of their mean holds the truth about as often."""
    rng = np.random.default_rng(0)
    inside = {"blocks": 0, "single": 0}
    trials, n = 150, 400
    for _ in range(trials):
        noise = rng.standard_normal(n)
        series = np.empty(n)
        series[0] = noise[0]
        for t in range(1, n):
            series[t] = 0.7 * series[t - 1] + noise[t]
        rows = np.stack([10 + series, np.ones(n)], axis=1)
        for name, block in (("blocks", block_length), ("single", lambda n: 1)):
            drawn = bootstrap_sums([rows], rng, 300, block)
            low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
            inside[name] += low <= 10 <= high
    assert inside["blocks"] / trials > 0.85
    assert inside["single"] / trials < 0.70  # what ignoring the autocorrelation would give


def test_intervals_widen_with_the_spread_of_repeats():
    rng = np.random.default_rng(0)
    alike = [np.stack([rng.normal(10, 0.1, 50), np.ones(50)], axis=1) for _ in range(3)]
    apart = [a * [scale, 1.0] for a, scale in zip(alike, (0.8, 1.0, 1.2), strict=True)]

    def width(runs):
        drawn = bootstrap_sums(runs, np.random.default_rng(1), 500)
        found = with_interval("x", 10.0, drawn[:, 0] / drawn[:, 1], 3)
        return found["x_high"] - found["x_low"]

    assert width(apart) > 10 * width(alike)


def test_a_few_repeats_understate_how_much_repeats_vary():
    """Resampling R repeats gives (R-1)/R of their variance: the interval is widened by as much."""
    drawn = np.linspace(0.9, 1.1, 1001)
    narrow, wide = (with_interval("x", 1.0, drawn, repeats) for repeats in (1, 2))
    assert wide["x_high"] - 1 == pytest.approx(np.sqrt(2) * (narrow["x_high"] - 1))
    assert 1 - wide["x_low"] == pytest.approx(np.sqrt(2) * (1 - narrow["x_low"]))


def test_what_others_did_is_the_worst_of_the_repeats_and_null_where_nobody_looked():
    from moecap.metrics.table import _others

    looked = {"disturbed": True, "external_cpu_share": 0.3, "cpu_steal_share": 0.0, "other_gpu_processes": None}
    quiet = {"disturbed": False, "external_cpu_share": 0.01, "cpu_steal_share": 0.02, "other_gpu_processes": None}
    assert _others([quiet, looked, {}]) == {
        "disturbed_repeats": 1,
        "external_cpu_share": 0.3,
        "cpu_steal_share": 0.02,
        "other_gpu_processes": None,
    }
    assert set(_others([{}]).values()) == {None}
