"""How fast a deployment is, and how much of its hardware it uses."""

from collections.abc import Iterator

import pyarrow as pa

from moecap.columns.base import F64, FLAG, I32, I64, TEXT, Column

PERCENTILES = (50, 90, 99)


def _percentiles() -> Iterator[Column]:
    """Percentiles of the latencies."""
    of = {
        "ttft_s": "time to first token, over requests",
        "tpot_s": "time per output token after the first, over requests",
        "itl_s": "times between tokens of one request",
        "e2e_s": "time from submission to the last token, over requests",
    }
    for name, what in of.items():
        for percent in PERCENTILES:
            yield Column(f"{name}_p{percent}", F64, "s", f"{percent}th percentile of the {what}.")


PERFORMANCE = (
    Column("ttft_s", F64, "s", "Time to first token: mean over requests, queueing included.", "§3"),
    Column("tpot_s", F64, "s", "Time per output token after the first: mean over requests.", "TPOT of eqs. (1), (3)"),
    Column("itl_s", F64, "s", "Inter-token latency: mean of the times between tokens of one request.", "§3"),
    Column("output_tokens_per_s", F64, "1/s", "Generated tokens over wall time.", "T_token of eqs. (2), (4), (7)"),
    Column("total_tokens_per_s", F64, "1/s", "Prompt and generated tokens over wall time."),
    Column("e2e_s", F64, "s", "End-to-end latency: from submission to the last token, mean over requests."),
    *_percentiles(),
    Column("ttft_p50_s", F64, "s", "`ttft_s_p50` by its older name."),
    Column("ttft_p99_s", F64, "s", "`ttft_s_p99` by its older name."),
    Column("itl_p50_s", F64, "s", "`itl_s_p50` by its older name."),
    Column("itl_p99_s", F64, "s", "`itl_s_p99` by its older name."),
    Column("goodput_requests_per_s", F64, "1/s", "Online: requests per second that hold every limit of the SLO."),
    Column("window_s", F64, "s", "Online: steady time that figures are of, in all repeats."),
    Column(
        "window_drift", F64, "1", "Online: tokens of the steady window's second half over its first, - 1; worst repeat."
    ),
    Column("client_tokens_per_s", F64, "1/s", "Online: what the client takes from a server that does nothing."),
    Column("saturates", FLAG, "", "Online: more in flight added too little throughput; the sweep ended here."),
    Column("requests", I64, "1", "Requests in all repeats."),
    Column("prompt_tokens", I64, "1", "Prompt tokens in all repeats; of a plan, of a request."),
    Column("generated_tokens", I64, "1", "Generated tokens in all repeats."),
    Column("wall_s", F64, "s", "Wall time of all repeats."),
    Column("repeats", I32, "1", "Timed repeats, warm-up excluded."),
    Column(
        "disturbed_repeats",
        I32,
        "1",
        "Repeats while others took more than 5 % of the machine's CPU time, or a GPU, also when timed once more; null: "
        "not known of any.",
    ),
    Column("external_cpu_share", F64, "1", "The most that other processes used of the CPU time in a repeat."),
    Column("cpu_steal_share", F64, "1", "The most that a hypervisor took of the CPU time in a repeat."),
    Column("other_gpu_processes", I32, "1", "The most processes of others on the GPUs in a repeat."),
    Column("steps", I64, "1", "Engine steps in all repeats."),
    Column("decode_steps", I64, "1", "Steps that computed decode tokens."),
    Column("prefill_steps", I64, "1", "Steps that computed prefill tokens."),
    Column("mixed_steps", I64, "1", "Steps that computed prefill and decode tokens together."),
    Column("mixed_step_share", F64, "1", "Share of steps that computed prefill and decode tokens together."),
    Column("step_time_share", F64, "1", "Sum of the steps' wall time over the runs' wall time."),
    Column("cached_tokens", I64, "1", "Tokens that the prefix cache spared, in all steps."),
    Column("preempted_tokens", I64, "1", "Tokens whose KV was dropped by preemption, in all steps."),
    Column("recomputed_tokens", I64, "1", "Tokens computed that had been computed before, in all steps."),
    Column("decode_step_s", F64, "s", "Mean time of a decode step."),
    Column("decode_tokens_per_s", F64, "1/s", "Decode tokens over decode time."),
    Column("prefill_step_s", F64, "s", "Mean time of a prefill step."),
    Column("prefill_tokens_per_s", F64, "1/s", "Prefill tokens over prefill time."),
)

