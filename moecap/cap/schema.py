"""The columns of the CAP table, by section; their units, meanings and sources are those of :mod:`moecap.columns`.

``docs/schema.md`` is generated from it: ``python -m moecap.cap.schema > docs/schema.md``.
"""

from __future__ import annotations

import pyarrow as pa

from moecap.columns.accuracy import ACCURACY
from moecap.columns.base import Column, named, schema
from moecap.columns.cost import COST, ENERGY, TRADE_OFF
from moecap.columns.deployment import DEPLOYMENT, POINT, PROVENANCE, STATUS
from moecap.columns.performance import BYTES, PERFORMANCE, UTILIZATION

_LAYOUT = {
    "Deployment": """
        deployment model precision engine engine_kind engine_version hardware devices tensor_parallel pipeline_parallel
        expert_parallel data_parallel offload dataset workload batch_size
        load concurrency request_rate""",
    "Status": """
        status origin schedule failure_stage failure_reason failure_log source
        printed_class printed_hardware_usd printed_note""",
    "Accuracy": """
        accuracy± accuracy_stderr accuracy_n accuracy_metric accuracy_failed accuracy_empty accuracy_cut
        accuracy_unparsed perplexity perplexity_stderr""",
    "Performance": """
        ttft_s± tpot_s± itl_s± output_tokens_per_s± total_tokens_per_s± e2e_s±
        ttft_s_p50 ttft_s_p90 ttft_s_p99 tpot_s_p50 tpot_s_p90 tpot_s_p99 itl_s_p50 itl_s_p90 itl_s_p99
        e2e_s_p50 e2e_s_p90 e2e_s_p99 ttft_p50_s ttft_p99_s itl_p50_s itl_p99_s
        goodput_requests_per_s± window_s window_drift client_tokens_per_s saturates
        requests repeats disturbed_repeats external_cpu_share cpu_steal_share other_gpu_processes steps
        mixed_step_share""",
    "Utilization": """
        decode_mbu± decode_mbu_complete± decode_s_mbu± decode_s_mbu_complete±
        decode_mfu± decode_mfu_complete± decode_s_mfu± decode_s_mfu_complete±
        prefill_mbu± prefill_mbu_complete± prefill_s_mbu± prefill_s_mbu_complete±
        prefill_mfu± prefill_mfu_complete± prefill_s_mfu± prefill_s_mfu_complete±
        mfu s_mfu mbu_over_s_mbu±
        decode_hbm_utilization decode_pcie_utilization decode_dram_utilization decode_ssd_utilization
        utilization_above_one peak_bytes_per_s peak_flops utilizations_above_one compute_dtype peak_source""",
    "Bytes": """
        layers moe_layers weight_bytes device_weight_bytes offloaded_weight_bytes moved_bytes_per_step
        decode_mbu_bytes decode_s_mbu_bytes decode_s_mbu_complete_bytes
        decode_mbu_complete_bytes decode_kv_bytes unique_experts""",
    "Energy": """
        power_w± energy_source joules_per_token± joules_per_correct_answer± tokens_per_s_per_kw± tokens_per_kwh±""",
    "Cost": """
        hardware_usd± energy_kwh± energy_usd± usd_per_million_tokens± tokens_per_usd±
        usd_per_million_input_tokens± usd_per_million_output_tokens± capital_share± operating_share± usd_per_hour±
        run_usd± evaluation_usd± usd_per_correct_answer± rental_usd_per_hour± rental_usd_per_million_tokens±
        rental_source
        spot_usd_per_million_tokens± elastic_usd_per_million_tokens± elastic_replicas±
        serverless_usd_per_million_tokens±
        api_usd_per_million_input_tokens api_usd_per_million_output_tokens api_source
        gpu_only_usd_per_million_tokens± gpu_only_error± gpu_only_purchase_error gpu_only_energy_error
        lifetime_years usd_per_kwh pue utilisation price_status price_source price_complete price_notes
        electricity_status electricity_source figures_unverified""",
    "Trade-off": "cap_class cap_class_purchase cap_reference pareto_frequency",
    "Provenance": "seed hardware_fingerprint libraries start_unix_s",
}
_GROUPS = (
    *(DEPLOYMENT, POINT, STATUS, ACCURACY, PERFORMANCE, UTILIZATION, BYTES, ENERGY, COST, TRADE_OFF, PROVENANCE),
)

SECTIONS: dict[str, tuple[Column, ...]] = {
    title: tuple(column for column, _ in named(names, *_GROUPS)) for title, names in _LAYOUT.items()
}
CAP_SCHEMA: pa.Schema = schema(
    " ".join(_LAYOUT.values()), *_GROUPS, required=("deployment", "model", "dataset", "status")
)

EQUATIONS = (
    "1. MBU = (S_model + S_KV) / TPOT / B_peak, with S_model = n_layer × (S_attn + S_ff)",
    "2. MFU = T_token × F_token / F_peak",
    "3. S-MBU = (S_activated + S_KV) / TPOT / B_peak, with S_activated = n_layer × S_attn + Σ_l Σ_i 1[l,i] × S_expert",
    "4. S-MFU = T_token × S-F_token / F_peak, with S-F_token = 2 N_attn + 2 N_router + 2 k_expert N_expert",
    "5. C_hardware = C_GPU + C_CPU + C_motherboard + C_DRAM + C_SSD",
    "6. C_energy = (P_GPU + P_CPU + P_C2M + P_PCIe + P_NVLink) × R",
    "7. C_token = (C_hardware + C_energy × $/kWh) / (T_token × R)",
)


def schema_markdown() -> str:
    """``docs/schema.md``: every column with type, unit, meaning and source."""
    lines = [
        "# The CAP table",
        "",
        "`results/cap.parquet`: one row per deployment × dataset × batch size. The same descriptions are in the",
        "Parquet file, per field (`unit`, `meaning`, `source`); its key-value metadata (key `moecap`, JSON) says what",
        "made it.",
        "Null means that nobody measured it; it is never written as 0. `status` says whether the timed run is there:",
        "what of a row is estimated (power, prices) is said by `energy_source` and `price_status`.",
        "A column marked ± has two more, `NAME_low` and `NAME_high`: its 95% interval; of a price (to buy, to rent)",
        "the whole range of its quotes. What is computed from several uncertain figures has the 95% interval of draws",
        "from all of them, which is narrower than their extremes.",
        "",
        "Equations are those of the MoE-CAP paper:",
        "",
        *EQUATIONS,
        "",
        "In decode, a measured utilization divides by the time of the decode steps, where the equations say TPOT: it",
        "leaves out what lies between steps, and so is a little higher (the demo: by less than 1%).",
        "",
        "This page is generated: `python -m moecap.cap.schema > docs/schema.md`.",
    ]
    for section, columns in SECTIONS.items():
        lines += ["", f"## {section}", "", "| column | type | unit | meaning | source |", "|---|---|---|---|---|"]
        for c in columns:
            name = f"`{c.name}`{' ±' if f'{c.name}_low' in CAP_SCHEMA.names else ''}"
            cells = (name, str(c.type), c.unit if c.unit != "1" else "", c.meaning, c.source)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(schema_markdown(), end="")
