"""Backtest, audit and import, on rows that we made: what made them is known, so are the errors."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap import cli
from moecap.hardware import catalogue as hardware_catalogue
from moecap.hardware.catalogue import Hardware
from moecap.plan import backtest
from moecap.plan.audit import audit, consistency
from moecap.plan.cases import Case, case_of, cases_of
from moecap.plan.energy import device_power_w, energy_report
from moecap.plan.kernels import kernel_report, kernels_of
from moecap.plan.offload import offload_report, step_bound_s
from moecap.plan.points import KernelPoint, OffloadPoint, Point
from moecap.plan.pooling import Own, posterior
from moecap.plan.prior import prior_of
from moecap.plan.target import Workload
from moecap.plan.terms import Parallel
from tests.unit.systems import qwen3_30b

GPUS = ("h100_sxm", "h200_sxm", "b200_sxm")
MODELS = ("mixtral-8x7b", "Qwen/Qwen3-30B-A3B", "openai/gpt-oss-20b")


@pytest.fixture(scope="module")
def catalogue() -> Hardware:
    return hardware_catalogue.load()


def _point(model: str, gpu: str, requests: float, devices: int = 2, **more: object) -> Point:
    return Point(
        source=f"made#{model}-{gpu}-{requests}",
        format="made",
        model=model,
        hardware=gpu,
        engine="vllm",
        engine_version="0.19.0",
        precision="bf16",
        devices=devices,
        tp=devices,
        dp=1,
        ep=1,
        concurrency=requests,
        prompt_tokens=1024,
        output_tokens=512,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def made(catalogue: Hardware) -> list[Case]:
    """Cases whose TPOT is the prior's own, off by a factor of a few percent."""
    rng = np.random.default_rng(0)
    cases, rest = cases_of([_point(m, g, n) for m in MODELS for g in GPUS for n in (1.0, 8.0, 64.0)], catalogue)
    assert not rest
    found = []
    for case in cases:
        own = prior_of("vllm").coefficients
        tpot = float(own.tpot_s(case.terms, case.workload)[0]) * float(np.exp(rng.normal(0, 0.03)))
        ttft = float(own.ttft_s(case.terms, case.workload)[0])
        found.append(replace(case, point=replace(case.point, tpot_s=tpot, ttft_s=ttft)))
    return found


def test_errors_of_rows_that_the_prior_made_are_their_noise(made: list[Case], catalogue: Hardware) -> None:
    found = backtest.report(made, [(None, "model 'x' is not in the catalogue")] * 2, catalogue)
    assert found["points"] == 27 and found["mape"] < 0.05 and abs(found["bias"]) < 0.05
    assert found["rank_correlation"] > 0.98 and found["coverage"] > 0.9 and found["bound_violations"] == 0
    assert found["unpredicted"] == {"model 'x' is not in the catalogue": 2}
    assert {(g["model"], g["hardware"]) for g in found["groups"]} == {(c.model, c.hardware) for c in made}
    assert sum(g["points"] for g in found["groups"]) == sum(g["points"] for g in found["concurrency"]) == 27
    assert found["ttft"]["points"] == 27 and found["ttft"]["mape"] < 0.01
    for kind in ("gpu", "model", "both"):
        assert found["holdout"][kind]["points"] == 27 and found["holdout"][kind]["mape"] < 0.5
    json.dumps(found, allow_nan=False)


def test_a_holdout_never_learns_from_what_it_predicts(made: list[Case]) -> None:
    for kind in backtest.HOLDOUTS:
        predicted = np.zeros(len(made), int)
        for train, test in backtest.folds(made, kind):
            learnt = [c for c, t in zip(made, train, strict=True) if t]
            for case in (c for c, t in zip(made, test, strict=True) if t):
                if kind in ("gpu", "both"):
                    assert case.hardware not in {c.hardware for c in learnt}
                if kind in ("model", "both"):
                    assert case.model not in {c.model for c in learnt}
            predicted += test
        assert (predicted == 1).all()


def test_one_gpu_and_one_model_have_no_holdout(made: list[Case], catalogue: Hardware) -> None:
    own = [c for c in made if c.hardware == made[0].hardware and c.model == made[0].model]
    found = backtest.report(own, [], catalogue)
    assert found["points"] == 3 and found["holdout"] == {"gpu": None, "model": None, "both": None}


@given(st.lists(st.floats(0.2, 5.0), min_size=20, max_size=60))
@settings(max_examples=40)
def test_an_interval_holds_what_it_says_of_what_made_it(ratios: list[float]) -> None:
    values = np.array(ratios)
    low, high = backtest.quantiles(values, np.ones(len(values)))
    inside = ((values >= low * (1 - 1e-9)) & (values <= high * (1 + 1e-9))).mean()
    assert inside >= backtest.COVER - 1e-9 and low <= 1 <= high