#: Utilization -> what it says, its equation, what the complete count adds.
_UTILIZATIONS = {
    "mbu": (
        "Memory bandwidth utilization: every weight and the KV cache over the time of a step",
        "eq. (1)",
        "also router, norms, output head, embedding rows and state",
    ),
    "s_mbu": (
        "Sparse MBU: the weights of activated experts only",
        "eq. (3)",
        "also router, shared experts, norms, output head, embedding rows and activations",
    ),
    "mfu": (
        "Model FLOPs utilization, all parameters counted",
        "eq. (2)",
        "also attention scores, which grow with the context, and the output head",
    ),
    "s_mfu": (
        "Sparse MFU: top-k and shared experts and the router",
        "eq. (4)",
        "also attention scores, which grow with the context, and the output head",
    ),
}


def _utilizations() -> Iterator[Column]:
    """MBU, S-MBU, MFU and S-MFU, for decode and prefill, as printed and with the complete count."""
    for phase in ("decode", "prefill"):
        for name, (meaning, source, more) in _UTILIZATIONS.items():
            yield Column(f"{phase}_{name}", F64, "1", f"{meaning}; {phase}, as printed.", source)
            complete = f"{meaning}; {phase}, complete count: {more}."
            yield Column(f"{phase}_{name}_complete", F64, "1", complete, f"{source}, completed")


_TIERS = {"hbm": "the devices' memory", "pcie": "the way from the host", "dram": "the host's memory", "ssd": "storage"}

UTILIZATION = (
    *_utilizations(),
    Column("mfu", F64, "1", "MFU over the whole run, prefill and decode, T_token as in eq. (7).", "eq. (2)"),
    Column(
        "s_mfu",
        F64,
        "1",
        "S-MFU over the whole run, prefill and decode, T_token as in eq. (7); of a plan, of decode.",
        "eq. (4)",
    ),
    Column("mbu_over_s_mbu", F64, "1", "How much MBU overestimates: `decode_mbu` / `decode_s_mbu`.", "§4.1"),
    *(
        Column(f"decode_{tier}_utilization", F64, "1", f"Offloaded weights, decode: bytes that {what} moves, complete.")
        for tier, what in _TIERS.items()
    ),
    Column(
        "decode_tiers",
        pa.list_(pa.struct([("tier", TEXT), ("bytes", F64), ("utilization", F64)])),
        "",
        "Offloaded weights: mean bytes per decode step and utilization of each memory tier.",
    ),
    Column(
        "utilization_above_one",
        FLAG,
        "",
        "True: a utilization exceeds 1. Bytes, time or peak are wrong, or a cache holds the model.",
    ),
    Column("peak_bytes_per_s", F64, "B/s", "Peak memory bandwidth of all devices.", "B_peak of eqs. (1), (3)"),
    Column(
        "peak_flops", F64, "FLOP/s", "Dense peak of all devices at the dtype computed in.", "F_peak of eqs. (2), (4)"
    ),
    Column("utilizations_above_one", pa.list_(TEXT), "", "Which utilizations exceed 1."),
    Column("compute_dtype", TEXT, "", "Dtype that the matrix products run in."),
    Column(
        "peak_source",
        TEXT,
        "",
        "measured (calibration) or catalogue (data sheet), with the weakest status of its figures.",
    ),
)


def _step_bytes() -> Iterator[Column]:
    """Mean bytes that each count of a step has."""
    counts = {
        "mbu": ("that MBU assumes a {} step reads", "S_model + S_KV of eq. (1)"),
        "s_mbu": ("that S-MBU counts per {} step", "S_activated + S_KV of eq. (3)"),
        "s_mbu_complete": ("per {} step, complete count", "eq. (3), completed"),
        "mbu_complete": ("per {} step, complete count, all experts read", "eq. (1), completed"),
        "kv": ("of KV cache read per {} step", "S_KV of eqs. (1), (3)"),
    }
    for phase in ("decode", "prefill"):
        for name, (what, source) in counts.items():
            yield Column(f"{phase}_{name}_bytes", F64, "B", f"Mean bytes {what.format(phase)}.", source)


BYTES = (
    Column("layers", I32, "1", "Layers of the model."),
    Column("moe_layers", I32, "1", "Layers with routed experts."),
    Column("weight_bytes", F64, "B", "All weights as stored."),
    Column(
        "device_weight_bytes",
        F64,
        "B",
        "Weights in the devices' memory between steps, as the engine holds them; null: not counted by it.",
    ),
    Column("offloaded_weight_bytes", F64, "B", "Weights elsewhere, as the engine holds them; null: not counted by it."),
    Column(
        "moved_bytes_per_step",
        F64,
        "B",
        "Offloaded weights that every step moves, needed or not, as counted from what was read; null: none, or not "
        "alike in every step.",
    ),
    *_step_bytes(),
    Column(
        "decode_component_bytes",
        pa.list_(pa.struct([("component", TEXT), ("bytes", F64)])),
        "B",
        "Mean bytes per decode step, complete count, by component.",
    ),
    Column(
        "unique_experts",
        F64,
        "1",
        "Mean number of distinct routed experts per MoE layer and decode step.",
        "1[l,i] of eq. (3)",
    ),
)
