"""Public result files are read where they lie: each format by rows that we made, in the shape of its makers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.errors import MoecapError
from moecap.hardware import catalogue as hardware
from moecap.plan.formats import FORMATS, read, read_all
from moecap.plan.formats.aiconfigurator import _parallelism
from moecap.plan.names import engine_entry, hardware_entry, model_entry, precision_entry
from moecap.plan.points import KernelPoint, OffloadPoint, Point, table, unique

SERVING = {
    "id": "x",
    "silicon_data_source": "made; silicon_concurrency=64; measured=2026-01-02",
    "backend": "vllm",
    "backend_version": "0.19.0",
    "model_path": "MiniMaxAI/MiniMax-M2",
    "system": "h200_sxm",
    "mode": "agg",
    "isl": "1024",
    "osl": "512",
    "moe_quant_mode": "fp8",
    "batch_size": "64.0",
    "tp_size": "8.0",
    "pp_size": "1.0",
    "attention_dp_size": "1.0",
    "moe_tp_size": "8.0",
    "moe_ep_size": "1.0",
    "silicon_ttft_ms": "200.0",
    "silicon_tpot_ms": "20.0",
}
INFERENCEX = {
    "hw": "b200-trt",
    "framework": "sglang",
    "conc": 32,
    "model": "deepseek-ai/DeepSeek-R1-0528",
    "precision": "fp8",
    "spec_decoding": "mtp",
    "disagg": False,
    "isl": 1024,
    "osl": 1024,
    "tp": 8,
    "ep": 8,
    "dp_attention": "true",
    "output_tput_per_gpu": 250.0,
    "mean_ttft": 0.4,
    "mean_tpot": 0.016,
    "power_valid": 0,
    "avg_power_w": 700.0,
}
VLLM = {
    "model_id": "Qwen/Qwen3-30B-A3B",
    "endpoint_type": "vllm",
    "num_prompts": 10,
    "completed": 8,
    "max_concurrency": 4,
    "total_input_tokens": 800,
    "total_output_tokens": 400,
    "output_throughput": 90.0,
    "mean_ttft_ms": 50.0,
    "mean_tpot_ms": 9.0,
    "hardware": "H100",
    "devices": 1,
}
AIPERF = {
    "input_config": {"endpoint": {"model_names": ["demo"]}, "loadgen": {"concurrency": 8}},
    "time_to_first_token": {"unit": "ms", "avg": 12.0},
    "inter_token_latency": {"unit": "ms", "avg": 3.0},
    "output_sequence_length": {"unit": "tokens", "avg": 32.0},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 300.0},
    "error_request_count": {"avg": 2},
}
ML_ENERGY = {
    "model_id": "openai/gpt-oss-20b",
    "weight_precision": "mxfp4",
    "configurations": [
        {
            "avg_batch_size": 15.9,
            "avg_output_len": 2000.0,
            "avg_power_watts": 470.0,
            "energy_per_token_joules": 0.23,
            "gpu_model": "H100",
            "max_num_seqs": 16,
            "median_itl_ms": 8.0,
            "num_gpus": 2,
            "parallelization": {"data_parallel": 1, "expert_parallel": 2, "tensor_parallel": 1},
        }
    ],
}
KERNEL = {
    "framework": "VLLM",
    "version": "0.19.0",
    "device": "NVIDIA H200",
    "moe_dtype": "fp8_block",
    "num_tokens": 16,
    "hidden_size": 4096,
    "inter_size": 1536,
    "topk": 8,
    "num_experts": 128,
    "moe_tp_size": 1,
    "moe_ep_size": 1,
    "distribution": "balanced",
    "latency": 0.25,
}
OFFLOAD = {
    "model": "DeepSeek-V3",
    "precision": "int4",
    "gpu": "RTX 4090 24G",
    "gpus": 1,
    "cpu": "2x Xeon",
    "concurrency": 1.0,
    "context_or_strategy": "4K",
    "gpu_expert_share": 0.25,
    "prefill_tok_s": "",
    "decode_tok_s": 13.0,
}
MLPERF = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Result is : VALID
Completed tokens per second                 : 1000.5
Mean First Token latency (ns)               : 200000000
Mean Time per Output Token (ns)             : 60000000
"""


