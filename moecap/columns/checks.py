"""Where one way of counting is held against another."""

from moecap.columns.base import F64, FLAG, I32, I64, TEXT, Column

BYTES_CHECK = (
    Column("layer", TEXT, "", "Which layer: its index, or the whole model."),
    Column(
        "context_tokens", I32, "1", "Tokens of each sequence in the KV cache, the step's own included.", label="context"
    ),
    Column("mbu_bytes", F64, "B", "MBU's count: every expert, and the KV cache.", "eq. (1)", "MBU, eq. (1)"),
    Column("s_mbu_bytes", F64, "B", "S-MBU's count as printed.", "eq. (3)", "S-MBU, eq. (3)"),
    Column("s_mbu_complete_bytes", F64, "B", "S-MBU's complete count.", "eq. (3), completed", "S-MBU, complete"),
    Column("measured_bytes", F64, "B", "Measured: weights, KV cache and activations of products.", label="measured"),
    Column("predicted_weight_bytes", F64, "B", "Weights of the complete count.", label="weights, predicted"),
    Column("measured_weight_bytes", F64, "B", "Weights that the step's ops read.", label="weights, measured"),
    Column("predicted_kv_bytes", F64, "B", "KV cache of the complete count.", label="KV cache, predicted"),
    Column("measured_kv_bytes", F64, "B", "KV cache that the step's ops read.", label="KV cache, measured"),
    Column(
        "predicted_activation_bytes",
        F64,
        "B",
        "Activations of the complete count: an estimate.",
        label="activations, predicted",
    ),
    Column(
        "measured_activation_bytes",
        F64,
        "B",
        "Activations that products and attention moved.",
        label="activations, measured",
    ),
    Column(
        "unfused_bytes",
        F64,
        "B",
        "Activations that all other ops moved; engines that fuse move fewer.",
        label="unfused",
    ),
    Column(
        "total_error", F64, "1", "Complete count over measured, minus 1.", label="complete / measured − 1", form="error"
    ),
    Column(
        "weights_over_activations",
        F64,
        "1",
        "Measured weights over measured activations.",
        label="weights / activations",
    ),
    Column(
        "mbu_overestimate", F64, "1", "MBU's count over measured, minus 1.", label="MBU / measured − 1", form="error"
    ),
)

#: What is compared between a decode and its replay, at one batch size.
REPLAY_COMPARED = (
    Column("token_layers", I64, "1", "Decoded tokens × MoE layers.", label="token × layer"),
    Column("sets_equal", F64, "1", "Share of them with the same set of experts.", label="same set", form="share"),
    Column(
        "control_sets_equal",
        F64,
        "1",
        "The same against the replay of the position before: were it high, equal sets would mean nothing.",
        label="control",
        form="share",
    ),
    Column("prefill_sets_equal", F64, "1", "The same for prompt tokens.", label="same set, prompt", form="share"),
    Column("step_layers", I64, "1", "Decode steps × MoE layers.", label="step × layer"),
    Column(
        "unique_equal",
        F64,
        "1",
        "Share of them with the same number of unique experts.",
        label="same count",
        form="share",
    ),
    Column("unique_error", F64, "1", "Mean error of the number of unique experts.", label="mean error"),
    Column("unique_abs_error", F64, "1", "Mean absolute error of that number.", label="mean abs. error"),
    Column(
        "s_mbu_error", F64, "1", "Relative error of decode S-MBU as printed.", "eq. (3)", "S-MBU error", form="error"
    ),
    Column(
        "s_mbu_complete_error",
        F64,
        "1",
        "Relative error of decode S-MBU, complete count.",
        label="S-MBU error, complete",
        form="error",
    ),
    Column(
        "worst_run_error",
        F64,
        "1",
        "Largest absolute error of S-MBU of a single run.",
        label="worst run",
        form="error",
    ),
)

REPLAY_CHECK = (
    *REPLAY_COMPARED,
    Column("runs", I32, "1", "Runs served with hooks."),
    Column(
        "same_tokens",
        F64,
        "1",
        "Share of these runs in which every sequence came out as in the timed run; only they are compared.",
        label="same tokens",
        form="share",
    ),
    Column("run_s", F64, "s", "Wall time of the timed runs at this batch size.", label="timed runs"),
    Column(
        "replay_s", F64, "s", "Time of the replay, at its mean rate, of their sequences, each once.", label="replay"
    ),
    Column(
        "replay_over_run",
        F64,
        "1",
        "Ratio of the two; null: everything had been replayed before.",
        label="replay / run",
    ),
)

#: What two CAP tables have at one point, side by side.
COMPARISON = (
    Column("column", TEXT, "", "The column that is compared."),
    Column("unit", TEXT, "", "Its unit."),
    Column("a", F64, "", "Its value in the first table."),
    Column("b", F64, "", "Its value in the second table."),
    Column("ratio", F64, "1", "Second over first."),
    Column("verdict", TEXT, "", "What that means, given the intervals of both."),
)

#: What a leaderboard says of a row beside the CAP table.
LEADERBOARD = (
    Column("archive", TEXT, "", "Name of the archive that the row is from."),
    Column("archive_sha256", TEXT, "", "Checksum of that archive."),
    Column("measured_unix_s", F64, "s", "When the row was measured, seconds since 1970 UTC."),
    Column("superseded", FLAG, "", "True: a newer archive measured the same point."),
    Column("page", TEXT, "", "The deployment's own page."),
)
