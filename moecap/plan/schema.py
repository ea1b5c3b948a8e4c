"""The columns of a plan: what is named as in the CAP table is the same, predicted; its intervals are of 90%."""

from __future__ import annotations

from moecap.columns.accuracy import ACCURACY
from moecap.columns.base import schema
from moecap.columns.cost import COST, ENERGY
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.columns.performance import BYTES, PERFORMANCE, UTILIZATION
from moecap.columns.plan import PLAN

PLAN_SCHEMA = schema(
    """
    model precision compute_dtype hardware devices engine layout batch_size prompt_tokens output_tokens
    feasible reason needed_bytes available_bytes largest_batch tpot_s± ttft_s output_tokens_per_s s_mbu
    s_mbu_complete mbu s_mfu unique_experts memory_bound tpot_dense_s power_w devices_power_w±
    joules_per_token energy_source hardware_usd usd_per_million_tokens± price_status speed_status
    figures_unverified accuracy upper_bound basis calibration notes
    """,
    *(DEPLOYMENT, POINT, PERFORMANCE, UTILIZATION, BYTES, ENERGY, COST, ACCURACY, PLAN),
    level="90%",
)
