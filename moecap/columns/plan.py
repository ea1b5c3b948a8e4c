"""What a prediction for hardware says, and how far off it was where something was measured."""

from moecap.columns.base import F64, FLAG, I64, TEXT, Column

PLAN = (
    Column("layout", TEXT, "", "How the devices share the model: tp, dp, ep, pp with their degrees."),
    Column("output_tokens", I64, "1", "Generated tokens of a request."),
    Column("feasible", FLAG, "", "It fits, and the chip has the dtype."),
    Column("reason", TEXT, "", "Why not."),
    Column("needed_bytes", F64, "B", "Weights, and KV and state of the batch at full length."),
    Column("available_bytes", F64, "B", "Memory of all devices that weights and KV may fill."),
    Column("largest_batch", F64, "1", "Largest batch that fits."),
    Column("s_mbu", F64, "1", "Predicted S-MBU of decode.", "eq. (3)"),
    Column("s_mbu_complete", F64, "1", "The same with the complete byte count.", "eq. (3), completed"),
    Column("mbu", F64, "1", "Predicted MBU of decode.", "eq. (1)"),
    Column("memory_bound", FLAG, "", "Decode is bound by memory bandwidth."),
    Column("tpot_dense_s", F64, "s", "TPOT if every expert were read in every step: what MBU-thinking predicts."),
    Column(
        "devices_power_w", F64, "W", "Power of the devices alone in steady decode, predicted from their utilization."
    ),
    Column(
        "speed_status", TEXT, "", "Weakest status of the memory's and the compute's figures; null: they were measured."
    ),
    Column("upper_bound", FLAG, "", "True: nothing was measured on this hardware; it is what it allows at most."),
    Column("basis", TEXT, "", "What the times rest on: bound, prior, own runs, prior and own runs."),
    Column("calibration", TEXT, "", "What the achieved efficiency comes from."),
    Column("notes", TEXT, "", "What is not counted."),
)

CROSS_CHECK = (
    Column("measured_tpot_s", F64, "s", "TPOT as timed.", label="TPOT, measured"),
    Column("predicted_tpot_s", F64, "s", "TPOT by the calibrated roofline.", label="TPOT, predicted"),
    Column("error", F64, "1", "Predicted / measured - 1.", form="error"),
    Column("uncalibrated_tpot_s", F64, "s", "TPOT by the bare roofline.", label="TPOT, roofline alone"),
    Column("uncalibrated_error", F64, "1", "Uncalibrated / measured - 1.", label="its error", form="error"),
    Column("calibrated_on", TEXT, "", "Deployment that was fitted.", label="calibrated on"),
    Column("in_sample", FLAG, "", "Yes: the calibration has seen this point.", label="seen"),
)
