"""The columns of a plan."""

from __future__ import annotations

import pyarrow as pa

_F, _I, _S, _B = pa.float64(), pa.int64(), pa.string(), pa.bool_()


def _field(name: str, kind: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={k: v for k, v in {"unit": unit, "meaning": meaning}.items() if v})


PLAN_SCHEMA = pa.schema(
    [
        _field("model", _S, "", "Model."),
        _field("precision", _S, "", "How the weights are stored."),
        _field("compute_dtype", _S, "", "Dtype that the GEMMs run in."),
        _field("hardware", _S, "", "Entry of the hardware catalogue."),
        _field("devices", _I, "1", "Devices, by tensor parallelism."),
        _field("engine", _S, "", "Engine whose prior the times rest on; null: none, the roofline."),
        _field("layout", _S, "", "How the devices share the model: tp, dp, ep, pp with their degrees."),
        _field("batch_size", _I, "1", "Requests at once."),
        _field("prompt_tokens", _I, "1", "Prompt tokens of a request."),
        _field("output_tokens", _I, "1", "Generated tokens of a request."),
        _field("feasible", _B, "", "It fits, and the chip has the dtype."),
        _field("reason", _S, "", "Why not."),
        _field("needed_bytes", _F, "B", "Weights, and KV and state of the batch at full length."),
        _field("available_bytes", _F, "B", "Memory of all devices that weights and KV may fill."),
        _field("largest_batch", _F, "1", "Largest batch that fits."),
        _field("tpot_s", _F, "s", "Predicted time per output token."),
        _field("tpot_s_low", _F, "s", "Lower end, by the spread of the calibration."),
        _field("tpot_s_high", _F, "s", "Upper end, by the spread of the calibration."),
        _field("ttft_s", _F, "s", "Predicted time to first token, the batch arriving together."),
        _field("output_tokens_per_s", _F, "1/s", "Predicted generated tokens per second."),
        _field("s_mbu", _F, "1", "Predicted S-MBU, eq. (3), decode."),
        _field("s_mbu_complete", _F, "1", "The same with the complete byte count."),
        _field("mbu", _F, "1", "Predicted MBU, eq. (1), decode."),
        _field("s_mfu", _F, "1", "Predicted S-MFU, eq. (4), decode."),
        _field("unique_experts", _F, "1", "Expected distinct experts per MoE layer and decode step."),
        _field("memory_bound", _B, "", "Decode is bound by memory bandwidth."),
        _field("tpot_dense_s", _F, "s", "TPOT if every expert were read in every step: what MBU-thinking predicts."),
        _field("power_w", _F, "W", "Power, estimated: what costs are computed with."),
        _field("devices_power_w", _F, "W", "Power of the devices alone in steady decode, from their utilization."),
        _field("devices_power_w_low", _F, "W", "Lower end (90%)."),
        _field("devices_power_w_high", _F, "W", "Upper end (90%)."),
        _field("joules_per_token", _F, "J", "Energy of the devices per generated token, in steady decode."),
        _field("energy_source", _S, "", "estimated."),
        _field("hardware_usd", _F, "USD", "Purchase."),
        _field("usd_per_million_tokens", _F, "USD", "Cost of 10⁶ generated tokens."),
        _field("usd_per_million_tokens_low", _F, "USD", "Lower end: price and calibration at their best."),
        _field("usd_per_million_tokens_high", _F, "USD", "Upper end: price and calibration at their worst."),
        _field("price_status", _S, "", "Weakest status of the prices."),
        _field("speed_status", _S, "", "Weakest status of the memory's and the compute's figures; null: measured."),
        _field("figures_unverified", _B, "", "True: a price, power or speed behind it has no source that was read."),
        _field("accuracy", _F, "1", "Measured or printed accuracy of the model at this precision; null: unknown."),
        _field(
            "upper_bound",
            _B,
            "",
            "True: nothing was measured on this hardware; it is what it allows at most.",
        ),
        _field("basis", _S, "", "What the times rest on: bound, prior, own runs, prior and own runs."),
        _field("calibration", _S, "", "What the achieved efficiency comes from."),
        _field("notes", _S, "", "What is not counted."),
    ]
)
