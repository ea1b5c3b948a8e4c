"""The CAP table: one tidy row per deployment × dataset × batch size, with what it costs, how well it answers, how fast.

``CAP_SCHEMA`` is data: every column carries its unit, meaning and source in the Parquet field metadata, and
``docs/schema.md`` is generated from it (``python -m moecap.cap.table > docs/schema.md``). :func:`cap_table` is a pure
join of
what the stages before wrote. A value that nobody measured is null, never 0; a deployment that failed keeps its rows.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.errors import MoecapError, nearest
from moecap.io import METADATA_KEY
from moecap.jobs.failures import SCOPE, applies

log = logging.getLogger(__name__)

Row = dict[str, Any]

KEY = ("deployment", "dataset", "batch_size")
STATUSES = ("measured", "estimated", "paper", "failed", "missing")
# What an accuracy or the record of a failure may be keyed by: the fields that it has must agree with the row's.
Z95 = 1.959963984540054  # two-sided 95% of the normal distribution


@dataclass(frozen=True)
class Column:
    """One column of the CAP table; ``interval`` adds ``NAME_low`` and ``NAME_high``."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    source: str = ""
    interval: bool = False
    nullable: bool = True

    def fields(self) -> list[pa.Field]:
        """The Arrow fields: the column itself, then its interval's ends."""
        found = [self._field(self.name, self.meaning, self.nullable)]
        if self.interval:
            for end, word in (("low", "Lower"), ("high", "Upper")):
                found.append(self._field(f"{self.name}_{end}", f"{word} end of the 95% interval of `{self.name}`."))
        return found

    def _field(self, name: str, meaning: str, nullable: bool = True) -> pa.Field:
        metadata = {"unit": self.unit, "meaning": meaning, "source": self.source}
        return pa.field(name, self.type, nullable, {k: v for k, v in metadata.items() if v})


_S, _I, _L, _F, _B = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()


def _utilizations() -> list[Column]:
    """MBU, S-MBU, MFU and S-MFU, for decode and prefill, as printed and with the complete count."""
    formulas = {
        "mbu": ("Memory bandwidth utilization: every weight and the KV cache over the time of a step", "eq. (1)"),
        "s_mbu": ("Sparse MBU: the weights of activated experts only", "eq. (3)"),
        "mfu": ("Model FLOPs utilization, all parameters counted", "eq. (2)"),
        "s_mfu": ("Sparse MFU: top-k and shared experts and the router", "eq. (4)"),
    }
    complete = {
        "mbu": "also router, norms, output head, embedding rows and state",
        "s_mbu": "also router, shared experts, norms, output head, embedding rows and activations",
        "mfu": "also attention scores, which grow with the context, and the output head",
        "s_mfu": "also attention scores, which grow with the context, and the output head",
    }
    columns = []
    for phase in ("decode", "prefill"):
        for name, (meaning, source) in formulas.items():
            columns.append(Column(f"{phase}_{name}", _F, "1", f"{meaning}; {phase}, as printed.", source, True))
            columns.append(
                Column(
                    f"{phase}_{name}_complete",
                    _F,
                    "1",
                    f"{meaning}; {phase}, complete count: {complete[name]}.",
                    f"{source}, completed",
                    True,
                )
            )
    return columns


