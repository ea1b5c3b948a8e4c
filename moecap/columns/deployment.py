"""What a row is about: the deployment, its point, how it came about."""

from moecap.columns.base import F64, I32, I64, TEXT, Column

DEPLOYMENT = (
    Column("deployment", TEXT, "", "Id of the row of the deployment table."),
    Column("model", TEXT, "", "Name of the model's catalogue entry."),
    Column("precision", TEXT, "", "Name of the precision's catalogue entry: how the weights are stored."),
    Column(
        "engine",
        TEXT,
        "",
        "Name of the engine's catalogue entry; of what was not measured here, the kind of engine; null where the "
        "source does not name one.",
    ),
    Column("engine_kind", TEXT, "", "Kind of the engine (`vllm`, `llamacpp`, `server` …), as in its catalogue entry."),
    Column("engine_version", TEXT, "", "Version that the engine reported."),
    Column("hardware", TEXT, "", "Name of the hardware's catalogue entry."),
    Column("devices", I32, "1", "Devices (GPUs, or CPU machines) that hold the model."),
    Column("tensor_parallel", I32, "1", "Ranks of tensor parallelism."),
    Column("pipeline_parallel", I32, "1", "Ranks of pipeline parallelism."),
    Column("expert_parallel", I32, "1", "Ranks of expert parallelism."),
    Column("data_parallel", I32, "1", "Replicas."),
    Column("offload", TEXT, "", "Where weights that do not fit the devices are kept; null: nowhere."),
)

POINT = (
    Column("dataset", TEXT, "", "Name of the dataset's catalogue entry."),
    Column("workload", TEXT, "", "What was timed: prompts, output length, order of arrival."),
    Column("batch_size", I32, "1", "Requests submitted together; online: in flight, or served at a time."),
    Column("load", TEXT, "", "offline: a batch submitted together; online: requests arrive while others are served."),
    Column("concurrency", I32, "1", "Online: requests kept in flight."),
    Column("request_rate", F64, "1/s", "Online: requests per second, arriving at random (Poisson)."),
)

STATUS = (
    Column(
        "status",
        TEXT,
        "",
        "measured | estimated (the schedule of steps was inferred, not recorded) | paper (printed in the paper) | "
        "failed | missing (not run yet).",
    ),
    Column("origin", TEXT, "", "measured (by a campaign) | imported (others' result files) | printed (in a paper)."),
    Column("schedule", TEXT, "", "exact (the engine said what each step computed) | estimated (from arrival times)."),
    Column("failure_stage", TEXT, "", "Stage that failed."),
    Column("failure_reason", TEXT, "", "What failed, in one sentence."),
    Column("failure_log", TEXT, "", "Path of the log."),
    Column("source", TEXT, "", "For a row that was not measured here: where it is printed."),
    Column("printed_class", TEXT, "", "The class that is printed there."),
    Column("printed_hardware_usd", F64, "USD", "The purchase price that is printed there."),
    Column("printed_note", TEXT, "", "What else is printed about the same, where the source contradicts itself."),
)

PROVENANCE = (
    Column("seed", I64, "", "Seed of the run: it decides which prompts are served, in which order."),
    Column("hardware_fingerprint", TEXT, "", "Hash of the hardware as detected."),
    Column("libraries", TEXT, "", "Versions of the libraries, JSON."),
    Column("start_unix_s", F64, "s", "Start of the first timed repeat, seconds since 1970 UTC."),
)