def test_audit_tells_what_is_impossible_inconsistent_and_suspect(made: list[Case], catalogue: Hardware) -> None:
    assert audit(made, catalogue) == []
    fast = replace(made[2], point=replace(made[2].point, tpot_s=float(made[2].terms.roofline_s[0]) / 3))
    (finding,) = [f for f in audit([fast], catalogue) if f.kind == "impossible"]
    assert "below" in finding.problem and "speculation" in finding.explanation
    queued = replace(fast, point=replace(fast.point, ttft_s=1000.0, tpot_s=float(fast.terms.roofline_s[0]) * 0.9))
    assert any("requests ran together" in f.explanation for f in audit([queued], catalogue))
    small = case_of(_point("mixtral-8x7b", "rtx_4090", 1.0, devices=1, tpot_s=0.1), catalogue)
    assert any("the weights alone take" in f.problem for f in audit([small], catalogue))


def test_a_time_per_token_that_its_own_latencies_deny() -> None:
    point = _point("mixtral-8x7b", "h100", 8.0, tpot_s=0.0093, ttft_s=0.2, e2e_s=0.2 + 511 * 0.0184)
    (finding,) = consistency(point)
    assert "9.3 ms printed, 18.4 from its own latencies" in finding.problem.replace(" ms from", " from")
    assert consistency(replace(point, tpot_s=0.0184)) == []
    (finding,) = consistency(replace(point, tpot_s=0.0184, output_tokens_per_s=8 / 0.0184 * 2))
    assert "tokens counted twice" in finding.explanation
    assert len(consistency(replace(point, tpot_s=0.0184, power_w=700.0, joules_per_token=9.0,
                                   output_tokens_per_s=400.0))) == 1  # fmt: skip


def test_a_sweep_that_is_faster_under_another_name_of_its_model_is_suspect(catalogue: Hardware) -> None:
    slow = [_point("deepseek-ai/DeepSeek-V3", "b200", n, 8, tpot_s=0.02) for n in (4.0, 16.0)]
    fast = [replace(p, model="deepseek-ai/DeepSeek-R1", tpot_s=0.011) for p in slow]
    points = [replace(p, precision="fp8") for p in (*slow, *fast)]
    cases = [case_of(p, catalogue) for p in points]
    suspects = {f.source for f in audit(cases, catalogue) if f.kind == "suspect"}
    assert len(suspects) >= 1
    assert backtest.usable([replace(c, point=replace(c.point, ttft_s=0.1)) for c in cases]).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_own_runs_move_a_prediction_towards_them_and_narrow_its_interval() -> None:
    prior = prior_of("vllm")
    before = posterior(prior, None, "new-model", "H100-SXM5-80GB")
    own = Own({"new-model": [0.3, 0.31, 0.29]})
    after, other = (posterior(prior, own, m, "H100-SXM5-80GB") for m in ("new-model", "another"))
    assert before[0] == 1 and 1.25 < after[0] < np.exp(0.3) + 1e-9
    assert 1 < other[0] < after[0], "another model on the same hardware goes a part of the way"
    assert after[2] / after[1] < other[2] / other[1] < before[2] / before[1]


def test_power_rises_with_what_devices_do_and_energy_is_reported(catalogue: Hardware) -> None:
    cases = [case_of(_point("Qwen/Qwen3-30B-A3B", "h100", n), catalogue) for n in (1.0, 16.0, 256.0)]
    watts = [device_power_w(c.terms, prior_of("vllm").coefficients.step_s(c.terms), 2, 700.0)[0] for c in cases]

    def step(case: Case) -> float:
        return float(prior_of("vllm").coefficients.step_s(case.terms)[0])

    assert 100 < watts[0] < watts[1] < watts[2] <= 700
    rows = [
        replace(c, point=replace(c.point, tpot_s=step(c), tpot_kind="median_gap", power_w=2 * w, joules_per_token=1.0))
        for c, w in zip(cases, watts, strict=True)
    ]
    found = energy_report(rows, catalogue)
    assert found["points"] == 3 and found["power_mape_predicted"] < 1e-6 < found["tdp_mape"]
    assert energy_report([], catalogue) == {"points": 0}