SECTIONS: dict[str, list[Column]] = {
    "Deployment": [
        Column("deployment", _S, "", "Id of the row of the deployment table.", nullable=False),
        Column("model", _S, "", "Name of the model's catalogue entry.", nullable=False),
        Column("precision", _S, "", "Name of the precision's catalogue entry."),
        Column("engine", _S, "", "Name of the engine's catalogue entry; null where the source does not name one."),
        Column("engine_version", _S, "", "Version that the engine reported."),
        Column("hardware", _S, "", "Name of the hardware's catalogue entry."),
        Column("devices", _I, "1", "Devices (GPUs, or CPU machines) that hold the model."),
        Column("tensor_parallel", _I, "1", "Ranks of tensor parallelism."),
        Column("pipeline_parallel", _I, "1", "Ranks of pipeline parallelism."),
        Column("expert_parallel", _I, "1", "Ranks of expert parallelism."),
        Column("data_parallel", _I, "1", "Replicas."),
        Column("offload", _S, "", "Where weights that do not fit the devices are kept; null: nowhere."),
        Column("dataset", _S, "", "Name of the dataset's catalogue entry.", nullable=False),
        Column("workload", _S, "", "What was timed: prompts, output length, order of arrival."),
        Column("batch_size", _I, "1", "Requests submitted together."),
    ],
    "Status": [
        Column(
            "status",
            _S,
            "",
            "measured | estimated (the schedule of steps was inferred, not recorded) | paper (printed in the paper) | "
            "failed | missing (not run yet).",
            nullable=False,
        ),
        Column("failure_stage", _S, "", "Stage that failed."),
        Column("failure_reason", _S, "", "What failed, in one sentence."),
        Column("failure_log", _S, "", "Path of the log."),
        Column("source", _S, "", "For a row that was not measured here: where it is printed."),
        Column("printed_class", _S, "", "The class that is printed there."),
        Column("printed_hardware_usd", _F, "USD", "The purchase price that is printed there."),
        Column("printed_note", _S, "", "What else is printed about the same, where the source contradicts itself."),
    ],
    "Accuracy": [
        Column("accuracy", _F, "1", "Share of right answers, 0 to 1.", "lm-eval, the task's main metric", True),
        Column("accuracy_stderr", _F, "1", "Standard error of `accuracy`.", "lm-eval"),
        Column("accuracy_n", _L, "1", "Questions asked."),
        Column("accuracy_metric", _S, "", "Name of the metric (and filter) of lm-eval."),
    ],
    "Performance": [
        Column("ttft_s", _F, "s", "Time to first token: mean over requests, queueing included.", "§3", True),
        Column(
            "tpot_s",
            _F,
            "s",
            "Time per output token after the first: mean over requests.",
            "TPOT of eqs. (1), (3)",
            True,
        ),
        Column("itl_s", _F, "s", "Inter-token latency: mean of the times between tokens of one request.", "§3", True),
        Column(
            "output_tokens_per_s", _F, "1/s", "Generated tokens over wall time.", "T_token of eqs. (2), (4), (7)", True
        ),
        Column("total_tokens_per_s", _F, "1/s", "Prompt and generated tokens over wall time.", "", True),
        Column("ttft_p50_s", _F, "s", "Median of the time to first token over requests."),
        Column("ttft_p99_s", _F, "s", "99th percentile of the time to first token over requests."),
        Column("itl_p50_s", _F, "s", "Median of the times between tokens."),
        Column("itl_p99_s", _F, "s", "99th percentile of the times between tokens."),
        Column("requests", _L, "1", "Requests in all repeats."),
        Column("repeats", _I, "1", "Timed repeats, warm-up excluded."),
        Column(
            "disturbed_repeats",
            _I,
            "1",
            "Repeats while others took more than 5 % of the machine's CPU time, or a GPU, also when timed once more.",
        ),
        Column("external_cpu_share", _F, "1", "The most that other processes used of the CPU time in a repeat."),
        Column("cpu_steal_share", _F, "1", "The most that a hypervisor took of the CPU time in a repeat."),
        Column("other_gpu_processes", _I, "1", "The most processes of others on the GPUs in a repeat."),
        Column("steps", _L, "1", "Engine steps in all repeats."),
        Column("mixed_step_share", _F, "1", "Share of steps that computed prefill and decode tokens together."),
    ],
    "Utilization": [
        *_utilizations(),
        Column("mfu", _F, "1", "MFU over the whole run, prefill and decode, T_token as in eq. (7).", "eq. (2)"),
        Column("s_mfu", _F, "1", "S-MFU over the whole run, prefill and decode, T_token as in eq. (7).", "eq. (4)"),
        Column("mbu_over_s_mbu", _F, "1", "How much MBU overestimates: `decode_mbu` / `decode_s_mbu`.", "§4.1", True),
        *(
            Column(
                f"decode_{tier}_utilization", _F, "1", f"Offloaded weights, decode: bytes that {what} moves, complete."
            )
            for tier, what in (
                ("hbm", "the devices' memory"),
                ("pcie", "the way from the host"),
                ("dram", "the host's memory"),
                ("ssd", "storage"),
            )
        ),
        Column(
            "utilization_above_one",
            _B,
            "",
            "True: a utilization exceeds 1. Bytes, time or peak are wrong, or a cache holds the model.",
        ),
        Column("peak_bytes_per_s", _F, "B/s", "Peak memory bandwidth of all devices.", "B_peak of eqs. (1), (3)"),
        Column(
            "peak_flops", _F, "FLOP/s", "Dense peak of all devices at the dtype computed in.", "F_peak of eqs. (2), (4)"
        ),
        Column("utilizations_above_one", pa.list_(_S), "", "Which utilizations exceed 1."),
        Column("compute_dtype", _S, "", "Dtype that the matrix products run in."),
        Column(
            "peak_source",
            _S,
            "",
            "measured (calibration) or catalogue (data sheet), with the weakest status of its figures.",
        ),
    ],
    "Bytes": [
        Column("layers", _I, "1", "Layers of the model."),
        Column("moe_layers", _I, "1", "Layers with routed experts."),
        Column("weight_bytes", _F, "B", "All weights as stored."),
        Column(
            "decode_mbu_bytes", _F, "B", "Mean bytes that MBU assumes a decode step reads.", "S_model + S_KV of eq. (1)"
        ),
        Column(
            "decode_s_mbu_bytes",
            _F,
            "B",
            "Mean bytes that S-MBU counts per decode step.",
            "S_activated + S_KV of eq. (3)",
        ),
        Column(
            "decode_s_mbu_complete_bytes", _F, "B", "Mean bytes per decode step, complete count.", "eq. (3), completed"
        ),
        Column(
            "decode_mbu_complete_bytes",
            _F,
            "B",
            "Mean bytes per decode step, complete count, all experts read.",
            "eq. (1), completed",
        ),
        Column("decode_kv_bytes", _F, "B", "Mean bytes of KV cache read per decode step.", "S_KV of eqs. (1), (3)"),
        Column(
            "unique_experts",
            _F,
            "1",
            "Mean number of distinct routed experts per MoE layer and decode step.",
            "1[l,i] of eq. (3)",
        ),
    ],
    "Energy": [
        Column(
            "power_w", _F, "W", "Mean power of the whole deployment over the measured window.", "P of eq. (6)", True
        ),
        Column(
            "energy_source", _S, "", "What `power_w` is: nvml or rapl (measured), estimated (load and TDP), catalogue."
        ),
        Column("joules_per_token", _F, "J", "Energy per generated token under load.", "", True),
        Column("tokens_per_s_per_kw", _F, "1/(s kW)", "Throughput per kW.", "", True),
        Column("tokens_per_kwh", _F, "1/kWh", "Generated tokens per kWh.", "§2", True),
    ],
    "Cost": [
        Column("hardware_usd", _F, "USD", "Purchase price of the whole deployment.", "C_hardware of eq. (5)", True),
        Column("energy_kwh", _F, "kWh", "Energy over the lifetime at full load.", "C_energy of eq. (6)", True),
        Column("energy_usd", _F, "USD", "Price of `energy_kwh`.", "eqs. (6), (7)", True),
        Column(
            "usd_per_million_tokens",
            _F,
            "USD",
            "Cost of 10⁶ generated tokens over the lifetime.",
            "C_token of eq. (7) × 10⁶",
            True,
        ),
        Column("tokens_per_usd", _F, "1/USD", "Generated tokens per dollar.", "1 / C_token of eq. (7)", True),
        Column(
            "usd_per_million_input_tokens", _F, "USD", "Cost of 10⁶ prompt tokens: the time of prefill.", interval=True
        ),
        Column(
            "usd_per_million_output_tokens",
            _F,
            "USD",
            "Cost of 10⁶ generated tokens: the time of decode alone.",
            interval=True,
        ),
        Column("capital_share", _F, "1", "Share of the purchase in the cost of the lifetime.", interval=True),
        Column("operating_share", _F, "1", "Share of the energy in the cost of the lifetime.", interval=True),
        Column("usd_per_hour", _F, "USD/h", "Cost of an hour under load, purchase and energy.", interval=True),
        Column("run_usd", _F, "USD", "Cost of the timed run.", interval=True),
        Column(
            "evaluation_usd",
            _F,
            "USD",
            "Cost of serving as many requests as accuracy asked questions, each as in the timed run.",
            interval=True,
        ),
        Column("rental_usd_per_hour", _F, "USD/h", "What the same devices cost to rent.", interval=True),
        Column(
            "rental_usd_per_million_tokens", _F, "USD", "Cost of 10⁶ generated tokens on rented devices.", interval=True
        ),
        Column("rental_source", _S, "", "Offers that the rental price is made of."),
        Column(
            "spot_usd_per_million_tokens",
            _F,
            "USD",
            "The same on spot instances, interruptions included; null unless the config describes them.",
            interval=True,
        ),
        Column(
            "elastic_usd_per_million_tokens",
            _F,
            "USD",
            "The same in rented replicas that follow the config's demand.",
            interval=True,
        ),
        Column("elastic_replicas", _F, "1", "Mean number of those replicas.", interval=True),
        Column(
            "serverless_usd_per_million_tokens",
            _F,
            "USD",
            "The same on workers paid by the second, cold starts and idle time included.",
            interval=True,
        ),
        Column("api_usd_per_million_input_tokens", _F, "USD", "What others ask for 10⁶ prompt tokens of the model."),
        Column(
            "api_usd_per_million_output_tokens", _F, "USD", "What others ask for 10⁶ generated tokens of the model."
        ),
        Column("api_source", _S, "", "Offers that the API price is made of."),
        Column(
            "gpu_only_usd_per_million_tokens", _F, "USD", "What costing the GPUs alone would have said.", interval=True
        ),
        Column(
            "gpu_only_error",
            _F,
            "1",
            "How far that is from `usd_per_million_tokens`; −0.1 is 10% too low.",
            interval=True,
        ),
        Column("gpu_only_purchase_error", _F, "1", "How far the GPUs' price alone is from `hardware_usd`."),
        Column("gpu_only_energy_error", _F, "1", "How far the GPUs' power alone is from `power_w`."),
        Column(
            "lifetime_years",
            _F,
            "a",
            "Lifetime R over which the purchase is spread; a year is 8,766 h.",
            "R of eq. (7)",
        ),
        Column("usd_per_kwh", _F, "USD/kWh", "Price of electricity.", "$/kWh of eq. (7)"),
        Column("pue", _F, "1", "Power usage effectiveness of the site."),
        Column("utilisation", _F, "1", "Share of the lifetime under load."),
        Column(
            "price_status",
            _S,
            "",
            "What the prices rest on, the weakest of them: verified | derived | fitted | unverified | assumption.",
        ),
        Column("price_source", _S, "", "Where the prices come from, with date."),
        Column("price_complete", _B, "", "False: a part has no price, so that `hardware_usd` is a lower bound."),
        Column("price_notes", _S, "", "What is counted how."),
        Column("electricity_status", _S, "", "What the price of electricity rests on."),
        Column("electricity_source", _S, "", "Where the price of electricity comes from."),
        Column("figures_unverified", _B, "", "True: a figure behind the cost has no source that was read."),
    ],
    "Trade-off": [
        Column(
            "cap_class",
            _S,
            "",
            "Which of C, A and P the row holds against the reference deployment; cost per token.",
            "§3",
        ),
        Column("cap_class_purchase", _S, "", "The same with the cost of buying.", "§3"),
        Column("cap_reference", _S, "", "Deployment that classes are measured against."),
        Column(
            "pareto_frequency",
            _F,
            "1",
            "Share of draws (cost, accuracy and throughput within their intervals) in which no other row of the "
            "dataset is better in one of the three and no worse in the others.",
        ),
    ],
    "Provenance": [
        Column("seed", _L, "", "Seed of the run."),
        Column("hardware_fingerprint", _S, "", "Hash of the hardware as detected."),
        Column("libraries", _S, "", "Versions of the libraries, JSON."),
        Column("start_unix_s", _F, "s", "Start of the first timed repeat, seconds since 1970 UTC."),
    ],
}