def _csv(path: Path, *rows: dict[str, Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_every_format_is_read_from_what_it_looks_like(tmp_path: Path) -> None:
    summary = tmp_path / "results" / "H200x8_TRT" / "mixtral-8x7b" / "Server" / "mlperf_log_summary.txt"
    summary.parent.mkdir(parents=True)
    summary.write_text(MLPERF, encoding="utf-8")
    files = {
        "aiconfigurator silicon CSV": _csv(tmp_path / "a.csv", SERVING),
        "InferenceX result": _json(tmp_path / "agg_x.json", INFERENCEX),
        "vllm bench serve result": _json(tmp_path / "v.json", VLLM),
        "AIPerf result": _json(tmp_path / "p.json", AIPERF),
        "ML.ENERGY result": _json(tmp_path / "openai__gpt-oss-20b__gpqa.json", ML_ENERGY),
        "aiconfigurator kernel table": _csv(tmp_path / "k.csv", KERNEL),
        "KTransformers offload table": _csv(tmp_path / "o.csv", OFFLOAD),
        "MLPerf summary": summary,
    }
    for name, path in files.items():
        (point,) = read(path)
        assert point.format == name
    assert {m.NAME for m in FORMATS} == {*files, "CAP table or archive"}
    points, passed = read_all([tmp_path])
    assert len(points) == len(files) and not passed


def test_figures_come_out_in_si_units(tmp_path: Path) -> None:
    (serving,) = read(_csv(tmp_path / "a.csv", SERVING))
    assert isinstance(serving, Point)
    assert (serving.ttft_s, serving.tpot_s, serving.concurrency) == (0.2, 0.02, 64.0)
    assert (serving.devices, serving.tp, serving.dp, serving.ep, serving.date) == (8, 8, 1, 1, "2026-01-02")
    (own,) = read(_json(tmp_path / "x.json", [INFERENCEX]))
    assert isinstance(own, Point) and own.speculative and own.power_w is None, "its power was found invalid"
    assert (own.devices, own.tp, own.dp, own.ep, own.output_tokens_per_s) == (8, 1, 8, 8, 2000.0)
    (run,) = read(_json(tmp_path / "v.json", VLLM))
    assert isinstance(run, Point) and run.prompt_tokens == 100 and run.output_tokens == 50
    assert run.notes == "2 of 10 requests failed"
    (energy,) = read(_json(tmp_path / "openai__gpt-oss-20b__gpqa.json", ML_ENERGY))
    assert isinstance(energy, Point) and energy.tpot_kind == "median_gap" and energy.model == "openai/gpt-oss-20b"
    assert (energy.tp, energy.ep, energy.notes, energy.prompt_tokens) == (2, 2, "task gpqa", None)
    (kernel,) = read(_csv(tmp_path / "k.csv", KERNEL))
    assert isinstance(kernel, KernelPoint) and kernel.latency_s == pytest.approx(2.5e-4)
    (offload,) = read(_csv(tmp_path / "o.csv", OFFLOAD))
    assert isinstance(offload, OffloadPoint) and offload.prompt_tokens == 4096
    assert offload.prefill_tokens_per_s is None, "what is not printed is missing, not 0"


@given(st.sampled_from([4, 8]), st.booleans())
def test_parallelism_that_a_dump_has_squared_is_read_as_the_gpus_that_there_were(n: int, apart: bool) -> None:
    row = {"backend": "trtllm", "moe_tp_size": n, "moe_ep_size": n, "pp_size": 1}
    row |= {"tp_size": 1 if apart else n * n, "attention_dp_size": n * n if apart else 1}
    devices, tp, dp, ep, note = _parallelism(row)
    assert devices == ep == n and (tp, dp) == ((1, n) if apart else (n, 1)) and str(n * n) in str(note)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.booleans())
def test_parallelism_that_is_whole_stays(tp: int, dp: int, whole_experts: bool) -> None:
    width = tp * dp
    row = {"backend": "sglang", "tp_size": tp, "attention_dp_size": dp, "pp_size": 1}
    row |= {"moe_tp_size": 1 if whole_experts else width, "moe_ep_size": width if whole_experts else 1}
    assert _parallelism(row)[:4] == (width, tp, dp, width if whole_experts else 1)


def test_unknown_files_and_rows_that_are_one_run(tmp_path: Path) -> None:
    with pytest.raises(MoecapError, match="no format that is known"):
        read(_csv(tmp_path / "other.csv", {"a": 1}))
    with pytest.raises(MoecapError, match="not valid JSON"):
        broken = tmp_path / "broken.json"
        broken.write_text("{", encoding="utf-8")
        read(broken)
    with pytest.raises(MoecapError, match="does not exist"):
        read(tmp_path / "none.csv")
    twice = read(_csv(tmp_path / "a.csv", SERVING, {**SERVING, "id": "y"}, {**SERVING, "isl": 2048}))
    points = unique(p for p in twice if isinstance(p, Point))
    assert len(points) == 2 and table(points).num_rows == 2


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("h200_sxm", "H200-SXM-141GB"),
        ("h200-nv", "H200-SXM-141GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM5-80GB"),
        ("rtx_pro_6000_server", "RTX-PRO-6000-Blackwell-Server-96GB"),
        ("gb200", "GB200-NVL72-per-GPU"),
        ("mi355x-amd", "MI355X-288GB"),
        ("no-such-gpu", None),
        ("", None),
    ],
)
def test_hardware_by_what_others_call_it(printed: str, expected: str | None) -> None:
    assert hardware_entry(printed, hardware.load()) == expected


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("nvidia/DeepSeek-R1-0528-NVFP4", "deepseek-v3"),
        ("dsr1", "deepseek-v3"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507-FP8", "qwen3-30b-a3b"),
        ("mixtral-8x7b", "mixtral-8x7b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("nobody/unknown-1b", None),
    ],
)
def test_models_by_what_others_call_them(printed: str, expected: str | None) -> None:
    assert model_entry(printed) == expected


def test_engines_and_precisions_by_what_others_call_them() -> None:
    assert [engine_entry(n) for n in ("vllm", "TRTLLM", "dynamo-trt", "sglang", "mine")] == [
        "vllm",
        "trtllm",
        "trtllm",
        "sglang",
        None,
    ]
    assert [precision_entry(n) for n in ("fp8_block", "bfloat16", "int4_wo", "w4a16_mxfp4", "odd")] == [
        "fp8-block",
        "bf16",
        "int4",
        "mxfp4",
        None,
    ]
    assert precision_entry("nvfp4", "gpt-oss-120b") == "mxfp4", "it was released in mxfp4 only"