def test_dense_mbu_exceeds_one_where_s_mbu_does_not(catalogue: Hardware) -> None:
    def point(tokens: int, routing: str = "balanced") -> KernelPoint:
        reached = min(tokens * 8, 128)
        seconds = 20e-6 + reached * 3 * 2048 * 768 * 2 / (0.8 * 4.8e12)
        return KernelPoint(source="made", format="made", hardware="h200_sxm", dtype="bfloat16", tokens=tokens,
                           hidden_size=2048, expert_width=768, experts=128, top_k=8, routing=routing,
                           latency_s=seconds * (1.0 if routing == "balanced" else 0.9))  # fmt: skip

    points = [point(n) for n in (1, 2, 4, 8, 16)] + [point(4, "power_law_1.2")]
    found = kernel_report(points, catalogue)
    assert found["dense_mbu_above_one"] > 0 and found["balanced_s_mbu_above_one"] == 0
    assert found["correlation"] > 0.9 and found["skew"]["power_law_1.2"] == pytest.approx(0.9)
    assert all(k.mbu >= k.s_mbu for k in kernels_of(points, catalogue))
    assert kernel_report([], catalogue) == {"points": 0}


def test_offload_is_bound_by_its_slowest_tier(catalogue: Hardware) -> None:
    speeds = catalogue.find("RTX-4090-24GB").speeds
    assert speeds is not None

    def bound(share: float, tier: float = 50e9) -> float:
        return float(step_bound_s(qwen3_30b(), speeds, Parallel(), [1], Workload(512, 128), share, tier)[0])

    assert bound(0.0) > bound(0.5) > bound(1.0) and bound(0.0, 100e9) == pytest.approx(bound(0.0) / 2)
    point = OffloadPoint(source="x", format="made", model="Qwen/Qwen3-30B-A3B", precision="bf16",
                         hardware="RTX 4090 24G", devices=1, processor="2x Xeon Gold 6454S", concurrency=1.0,
                         prompt_tokens=512, placement=None, experts_on_gpu=0.0, prefill_tokens_per_s=None,
                         decode_tokens_per_s=10.0)  # fmt: skip
    found = offload_report([point, replace(point, concurrency=None)], catalogue)
    assert found["points"] == found["held"] == 1 and 0 < found["reached"] < 1
    assert list(found["skipped"].values()) == [1]


COLUMNS = ("id", "silicon_data_source", "backend", "backend_version", "model_path", "system", "mode", "isl", "osl",
           "moe_quant_mode", "batch_size", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size",
           "silicon_ttft_ms", "silicon_tpot_ms")  # fmt: skip


def _file(path: Path, cases: list[Case]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for i, c in enumerate(cases):
            p = c.point
            said = f"silicon_concurrency={p.concurrency:.0f}"
            model = (i, said, "vllm", "0.19.0", p.model, p.hardware, "agg", 1024, 512, "bfloat16", p.concurrency)
            writer.writerow((*model, 2, 1, 1, 2, 1, (p.ttft_s or 0) * 1e3, (p.tpot_s or 0) * 1e3))
    return path


def test_commands(made: list[Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path / "made.csv", made)
    assert cli.main(["backtest", str(path), "--json", "--no-holdout"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["points"] == 27 and found["mape"] < 0.2 and found["holdout"]["gpu"] is None
    assert cli.main(["backtest", str(path), "--no-holdout"]) == 0
    assert "27 points: TPOT off by" in capsys.readouterr().out
    assert cli.main(["audit", str(path)]) == 0
    assert "nothing is impossible" in capsys.readouterr().out
    output = tmp_path / "cap.parquet"
    assert cli.main(["import", str(path), "--output", str(output)]) == 0
    assert "27 rows of 27 points" in capsys.readouterr().out
    table = pq.read_table(output)
    assert table.num_rows == 27 and set(table["origin"].to_pylist()) == {"imported"}
    rows = table.to_pylist()
    assert all(r["usd_per_million_tokens"] > 0 for r in rows)
    assert all(r["decode_s_mbu_low"] <= r["decode_s_mbu"] <= r["decode_mbu"] for r in rows)
    assert all(r["accuracy"] is None for r in rows), "what a file does not say is missing"
    assert cli.main(["backtest", str(output), "--json", "--no-holdout"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == 27, "what was imported is read again"
    assert cli.main(["import", str(tmp_path / "none.csv"), "--output", str(output)]) == 1


def test_the_page_is_written_from_a_backtest(made: list[Case], catalogue: Hardware, tmp_path: Path) -> None:
    from moecap.plan.page import write_page

    found = backtest.report(made, [(None, "no reason")], catalogue, holdouts=("gpu",))
    found |= {"energy": {"points": 0}, "kernels": {"points": 0}, "offload": {"points": 0}}
    write_page(tmp_path / "planner.md", found, made, "moecap backtest PATH")
    text = (tmp_path / "planner.md").read_text(encoding="utf-8")
    assert "| unseen GPU types | 27 |" in text and "goal: at most 1%" in text and "1: no reason" in text
    assert (tmp_path / "planner-predicted.svg").read_text(encoding="utf-8").startswith("<svg")