COLUMNS: tuple[Column, ...] = tuple(c for columns in SECTIONS.values() for c in columns)
CAP_SCHEMA: pa.Schema = pa.schema([field for column in COLUMNS for field in column.fields()])
INTERVALS: frozenset[str] = frozenset(c.name for c in COLUMNS if c.interval)


def cap_table(
    deployments: Iterable[Mapping[str, Any]],
    metrics: Iterable[pa.Table] | pa.Table,
    accuracy: Iterable[pa.Table] | pa.Table,
    cost: Iterable[pa.Table] | pa.Table,
    failures: Iterable[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Join what each stage wrote into the CAP table.

    Args:
        deployments: rows of the deployment table; ``datasets`` and ``batch_sizes`` are lists, or texts with spaces
            between. Where a deployment has none, its rows are those that ``metrics`` has.
        metrics: one row per deployment × dataset × batch size.
        accuracy: one row per dataset and what it is keyed by of ``SCOPE`` (model, precision, engine; or deployment).
        cost: one row per deployment × dataset × batch size, or per deployment.
        failures: records with any of ``SCOPE``, and ``stage``, ``reason``, ``log``.
        provenance: goes into the table's metadata, so into the file's.

    Returns:
        A table of ``CAP_SCHEMA``, in the order of the deployment table, then dataset and batch size.

    Raises:
        MoecapError: two rows for one key, or a value that does not fit its column.
    """
    failures = list(failures)
    metric_rows = _index(_rows(metrics), KEY, "metrics")
    cost_rows = _rows(cost)
    cost_index = _index([r for r in cost_rows if r.get("dataset") is not None], KEY, "cost")
    cost_whole = _index([r for r in cost_rows if r.get("dataset") is None], ("deployment",), "cost")
    accuracy_rows = _rows(accuracy)

    rows: list[Row] = []
    for deployment in deployments:
        deployment = {k: v for k, v in deployment.items() if v not in (None, "")}
        name = str(deployment["deployment"])
        for dataset, batch_size in _points(deployment, metric_rows):
            key = (name, dataset, batch_size)
            row: Row = {**deployment, "dataset": dataset, "batch_size": batch_size}
            measured = metric_rows.get(key)
            for part in (measured, cost_index.get(key) or cost_whole.get((name,))):
                row.update({k: v for k, v in (part or {}).items() if v is not None})
            row.update(_accuracy(row, accuracy_rows))
            row.update(_evaluation(row))
            # A failure that left a figure of this row out; with all of them there, it was about another row.
            lacks = [c for c in ("output_tokens_per_s", "accuracy", "usd_per_million_tokens") if row.get(c) is None]
            failed = next((f for f in failures if applies(f, row)), None) if lacks else None
            if failed:
                row["failure_stage"] = failed.get("stage")
                row["failure_reason"] = failed.get("reason") or failed.get("message")
                row["failure_log"] = failed.get("log")
            row["status"] = _status(measured, failed)
            rows.append(row)

    frequency = pareto_frequency(rows)
    for row, share in zip(rows, frequency, strict=True):
        row["pareto_frequency"] = share
    return to_table(rows, provenance)


def to_table(rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any] | None = None) -> pa.Table:
    """Rows as a table of ``CAP_SCHEMA``; keys that it does not have are left out, NaN becomes null.

    Raises:
        MoecapError: a value does not fit its column, or is infinite.
    """
    unknown = sorted({key for row in rows for key in row} - set(CAP_SCHEMA.names) - {"datasets", "batch_sizes"})
    if unknown:
        log.debug("not part of the CAP table: %s", ", ".join(unknown))
    arrays = []
    for field in CAP_SCHEMA:
        values = [_plain(row.get(field.name), field) for row in rows]
        try:
            arrays.append(pa.array(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
            raise MoecapError(
                f"CAP table, column {field.name}: expected {field.type}, "
                f"got {_first_odd(values, field.type)!r} ({error})."
            ) from error
    metadata = {METADATA_KEY: _json(provenance)} if provenance is not None else None
    return pa.Table.from_arrays(arrays, schema=CAP_SCHEMA.with_metadata(metadata))


def accuracy_interval(accuracy: float, stderr: float | None, n: int | None) -> tuple[float | None, float | None]:
    """95% interval of an accuracy: Wilson's for a share of right answers, ± 1.96 standard errors for other means.

    At 100% of 50 right the standard error is 0, but the interval is not: Wilson's gives (0.929, 1).

    >>> [round(x, 3) for x in accuracy_interval(1.0, 0.0, 50)]
    [0.929, 1.0]
    """
    if n and 0 <= accuracy <= 1:
        binomial = math.sqrt(accuracy * (1 - accuracy) / max(n - 1, 1))
        if stderr is None or math.isclose(stderr, binomial, rel_tol=0.02, abs_tol=1e-9):
            z2 = Z95**2
            centre = (accuracy + z2 / (2 * n)) / (1 + z2 / n)
            half = Z95 / (1 + z2 / n) * math.sqrt(accuracy * (1 - accuracy) / n + z2 / (4 * n * n))
            return min(max(0.0, centre - half), accuracy), max(min(1.0, centre + half), accuracy)
    if stderr is None:
        return None, None
    return accuracy - Z95 * stderr, accuracy + Z95 * stderr


def dominated(costs: np.ndarray, accuracies: np.ndarray, throughputs: np.ndarray) -> np.ndarray:
    """Which points are dominated: another one is no worse in all three and better in one.

    Args:
        costs, accuracies, throughputs: shape (..., points); lower cost, higher accuracy and throughput are better.

    Returns:
        Booleans of the same shape.
    """
    points = costs.shape[-1]
    result = np.zeros(np.broadcast_shapes(costs.shape, accuracies.shape, throughputs.shape), bool)
    for i in range(points):  # one column against all others keeps memory at (draws, points)
        c, a, t = costs[..., i, None], accuracies[..., i, None], throughputs[..., i, None]
        no_worse = (costs <= c) & (accuracies >= a) & (throughputs >= t)
        better = (costs < c) | (accuracies > a) | (throughputs > t)
        result[..., i] = (no_worse & better).any(-1)
    return result


def pareto_frequency(
    rows: Sequence[Mapping[str, Any]],
    cost: str = "usd_per_million_tokens",
    draws: int = 1000,
    seed: int = 0,
) -> list[float | None]:
    """How often each row is on the Pareto frontier of its dataset when its figures vary within their intervals.

    Throughput is drawn per row. The price of a hardware entry is drawn once for all deployments on it, so that two rows
    on the same machine are not told apart by a price they share. A model × precision × engine has one accuracy, drawn
    once. The cost per token follows from throughput and price (which moves the capital's share of it), it is not drawn
    again.

    Returns:
        A share of ``draws`` per row; null where cost, accuracy or throughput is null.
    """
    result: list[float | None] = [None] * len(rows)
    needed = (cost, "accuracy", "output_tokens_per_s")
    complete = [i for i, r in enumerate(rows) if all(r.get(k) is not None for k in needed)]
    for dataset in dict.fromkeys(rows[i]["dataset"] for i in complete):
        chosen = [i for i in complete if rows[i]["dataset"] == dataset]
        group = [rows[i] for i in chosen]
        rng = np.random.default_rng(seed)
        speed = np.exp(_draw(rng, group, "output_tokens_per_s", lambda r: (r["deployment"], r["batch_size"]), draws))
        price = np.exp(
            _draw(rng, group, "hardware_usd", lambda r: (r.get("hardware"), r.get("devices")), draws, default=0.0)
        )
        accuracy = _draw(rng, group, "accuracy", lambda r: tuple(r.get(k) for k in SCOPE[1:4]), draws, logs=False)
        middle = {k: np.array([r[k] for r in group], float) for k in (cost, "output_tokens_per_s")}
        bought = np.array([r.get("hardware_usd") or 1.0 for r in group], float)
        share = np.array([1.0 if cost == "hardware_usd" else _capital_share(r) for r in group])
        costs = middle[cost] * (share * price / bought + 1.0 - share)
        if cost != "hardware_usd":
            costs = costs * (middle["output_tokens_per_s"] / speed)
        keys = [tuple(r.get(k) for k in (*SCOPE[1:4], "accuracy", "accuracy_stderr")) for r in group]
        number = {k: i for i, k in enumerate(dict.fromkeys(keys))}
        same_accuracy = np.array([number[k] for k in keys])
        alive = np.flatnonzero(~_always_dominated(costs, accuracy, speed, same_accuracy))
        shares = np.zeros(len(group))
        shares[alive] = 1.0 - dominated(costs[:, alive], accuracy[:, alive], speed[:, alive]).mean(0)
        for i, share in zip(chosen, shares, strict=True):
            result[i] = float(share)
    return result


def _capital_share(row: Mapping[str, Any]) -> float:
    """Share of the purchase in the cost per token; all of it where the row does not say."""
    share = row.get("capital_share")
    return 1.0 if share is None else share


def _always_dominated(costs: np.ndarray, accuracy: np.ndarray, speed: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Points that one and the same other point beats in every draw, so that neither need be looked at draw by draw.

    Leaving them out changes nothing: what they would beat, the one that beats them beats too.

    Args:
        costs, accuracy, speed: shape (draws, points).
        same: per point, equal where two points share their accuracy.
    """
    (cost_low, accuracy_low, speed_low), (cost_high, accuracy_high, speed_high) = (
        [end(axis=0) for end in ends]
        for ends in ((costs.min, accuracy.min, speed.min), (costs.max, accuracy.max, speed.max))
    )
    found = np.zeros(costs.shape[1], bool)
    for i in range(costs.shape[1]):
        as_accurate = (same == same[i]) | (accuracy_low >= accuracy_high[i])
        found[i] = (as_accurate & (cost_high < cost_low[i]) & (speed_low >= speed_high[i])).any()
    return found


def _draw(
    rng: np.random.Generator,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    shared: Any,
    draws: int,
    logs: bool = True,
    default: float | None = None,
) -> np.ndarray:
    """Normal draws (of logarithms, where ``logs``), shape (draws, rows); rows with one ``shared`` key vary together."""
    noise: dict[Any, np.ndarray] = {}
    columns = []
    for row in rows:
        key = shared(row)
        if key not in noise:
            noise[key] = rng.standard_normal(draws)
        value, low, high = row.get(column), row.get(f"{column}_low"), row.get(f"{column}_high")
        if value is None or (logs and value <= 0):
            columns.append(np.full(draws, default))
            continue
        if logs:
            spread = math.log(high / low) / (2 * Z95) if low and high and low > 0 and high > low else 0.0
            columns.append(math.log(value) + spread * noise[key])
        else:
            spread = row.get(f"{column}_stderr")
            if spread is None:
                spread = (high - low) / (2 * Z95) if low is not None and high is not None else 0.0
            columns.append(value + spread * noise[key])
    return np.stack(columns, axis=-1)


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
        "This page is generated: `python -m moecap.cap.table > docs/schema.md`.",
    ]
    for section, columns in SECTIONS.items():
        lines += ["", f"## {section}", "", "| column | type | unit | meaning | source |", "|---|---|---|---|---|"]
        for c in columns:
            name = f"`{c.name}`{' ±' if c.interval else ''}"
            cells = (name, str(c.type), c.unit if c.unit != "1" else "", c.meaning, c.source)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# --- the join's parts ---------------------------------------------------------------------------------------------


def _rows(tables: Iterable[pa.Table] | pa.Table) -> list[Row]:
    tables = [tables] if isinstance(tables, pa.Table) else tables
    return [row for table in tables for row in table.to_pylist()]


def _index(rows: Iterable[Row], key: Sequence[str], what: str) -> dict[tuple[Any, ...], Row]:
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        missing = [k for k in key if k not in row]
        if missing:
            raise MoecapError(f"The {what} table has no column {', '.join(missing)}; it has {', '.join(row)}.")
        identity = tuple(row[k] for k in key)
        if identity in found:
            named = ", ".join(f"{k} {v}" for k, v in zip(key, identity, strict=True))
            raise MoecapError(f"The {what} tables have two rows for {named}; one is expected.")
        found[identity] = row
    return found


def _points(deployment: Mapping[str, Any], metrics: Mapping[tuple[Any, ...], Row]) -> list[tuple[str, int | None]]:
    datasets, batch_sizes = _listed(deployment.get("datasets")), _listed(deployment.get("batch_sizes"))
    if datasets and batch_sizes:
        return [(dataset, int(batch)) for dataset in datasets for batch in batch_sizes]
    return [(dataset, batch) for name, dataset, batch in metrics if name == deployment["deployment"]]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return value.split()
    return list(value) if isinstance(value, list | tuple) else [value]


def _accuracy(row: Row, rows: Sequence[Row]) -> Row:
    found = [r for r in rows if applies(r, row)]
    if not found:
        return {}
    if len(found) > 1:
        metrics = [str(r.get("metric")) for r in found]
        raise MoecapError(
            f"Accuracy of deployment {row['deployment']} on {row['dataset']}: {len(found)} rows fit (metrics "
            f"{', '.join(metrics)}); one is expected. Name the task's main metric in the dataset's catalogue entry."
        )
    score = found[0]
    value, stderr, n = score.get("accuracy"), score.get("accuracy_stderr"), score.get("accuracy_n")
    low, high = score.get("accuracy_low"), score.get("accuracy_high")
    if low is None and value is not None:
        low, high = accuracy_interval(value, stderr, n)
    return {
        "accuracy": value,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_stderr": stderr,
        "accuracy_n": n,
        "accuracy_metric": score.get("accuracy_metric") or score.get("metric"),
        **({"source": score["source"]} if score.get("source") else {}),
    }


def _evaluation(row: Row) -> Row:
    """Cost of an evaluation: as many requests as there were questions, at the cost of one of the timed run."""
    requests, questions = row.get("requests"), row.get("accuracy_n")
    if not requests or questions is None:
        return {}
    ends = {end: row.get(f"run_usd{end}") for end in ("", "_low", "_high")}
    return {f"evaluation_usd{end}": usd / requests * questions for end, usd in ends.items() if usd is not None}


def _status(measured: Row | None, failed: Mapping[str, Any] | None) -> str:
    if measured is None or measured.get("output_tokens_per_s") is None:
        return "failed" if failed else "missing"
    status = measured.get("status") or "measured"
    if status not in STATUSES:
        raise MoecapError(f"The metrics table has status {status!r}. {nearest(status, STATUSES)}")
    return str(status)


def _plain(value: Any, field: pa.Field) -> Any:
    if value is None or (isinstance(value, str) and not value and field.type != _S):
        return None
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        if math.isinf(value):
            raise MoecapError(
                f"CAP table, column {field.name}: the value is infinite; a division by zero lies upstream."
            )
    if field.type in (_I, _L):  # Arrow would cut 1.5 down to 1
        whole = int(value)
        if whole != float(value):
            raise MoecapError(f"CAP table, column {field.name}: {value!r} is not a whole number.")
        return whole
    if field.type == _F and not isinstance(value, bool):
        return float(value)
    return value


def _first_odd(values: Sequence[Any], kind: pa.DataType) -> Any:
    for value in values:
        try:
            pa.array([value], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return value
    return None


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


if __name__ == "__main__":
    print(schema_markdown(), end="")
