"""The tables that the report shows below its own: what each is called, what it says, which of its columns are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: What the report shows of measured bytes; the file has more.
MEASURED_COLUMNS = [
    *("layer", "batch_size", "unique_experts", "mbu_bytes", "s_mbu_bytes", "s_mbu_complete_bytes", "measured_bytes"),
    *("total_error", "predicted_weight_bytes", "measured_weight_bytes", "predicted_kv_bytes", "measured_kv_bytes"),
]
#: What it shows of the check of the replay.
REPLAY_COLUMNS = [
    *("batch_size", "runs", "same_tokens", "token_layers", "sets_equal", "control_sets_equal", "unique_equal"),
    *("unique_error", "s_mbu_error", "s_mbu_complete_error", "worst_run_error", "replay_over_run"),
]


def measured_bytes(path: str) -> dict[str, Any]:
    """Bytes counted in a running model, beside those that were predicted."""
    return {
        "title": f"Predicted against measured bytes: {Path(path).parent.name}, {Path(path).stem}",
        "note": "Of one decode step of random prompts, counted op by op while Transformers executes it. The "
        "complete count is S-MBU's for the experts that this very step chose; its activations are an estimate, "
        "its weights and KV cache are not.",
        "path": path,
        "columns": MEASURED_COLUMNS,
        "chart": "measured_bytes",
    }


def cross_check(path: str) -> dict[str, Any]:
    """The planner's predictions of what was measured."""
    title = "Planner: predicted against measured time per output token"
    return {"title": title, "path": path, "section": "plan"}


#: What it shows of a plan.
PLAN_COLUMNS = [
    *("model", "precision", "hardware", "devices", "layout", "batch_size", "tokens_per_s_per_user", "tpot_s"),
    *("tpot_s_low", "tpot_s_high", "ttft_s", "output_tokens_per_s", "usd_per_million_tokens"),
    *("usd_per_million_tokens_low", "usd_per_million_tokens_high", "hardware_usd", "joules_per_token", "basis"),
    *("price_status", "figures_unverified", "notes"),
]


def plan(path: str) -> dict[str, Any]:
    """What `snakemake plan` predicted, where it was asked for: of each hardware the cheapest plan at each speed."""
    return {
        "title": "Predicted: which hardware is the cheapest at a given speed",
        "note": "Predictions, not measurements: of every model, precision and kind of hardware the plans that no "
        "other of them beats in both cost and speed. At a demanded speed per user, take the next row that is at least "
        "so fast. `figures unverified`: a price, power or speed behind it has no source that was read. All points "
        "are in plan.parquet.",
        "path": path,
        "columns": PLAN_COLUMNS,
        "chart": "plan_cost",
        "section": "plan",
    }


def replay_check(path: str) -> dict[str, Any]:
    """Replayed routing beside routers that were read while decoding."""
    return {
        "title": f"Replayed routing against routers read inside the decode: {Path(path).stem}",
        "path": path,
        "columns": REPLAY_COLUMNS,
    }


def hosts(path: str) -> dict[str, Any]:
    """What servers cost, beside what their GPUs alone would."""
    return {
        "title": "What costing the GPUs alone would miss",
        "note": "Of full servers: the GPUs' own price and power against those of the whole, processors, memory "
        "and board included. A negative error is how much too cheap the GPUs alone look. Prices and powers are "
        "the catalogue's. A power that nobody says is null; the lifetime then has the GPUs' energy on both "
        "sides.",
        "path": path,
    }
