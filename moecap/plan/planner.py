"""Predict deployments that need not be owned, and find the cheapest that meets a target (the paper's section 4.4).

The counts that assess a measured run are turned round: bytes and FLOP of a decode step and of a prefill follow from the
model's anatomy and from how many distinct experts a batch reaches; a roofline makes a time of them, a
:class:`Calibration` from measured runs corrects it. Without one, the result is what the hardware allows at most: an
**upper bound**, and called so (simple rooflines miss measured TPOT by a third on dense models, by more on sparse ones).

    step = slowdown × max(bytes / bandwidth, FLOP / peak) + links + overhead + per request × batch

Expected distinct experts of ``n`` tokens under uniform routing are ``E (1 − (1 − k/E)^n)``; a routing profile (how
often each expert is used) gives ``Σ 1 − (1 − p_e)^n``, which is less. The requests of a batch start together, as in a
timed run.
Devices share a model by tensor parallelism; KV heads are copied where there are fewer of them than devices.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.cost.deployment import HOURS_PER_YEAR, SECONDS_PER_HOUR, Settings, energy_kwh, mean_power_w, settings
from moecap.errors import MoecapError, nearest
from moecap.hardware.catalogue import SOURCED, Hardware, Range, Speeds, System
from moecap.io import read_json, read_parquet
from moecap.metrics.utilization import (
    complete_bytes,
    complete_flops,
    moe_kinds,
    printed_activated_bytes,
    printed_kv_bytes,
    printed_model_bytes,
    printed_sparse_flops_per_token,
)
from moecap.model.structure import Anatomy, LayerKind
from moecap.paths import Paths, fill

Row = dict[str, Any]

#: The dtype that GEMMs run in, by how the weights are stored (weight-only quantization computes in bf16).
COMPUTE_DTYPES = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "int8": "int8",
    "w8a8": "int8",
    "int4": "bf16",
    "w4a16": "bf16",
    "mxfp4": "bf16",
    "nvfp4": "fp4",
}

#: Share of a device's memory that weights and KV may fill; the rest is the engine's.
USABLE_MEMORY = 0.9

ACTIVATION_BYTES = 2


def compute_dtype(precision: str) -> str:
    """The dtype that GEMMs run in for a precision's name (``int4-g128``, ``int4-gptq`` …: its first part decides).

    Raises:
        MoecapError: the name says none that is known.
    """
    for name in (precision, precision.split("-")[0]):
        if name in COMPUTE_DTYPES:
            return COMPUTE_DTYPES[name]
    raise MoecapError(f"In which dtype does precision {precision!r} compute? {nearest(precision, COMPUTE_DTYPES)}")


@dataclass(frozen=True)
class Workload:
    """What a request is."""

    prompt_tokens: int = 512
    output_tokens: int = 128

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 2:
            raise MoecapError(
                f"A request of {self.prompt_tokens} prompt and {self.output_tokens} output tokens cannot be planned: "
                "at least 1 and 2 are needed."
            )


@dataclass(frozen=True)
class Candidate:
    """A model at a precision, and how accurate it is where that is known (0 to 1)."""

    anatomy: Anatomy
    compute_dtype: str
    accuracy: float | None = None

    @classmethod
    def of(cls, anatomy: Anatomy, accuracy: float | None = None) -> Candidate:
        """With the compute dtype that the precision's name implies."""
        return cls(anatomy, compute_dtype(anatomy.precision), accuracy)


@dataclass(frozen=True)
class Target:
    """Devices that serve one model together; rates and memory are those of ONE device."""

    hardware: str
    devices: int
    memory_bytes: float
    bytes_per_s: float
    flops: float | None
    link_bytes_per_s: float | None = None
    link: str | None = None

    @classmethod
    def of(
        cls, name: str, speeds: Speeds | None, devices: int, dtype: str, machine: Mapping[str, Any] | None = None
    ) -> Target:
        """From the catalogue's speeds, or from calibration where there are none.

        Raises:
            MoecapError: neither is there.
        """
        if speeds is not None:
            link, kind = speeds.link_bytes_per_s, "link"
            if not link:
                link, kind = speeds.pcie_bytes_per_s, "pcie"
            return cls(
                name,
                devices,
                speeds.memory_bytes,
                speeds.memory_bytes_per_s,
                speeds.peak_flops.get(dtype),
                link,
                kind if link else None,
            )
        if not machine or not machine.get("read_bandwidth_bytes_per_s"):
            raise MoecapError(
                f"{name}: its speeds are not in the catalogue but measured; give what calibration found "
                "(results/machine/*.json)."
            )
        return cls(
            name,
            devices,
            float(machine["memory_bytes"]),
            float(machine["read_bandwidth_bytes_per_s"]),
            (machine.get("peak_flops") or {}).get(dtype),
        )


@dataclass(frozen=True)
class Fit:
    """How a measured time exceeds the roofline: ``slowdown × roofline + overhead_s + per_request_s × batch``."""

    slowdown: float = 1.0
    overhead_s: float = 0.0
    per_request_s: float = 0.0
    spread: float = 0.0

    def time(self, roofline_s: np.ndarray, batch: np.ndarray) -> np.ndarray:
        """The time that the fit predicts."""
        return self.slowdown * roofline_s + self.overhead_s + self.per_request_s * batch


@dataclass(frozen=True)
class Calibration:
    """Fits of decode steps and of prefills on one hardware; the default is the roofline itself."""

    decode: Fit = field(default_factory=Fit)
    prefill: Fit = field(default_factory=Fit)
    source: str = "none: the roofline itself, an upper bound of what the hardware allows"
    upper_bound: bool = True


UNCALIBRATED = Calibration()


# -- what a step reads and computes ---------------------------------------------------------------------------------


def expected_unique_experts(
    anatomy: Anatomy, tokens: np.ndarray, profile: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Expected distinct experts that ``tokens`` tokens reach, shape (len(tokens), MoE layers).

    Args:
        tokens: how many tokens are routed together, shape (n,).
        profile: per MoE layer the probability that a token uses each expert, shape (experts,), summing to top-k; None:
            uniform routing, the closed form ``E (1 − (1 − k/E)^n)``, which no other routing exceeds.
    """
    tokens = np.asarray(tokens, dtype=np.float64)[:, None]
    kinds = moe_kinds(anatomy)
    if profile is None:
        experts = np.array([k.experts for k in kinds], dtype=np.float64)
        share = np.array([k.top_k / k.experts for k in kinds])
        return experts * (1.0 - (1.0 - share) ** tokens)
    if len(profile) != len(kinds):
        raise MoecapError(f"The routing profile has {len(profile)} layers, {anatomy.model} {len(kinds)} MoE layers.")
    columns = [(1.0 - (1.0 - np.clip(p, 0.0, 1.0)) ** tokens).sum(axis=1) for p in profile]
    return np.stack(columns, axis=1) if columns else np.zeros((len(tokens), 0))


def routing_profile(analysis: Iterable[Mapping[str, Any]]) -> list[np.ndarray] | None:
    """The routing profile in a routing analysis: per MoE layer the share of tokens that chose each expert.

    Args:
        analysis: rows of :data:`moecap.metrics.routing_analysis.ANALYSIS_SCHEMA`; all datasets together, by their
        tokens.

    Returns:
        Arrays of shape (experts,), in the order of the layers; None where the analysis has none.
    """
    chosen: dict[int, dict[int, float]] = {}
    tokens: dict[int, dict[str, float]] = {}
    for row in analysis:
        if row["table"] == "expert":
            layer = chosen.setdefault(row["layer"], {})
            layer[row["expert"]] = layer.get(row["expert"], 0.0) + row["activations"]
            tokens.setdefault(row["layer"], {})[row["dataset"]] = row["tokens"]
    if not chosen:
        return None
    return [
        np.array([n for _, n in sorted(experts.items())]) / sum(tokens[layer].values())
        for layer, experts in sorted(chosen.items())
    ]


def _windowed(anatomy: Anatomy, context: float) -> np.ndarray:
    """Tokens of KV that one request's attention reads per kind of layer, shape (kinds,)."""
    return np.array([min(context, k.kv_window) if k.kv_window else context for k in anatomy.kinds])


def kv_copies(kind: LayerKind, devices: int) -> float:
    """How often the KV of a layer is held over the devices: copied where there are fewer KV heads than devices."""
    heads = 1 if kind.attention == "latent" else kind.kv_heads
    return max(1.0, devices / heads) if heads else 1.0


def _copied(anatomy: Anatomy, context: np.ndarray, devices: int) -> np.ndarray:
    """Context scaled by the copies of KV, so that the bytes come out as all devices together read them."""
    return context * np.array([kv_copies(k, devices) for k in anatomy.kinds])


@dataclass(frozen=True)
class Steps:
    """Bytes and FLOP of a decode step and of a prefill, per batch size; arrays of shape (batch sizes,)."""

    batch: np.ndarray
    decode_bytes: np.ndarray
    decode_dense_bytes: np.ndarray
    decode_flops: np.ndarray
    prefill_bytes: np.ndarray
    prefill_flops: np.ndarray
    printed_bytes: np.ndarray
    printed_dense_bytes: np.ndarray
    kv_bytes: np.ndarray
    request_bytes: float
    unique_experts: np.ndarray


def steps(
    anatomy: Anatomy,
    batch_sizes: Sequence[int],
    workload: Workload,
    devices: int = 1,
    profile: Sequence[np.ndarray] | None = None,
) -> Steps:
    """Count a decode step in the middle of the output, and the prefill of the whole batch."""
    batch = np.asarray(batch_sizes, dtype=np.float64)
    if batch.size == 0 or (batch < 1).any():
        raise MoecapError(f"Batch sizes must be at least 1; given: {list(batch_sizes)}.")
    middle = workload.prompt_tokens + workload.output_tokens / 2
    context = _windowed(anatomy, middle)
    copied = batch[:, None] * _copied(anatomy, context, devices)
    unique = expected_unique_experts(anatomy, batch, profile)
    given = {"tokens": batch, "requests": batch, "context_tokens": copied}
    read = sum(complete_bytes(anatomy, **given, unique_experts=unique).values())
    dense = sum(complete_bytes(anatomy, **given).values())
    flops = sum(
        complete_flops(anatomy, tokens=batch, requests=batch, attention_pairs=batch[:, None] * context).values()
    )

    prompt = batch * workload.prompt_tokens
    cached = _windowed(anatomy, workload.prompt_tokens)
    pairs = np.array([_causal_pairs(workload.prompt_tokens, k.kv_window) for k in anatomy.kinds])
    prefill_read = sum(
        complete_bytes(
            anatomy,
            tokens=prompt,
            requests=batch,
            context_tokens=batch[:, None] * _copied(anatomy, cached, devices),
            unique_experts=expected_unique_experts(anatomy, prompt, profile),
        ).values()
    )
    prefill_flops = sum(
        complete_flops(anatomy, tokens=prompt, requests=batch, attention_pairs=batch[:, None] * pairs).values()
    )
    longest = _copied(anatomy, _windowed(anatomy, workload.prompt_tokens + workload.output_tokens), devices)
    kv = np.asarray(printed_kv_bytes(anatomy, batch[:, None] * context))
    return Steps(
        batch=batch,
        decode_bytes=np.asarray(read),
        decode_dense_bytes=np.asarray(dense),
        decode_flops=np.asarray(flops),
        prefill_bytes=np.asarray(prefill_read),
        prefill_flops=np.asarray(prefill_flops),
        printed_bytes=np.asarray(printed_activated_bytes(anatomy, unique)) + kv,
        printed_dense_bytes=printed_model_bytes(anatomy) + kv,
        kv_bytes=kv,
        request_bytes=float(printed_kv_bytes(anatomy, longest)) + anatomy.state_bytes,
        unique_experts=unique.mean(axis=1) if unique.shape[1] else np.zeros(len(batch)),
    )


def _causal_pairs(tokens: int, window: int | None) -> float:
    """(query, key) pairs of a causal prefill, each query seeing at most ``window`` keys."""
    if not window or window >= tokens:
        return tokens * (tokens + 1) / 2
    return window * (window + 1) / 2 + (tokens - window) * window


def roofline_s(read_bytes: np.ndarray, flops: np.ndarray, target: Target) -> np.ndarray:
    """The longer of reading and computing, over all devices together, in s."""
    compute = 0.0 if target.flops is None else flops / (target.devices * target.flops)
    return np.maximum(read_bytes / (target.devices * target.bytes_per_s), compute)


def links_s(anatomy: Anatomy, tokens: np.ndarray, target: Target) -> np.ndarray:
    """Time of tensor parallelism's two all-reduces per layer, as a ring over the links; 0 where no link is known."""
    if target.devices == 1 or not target.link_bytes_per_s:
        return np.zeros(len(tokens))
    message = tokens * anatomy.hidden_size * ACTIVATION_BYTES
    return 2 * anatomy.layers * 2 * (target.devices - 1) / target.devices * message / target.link_bytes_per_s


def required_bytes_per_s(
    anatomy: Anatomy, tpot_s: float, batch_size: int = 1, context: int = 0, dense: bool = False
) -> float:
    """Bandwidth that a TPOT asks for (§4.4): by S-MBU's count (eq. 3), or with ``dense`` by MBU's (eq. 1).

    Mixtral-8x22B in bf16 at 100 ms and batch 1: 2.8 TB/s by MBU, 0.78 TB/s by S-MBU with the paper's round figures.
    """
    read = _counted_bytes(anatomy, np.array([float(batch_size)]), context, dense)
    return float(read[0] / tpot_s)


def _counted_bytes(anatomy: Anatomy, batch: np.ndarray, context: float, dense: bool) -> np.ndarray:
    kv = np.asarray(printed_kv_bytes(anatomy, batch[:, None] * _windowed(anatomy, context)))
    if dense:
        return printed_model_bytes(anatomy) + kv
    return np.asarray(printed_activated_bytes(anatomy, expected_unique_experts(anatomy, batch))) + kv


# -- prediction -----------------------------------------------------------------------------------------------------


def predict(
    anatomy: Anatomy,
    target: Target,
    batch_sizes: Sequence[int],
    workload: Workload,
    calibration: Calibration = UNCALIBRATED,
    profile: Sequence[np.ndarray] | None = None,
    usable_memory: float = USABLE_MEMORY,
) -> dict[str, np.ndarray]:
    """TPOT, TTFT, throughput, memory and utilizations per batch size; arrays of shape (batch sizes,).

    ``tpot_dense_s`` is the TPOT of somebody who thinks in MBU: every expert is read in every step.
    """
    counted = steps(anatomy, batch_sizes, workload, target.devices, profile)
    batch = counted.batch
    read, compute = counted.decode_bytes, counted.decode_flops
    prompt = batch * workload.prompt_tokens
    decode = roofline_s(read, compute, target) + links_s(anatomy, batch, target)
    dense = roofline_s(counted.decode_dense_bytes, compute, target) + links_s(anatomy, batch, target)
    prefill = roofline_s(counted.prefill_bytes, counted.prefill_flops, target) + links_s(anatomy, prompt, target)
    tpot = calibration.decode.time(decode, batch)
    ttft = calibration.prefill.time(prefill, batch)
    whole = ttft + (workload.output_tokens - 1) * tpot
    rate = batch * workload.output_tokens / whole
    bandwidth = target.devices * target.bytes_per_s
    needed = anatomy.weight_bytes + batch * counted.request_bytes
    available = usable_memory * target.devices * target.memory_bytes
    room = max(available - anatomy.weight_bytes, 0.0)
    largest = math.floor(room / counted.request_bytes) if counted.request_bytes else None
    flops = None if target.flops is None else target.devices * target.flops
    return {
        "batch_size": batch.astype(int),
        "tpot_s": tpot,
        "tpot_dense_s": calibration.decode.time(dense, batch),
        "ttft_s": ttft,
        "output_tokens_per_s": rate,
        "s_mbu": counted.printed_bytes / tpot / bandwidth,
        "s_mbu_complete": read / tpot / bandwidth,
        "mbu": counted.printed_dense_bytes / tpot / bandwidth,
        "s_mfu": np.full(len(batch), np.nan)
        if flops is None
        else batch / tpot * printed_sparse_flops_per_token(anatomy) / flops,
        "unique_experts": counted.unique_experts,
        "memory_bound": read / bandwidth >= (0.0 if flops is None else compute / flops),
        "needed_bytes": needed,
        "available_bytes": np.full(len(batch), available),
        "fits": needed <= available,
        "largest_batch": np.full(len(batch), np.nan if largest is None else float(largest)),
    }


# -- calibration ----------------------------------------------------------------------------------------------------


def fit(roofline: np.ndarray, batch: np.ndarray, measured: np.ndarray) -> Fit:
    """The fit with the least relative squared error, all its terms ≥ 0.

    As many terms are used as the points bear: the slowdown alone with one batch size, the overhead with two, the share
    of each request with three or more. The slowdown is at least 1, so that no model is predicted faster than the
    roofline, unless a measured time is: a cache then holds more than the roofline knows of.
    """
    terms = np.stack([roofline, np.ones_like(roofline), batch], axis=1)[:, : min(3, len(np.unique(batch)))]
    least = 1.0 if (measured >= roofline).all() else 0.0
    scaled, wanted = terms / measured[:, None], 1.0 - least * roofline / measured
    best, error = np.array([max(float((measured / roofline).mean()) - least, 0.0)]), math.inf
    chosen: tuple[int, ...] = (0,)
    for size in range(1, terms.shape[1] + 1):
        for columns in itertools.combinations(range(terms.shape[1]), size):
            solution, *_ = np.linalg.lstsq(scaled[:, columns], wanted, rcond=None)
            residual = float(((scaled[:, columns] @ solution - wanted) ** 2).sum())
            if (solution >= 0).all() and residual < error * (1 - 1e-9):
                best, error, chosen = solution, residual, columns
    found = [least, 0.0, 0.0]
    for column, value in zip(chosen, best, strict=True):
        found[column] += float(value)
    freedom = max(len(measured) - len(chosen), 1)
    spread = math.sqrt(error / freedom) if math.isfinite(error) and len(measured) > len(chosen) else 0.0
    return Fit(*found, spread=spread)


def calibrate(
    anatomy: Anatomy,
    target: Target,
    measured: Sequence[Mapping[str, Any]],
    source: str = "measured runs",
    profile: Sequence[np.ndarray] | None = None,
) -> Calibration:
    """Fit decode and prefill times to measured runs of one model on the target.

    Args:
        measured: rows with ``batch_size``, ``tpot_s``, ``ttft_s``, ``prompt_tokens``, ``output_tokens`` (per request).

    Raises:
        MoecapError: no row has a batch size and a TPOT.
    """
    rows = [r for r in measured if r.get("batch_size") and r.get("tpot_s")]
    if not rows:
        raise MoecapError(f"{target.hardware}: no measured run with a batch size and a TPOT to calibrate on.")
    decode, prefill = [], []
    for row in rows:
        counted = steps(anatomy, [row["batch_size"]], _workload(row), target.devices, profile)
        prompt = counted.batch * row["prompt_tokens"]
        in_decode = roofline_s(counted.decode_bytes, counted.decode_flops, target)
        in_prefill = roofline_s(counted.prefill_bytes, counted.prefill_flops, target)
        decode.append((in_decode + links_s(anatomy, counted.batch, target))[0])
        prefill.append((in_prefill + links_s(anatomy, prompt, target))[0])
    batch = np.array([float(r["batch_size"]) for r in rows])
    tpot = np.array([float(r["tpot_s"]) for r in rows])
    known = [i for i, r in enumerate(rows) if r.get("ttft_s")]
    ttft = np.array([float(rows[i]["ttft_s"]) for i in known])
    prefills = fit(np.array(prefill)[known], batch[known], ttft) if known else Fit()
    return Calibration(fit(np.array(decode), batch, tpot), prefills, source, upper_bound=False)


def _workload(row: Mapping[str, Any]) -> Workload:
    return Workload(max(round(row["prompt_tokens"]), 1), max(round(row["output_tokens"]), 2))


def per_request(row: Mapping[str, Any]) -> Row:
    """A row of metrics with its tokens per request, as :func:`calibrate` takes them."""
    requests = row.get("requests") or 1
    return {
        **row,
        "prompt_tokens": (row.get("prompt_tokens") or requests) / requests,
        "output_tokens": (row.get("generated_tokens") or 2 * requests) / requests,
    }


def cross_check(
    measured: Mapping[str, tuple[Candidate, Sequence[Mapping[str, Any]]]],
    target_of: Callable[[str], Target],
    reference: str,
    profiles: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> list[Row]:
    """Calibrate on one deployment, predict the others, and say how wrong that is.

    Args:
        measured: deployment → (its model and precision, its rows as :func:`calibrate` takes them).
        target_of: what they all ran on, by the dtype computed in.
        reference: the deployment to calibrate on.
        profiles: model → routing profile.

    Returns:
        Rows of ``CROSS_CHECK_SCHEMA``, one per deployment, dataset and batch size.

    Raises:
        MoecapError: the reference was not measured.
    """
    if reference not in measured:
        raise MoecapError(f"Calibration: deployment {reference!r} was not measured. {nearest(reference, measured)}")

    def profile(candidate: Candidate) -> Sequence[np.ndarray] | None:
        return (profiles or {}).get(candidate.anatomy.model)

    base, rows = measured[reference]
    calibration = calibrate(
        base.anatomy, target_of(base.compute_dtype), rows, f"measured runs of {reference}", profile(base)
    )
    found = []
    for name, (candidate, points) in measured.items():
        own = target_of(candidate.compute_dtype)
        for point in points:
            if not point.get("batch_size") or not point.get("tpot_s"):
                continue
            asked = (candidate.anatomy, own, [point["batch_size"]], _workload(point))
            predicted = predict(*asked, calibration, profile(candidate))
            bound = predict(*asked, profile=profile(candidate))
            found.append(
                {
                    "deployment": name,
                    "dataset": point.get("dataset"),
                    "batch_size": point["batch_size"],
                    "measured_tpot_s": point["tpot_s"],
                    "predicted_tpot_s": float(predicted["tpot_s"][0]),
                    "error": float(predicted["tpot_s"][0]) / point["tpot_s"] - 1.0,
                    "uncalibrated_tpot_s": float(bound["tpot_s"][0]),
                    "uncalibrated_error": float(bound["tpot_s"][0]) / point["tpot_s"] - 1.0,
                    "calibrated_on": reference,
                    "in_sample": name == reference,
                }
            )
    return found


_ERROR = {"unit": "1", "form": "error"}
CROSS_CHECK_SCHEMA = pa.schema(
    [
        pa.field(name, dtype, metadata={"label": label, "meaning": meaning, **more})
        for name, dtype, label, meaning, more in (
            ("deployment", pa.string(), "deployment", "deployment that is predicted", {}),
            ("dataset", pa.string(), "dataset", "dataset whose prompts were served", {}),
            ("batch_size", pa.int64(), "batch", "requests submitted together", {"unit": "1"}),
            ("measured_tpot_s", pa.float64(), "TPOT, measured", "as timed", {"unit": "s"}),
            ("predicted_tpot_s", pa.float64(), "TPOT, predicted", "by the calibrated roofline", {"unit": "s"}),
            ("error", pa.float64(), "error", "predicted / measured - 1", _ERROR),
            ("uncalibrated_tpot_s", pa.float64(), "TPOT, roofline alone", "by the bare roofline", {"unit": "s"}),
            ("uncalibrated_error", pa.float64(), "its error", "uncalibrated / measured - 1", _ERROR),
            ("calibrated_on", pa.string(), "calibrated on", "deployment that was fitted", {}),
            ("in_sample", pa.bool_(), "seen", "yes: the calibration has seen this point", {}),
        )
    ]
)


def cross_check_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """How wrong the planner was, in a sentence or two."""
    if not rows:
        return "Nothing was measured that the planner could be held against."
    reference = ", ".join(dict.fromkeys(str(r["calibrated_on"]) for r in rows))
    other = [abs(r["error"]) for r in rows if not r["in_sample"]]
    own = [abs(r["error"]) for r in rows if r["in_sample"]]
    parts = [f"Calibrated on {reference} alone, the planner's TPOT is off by {np.median(own):.1%} there (median)"]
    if other:
        unseen = f"{len(other)} points that it had not seen"
        parts.append(f"by {np.median(other):.1%} (at most {max(other):.1%}) over {unseen}")
    times = float(np.median([r["measured_tpot_s"] / r["uncalibrated_tpot_s"] for r in rows]))
    return (
        f"{', and '.join(parts)}. Without calibration, the roofline is {times:.3g} times too fast (median): what the "
        "hardware allows at most, not what an engine reaches."
    )


def calibrate_from(
    deployments: Iterable[Mapping[str, Any]],
    candidates: Mapping[tuple[str, str], Candidate],
    metrics: Iterable[Mapping[str, Any]],
    speeds: Mapping[str, Speeds | None],
    machines: Mapping[str, Mapping[str, Any]] | None = None,
    reference: str | None = None,
    profiles: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> tuple[dict[str, Calibration], list[Row]]:
    """Calibrations per hardware from a campaign's measured runs, and how well one deployment predicts the others.

    Args:
        deployments: rows of the deployment table.
        candidates: (model, precision) → what is counted of it.
        metrics: rows of all deployments' metrics, with ``requests``, ``prompt_tokens`` and ``generated_tokens``.
        speeds: hardware → what the catalogue says that it can do; None: see ``machines``.
        machines: hardware → what calibration found, where speeds are measured.
        reference: the deployment to calibrate on, where it ran on the hardware; else the first that did.
        profiles: model → routing profile.

    Returns:
        hardware → :class:`Calibration`, and the rows of :func:`cross_check`.
    """
    points = [per_request(r) for r in metrics if r.get("status", "measured") in ("measured", "estimated")]
    groups: dict[tuple[str, int], dict[str, tuple[Candidate, list[Row]]]] = {}
    for row in deployments:
        key, variant = (str(row["hardware"]), int(row.get("devices") or 1)), (row["model"], row["precision"])
        own = [p for p in points if p["deployment"] == row["deployment"] and p.get("tpot_s")]
        if own and variant in candidates:
            groups.setdefault(key, {})[str(row["deployment"])] = (candidates[variant], own)
    found: dict[str, Calibration] = {}
    checks: list[Row] = []
    for (name, devices), measured in groups.items():
        machine = (machines or {}).get(name)

        def target_of(dtype: str, name: str = name, devices: int = devices, machine: Any = machine) -> Target:
            return Target.of(name, speeds.get(name), devices, dtype, machine)

        chosen = reference if reference in measured else next(iter(measured))
        base, rows = measured[str(chosen)]
        if name not in found or chosen == reference:
            source = f"measured runs of {chosen} on {devices} device(s)"
            profile = (profiles or {}).get(base.anatomy.model)
            found[name] = calibrate(base.anatomy, target_of(base.compute_dtype), rows, source, profile)
        checks += cross_check(measured, target_of, str(chosen), profiles)
    return found, checks


# -- what a campaign measured ----------------------------------------------------------------------------------------


def accuracies(cap: str | Path) -> dict[tuple[str, str], float]:
    """Accuracy per model and precision in a CAP table: the lowest over datasets, which a limit has to hold on each."""
    found: dict[tuple[str, str], float] = {}
    for row in read_parquet(cap, ["model", "precision", "accuracy"]).to_pylist():
        if row["accuracy"] is not None:
            key = (row["model"], row["precision"])
            found[key] = min(row["accuracy"], found.get(key, 1.0))
    return found


@dataclass(frozen=True)
class Measured:
    """What a campaign measured, as far as the planner learns from it.

    Attributes:
        deployments: rows of the deployment table.
        candidates: (model, precision) → what is counted of it.
        metrics: rows of the deployments' metrics.
        machines: hardware → what calibration of the machine found.
        profiles: model → routing profile.
    """

    deployments: Sequence[Mapping[str, Any]] = ()
    candidates: Mapping[tuple[str, str], Candidate] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    machines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    profiles: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        deployments: Sequence[Mapping[str, Any]],
        anatomies: Iterable[str | Path],
        metrics: Iterable[str | Path] = (),
        machines: Iterable[str | Path] = (),
        analyses: Iterable[str | Path] = (),
        accuracy: Mapping[tuple[str, str], float] | None = None,
        compute_dtypes: Mapping[str, str] | None = None,
        reference: str | None = None,
    ) -> Measured:
        """From the files of a results tree.

        Args:
            analyses: routing analyses, each in a folder named as its deployment; the reference's is taken before others
                as its model's profile.
            accuracy: see :func:`accuracies`.
            compute_dtypes: precision → dtype computed in, where its name does not say so.
            reference: the deployment to calibrate on.
        """
        candidates = {}
        for path in anatomies:
            found = Anatomy.from_json(read_json(path))
            key = (found.model, found.precision)
            dtype = (compute_dtypes or {}).get(found.precision) or compute_dtype(found.precision)
            candidates[key] = Candidate(found, dtype, (accuracy or {}).get(key))
        by_deployment = {Path(path).parent.name: path for path in analyses}
        profiles: dict[str, Sequence[np.ndarray]] = {}
        for row in sorted(deployments, key=lambda r: r["deployment"] != reference):
            name = row["deployment"]
            if name in by_deployment and row["model"] not in profiles:
                profile = routing_profile(read_parquet(by_deployment[name]).to_pylist())
                if profile is not None:
                    profiles[row["model"]] = profile
        return cls(
            deployments,
            candidates,
            [row for path in metrics for row in read_parquet(path).to_pylist()],
            {Path(path).stem: read_json(path) for path in machines},
            profiles,
        )

    @classmethod
    def of_results(cls, folder: str | Path, reference: str | None = None) -> Measured:
        """From a results folder as the workflow leaves it.

        Raises:
            MoecapError: there is no CAP table in it.
        """
        folder, paths = Path(folder), Paths(str(folder))
        rows: dict[str, Row] = {}
        columns = ["deployment", "model", "precision", "hardware", "devices"]
        for row in read_parquet(paths.cap, columns).to_pylist():
            rows.setdefault(row["deployment"], row)

        def there(pattern: str, **names: str) -> list[Path]:
            return [path for path in [Path(fill(getattr(paths, pattern), **names))] if path.is_file()]

        variants = dict.fromkeys((row["model"], row["precision"]) for row in rows.values())
        return cls.read(
            list(rows.values()),
            [path for model, precision in variants for path in there("anatomy", model=model, precision=precision)],
            [path for name in rows for path in there("metrics", deployment=name)],
            [path for name in {r["hardware"] for r in rows.values()} for path in there("machine", hardware=name)],
            [path for name in rows for path in there("routing_analysis", deployment=name)],
            accuracies(paths.cap),
            reference=reference,
        )

    def calibrate(
        self, speeds: Mapping[str, Speeds | None], reference: str | None = None
    ) -> tuple[dict[str, Calibration], list[Row]]:
        """See :func:`calibrate_from`."""
        return calibrate_from(
            self.deployments, self.candidates, self.metrics, speeds, self.machines, reference, self.profiles
        )


# -- the plan -------------------------------------------------------------------------------------------------------

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
        _field("power_w", _F, "W", "Power, estimated from TDPs."),
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
        _field("calibration", _S, "", "What the achieved efficiency comes from."),
        _field("notes", _S, "", "What is not counted."),
    ]
)


def plan(
    candidates: Sequence[Candidate],
    hardware: Hardware,
    systems: Sequence[str],
    devices: Sequence[int],
    batch_sizes: Sequence[int],
    workload: Workload = Workload(),
    cost: Mapping[str, Any] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    machine: Mapping[str, Any] | None = None,
    profiles: Mapping[str, Sequence[np.ndarray]] | None = None,
    usable_memory: float = USABLE_MEMORY,
) -> pa.Table:
    """Predict every combination of model × precision × hardware × number of devices × batch size.

    Args:
        candidates: models at precisions.
        hardware: the catalogue (or a slice of it); ``systems`` names its entries.
        devices: numbers of devices; those beyond one server are left out.
        cost: the ``cost`` part of a config (lifetime, region …); prices that it gives for own deployments do not apply.
        calibrations: system → how measured runs exceed the roofline there; others are upper bounds.
        machine: what calibration found, for a system whose speeds are measured.
        profiles: model → routing profile (:func:`expected_unique_experts`).

    Returns:
        ``PLAN_SCHEMA``, one row per combination; what cannot be served has ``feasible`` false and a reason.

    Raises:
        MoecapError: unknown hardware, nothing to plan, batch sizes below 1.
    """
    if not candidates or not systems or not devices or not batch_sizes:
        raise MoecapError("plan: at least one model, hardware entry, number of devices and batch size is needed.")
    if min(devices) < 1:
        raise MoecapError(f"plan: numbers of devices must be at least 1; given: {list(devices)}.")
    terms = {k: v for k, v in (cost or {"region": "us-average"}).items() if k not in ("hardware_usd", "deployments")}
    given = settings(terms, hardware)
    rows: list[Row] = []
    for name in systems:
        system = hardware.find(name, "plan")
        slots = system.server.slots if system.server else 1
        calibration = (calibrations or {}).get(name, UNCALIBRATED)
        for number in sorted({d for d in devices if d <= slots} or {1}):
            money = _money(system, number, given, machine)
            for candidate in candidates:
                profile = (profiles or {}).get(candidate.anatomy.model)
                target = Target.of(system.name, system.speeds, number, candidate.compute_dtype, machine)
                figures = predict(candidate.anatomy, target, batch_sizes, workload, calibration, profile, usable_memory)
                rows += _plan_rows(candidate, system, target, workload, calibration, money, figures)
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


@dataclass(frozen=True)
class _Money:
    """What a system costs over its life, whatever runs on it."""

    usd: float | None
    usd_low: float | None
    usd_high: float | None
    purchase_usd: float | None
    power_w: float | None
    seconds: float
    status: str | None
    sourced: bool
    note: str | None


def _money(system: System, devices: int, given: Settings, machine: Mapping[str, Any] | None) -> _Money:
    seconds = given.years * HOURS_PER_YEAR * SECONDS_PER_HOUR * given.utilisation
    estimate = system.power(devices, machine)
    power, statuses = estimate.total_w, [given.electricity_status, estimate.status]
    idle = system.power(devices, machine, idle=True)
    idle_w = idle.total_w if given.utilisation < 1 and not idle.unknown else None
    energy = None
    if power is not None:
        energy = energy_kwh(mean_power_w(power, given.utilisation, idle_w), given.years, given.pue)
    try:
        bought = system.purchase(devices, machine)
    except MoecapError:
        return _Money(None, None, None, None, power, seconds, None, False, "no price is known")
    if not bought.complete:  # a sum without one of its parts would win every comparison
        note = f"no price for {', '.join(bought.unpriced)}"
        return _Money(None, None, None, None, power, seconds, None, False, note)
    price, status = bought.total, bought.status
    sourced = all(s in SOURCED for s in [*statuses, status])
    if energy is None:
        return _Money(None, None, None, price.value, None, seconds, status, sourced, "no power is known")
    rate = given.usd_per_kwh
    low, middle, high = (p + energy * r for p, r in zip(_ends(price), _ends(rate), strict=True))
    return _Money(middle, low, high, price.value, power, seconds, status, sourced, None)


def _ends(of: Range) -> tuple[float, float, float]:
    return of.low, of.value, of.high


def _plan_rows(
    candidate: Candidate,
    system: System,
    target: Target,
    workload: Workload,
    calibration: Calibration,
    money: _Money,
    figures: Mapping[str, np.ndarray],
) -> list[Row]:
    anatomy, devices = candidate.anatomy, target.devices
    notes = [money.note] if money.note else []
    if devices > 1 and target.link is None:
        notes.append("no bandwidth of its links is known: they take no time here")
    elif devices > 1 and target.link == "pcie":
        notes.append("devices talk over PCIe")
    spread = 1.96 * calibration.decode.spread
    speed = system.speed_status(candidate.compute_dtype)
    rows = []
    for i, batch in enumerate(figures["batch_size"]):
        rate, tpot = float(figures["output_tokens_per_s"][i]), float(figures["tpot_s"][i])
        reason = None
        if target.flops is None:
            reason = system.why_no_peak(candidate.compute_dtype)
        elif not figures["fits"][i]:
            needed, available = figures["needed_bytes"][i] / 1e9, figures["available_bytes"][i] / 1e9
            reason = f"it needs {needed:,.1f} GB, {available:,.1f} GB are there"

        def per_million(usd: float | None, factor: float, rate: float = rate) -> float | None:
            return None if usd is None else usd / (rate * money.seconds) * 1e6 * factor

        rows.append(
            {
                "model": anatomy.model,
                "precision": anatomy.precision,
                "compute_dtype": candidate.compute_dtype,
                "hardware": system.name,
                "devices": devices,
                "batch_size": int(batch),
                "prompt_tokens": workload.prompt_tokens,
                "output_tokens": workload.output_tokens,
                "feasible": reason is None,
                "reason": reason,
                **{
                    key: None if np.isnan(figures[key][i]) else float(figures[key][i])
                    for key in (
                        "needed_bytes",
                        "available_bytes",
                        "largest_batch",
                        "tpot_s",
                        "ttft_s",
                        "output_tokens_per_s",
                        "s_mbu",
                        "s_mbu_complete",
                        "mbu",
                        "s_mfu",
                        "unique_experts",
                        "tpot_dense_s",
                    )
                },
                "tpot_s_low": tpot / (1 + spread) if spread else None,
                "tpot_s_high": tpot * (1 + spread) if spread else None,
                "memory_bound": bool(figures["memory_bound"][i]),
                "power_w": money.power_w,
                "energy_source": None if money.power_w is None else "estimated",
                "hardware_usd": money.purchase_usd,
                "usd_per_million_tokens": per_million(money.usd, 1.0),
                "usd_per_million_tokens_low": per_million(money.usd_low, 1 / (1 + spread)),
                "usd_per_million_tokens_high": per_million(money.usd_high, 1 + spread),
                "price_status": money.status,
                "speed_status": speed,
                "figures_unverified": not money.sourced or (speed is not None and speed not in SOURCED),
                "accuracy": candidate.accuracy,
                "upper_bound": calibration.upper_bound,
                "calibration": calibration.source,
                "notes": "; ".join(notes) or None,
            }
        )
    return rows


# -- questions ------------------------------------------------------------------------------------------------------


def meets(
    row: Mapping[str, Any],
    tpot_s: float | None = None,
    ttft_s: float | None = None,
    accuracy: float | None = None,
    dense: bool = False,
) -> bool:
    """Whether a row of the plan is feasible and holds the limits; an unknown accuracy holds none.

    ``dense`` asks as MBU-thinking would: with the TPOT of reading every expert.
    """
    if not row["feasible"]:
        return False
    if tpot_s is not None and row["tpot_dense_s" if dense else "tpot_s"] > tpot_s:
        return False
    if ttft_s is not None and row["ttft_s"] > ttft_s:
        return False
    return accuracy is None or (row["accuracy"] is not None and row["accuracy"] >= accuracy)


def cheapest(
    rows: Iterable[Mapping[str, Any]],
    tpot_s: float | None = None,
    ttft_s: float | None = None,
    accuracy: float | None = None,
    by: str = "usd_per_million_tokens",
    dense: bool = False,
) -> Row | None:
    """The cheapest row that holds the limits, by cost per token or (``by="hardware_usd"``) to buy; None: none."""
    held = [r for r in rows if r.get(by) is not None and meets(r, tpot_s, ttft_s, accuracy, dense)]
    order = ("hardware_usd", "usd_per_million_tokens")
    return dict(min(held, key=lambda r: (r[by], *(r[o] or math.inf for o in order)))) if held else None


def answer(
    table: pa.Table | Sequence[Mapping[str, Any]],
    tpot_s: float | None = None,
    ttft_s: float | None = None,
    accuracy: float | None = None,
) -> dict[str, Any]:
    """What the plan was made for: the cheapest, the largest batch, and what MBU-thinking would have bought instead.

    A prediction that measured runs have calibrated and a bare roofline, which no engine reaches, are not compared with
    each other: where there are both, the answer is about the former, and ``bounds`` about the latter.

    Returns:
        ``cheapest_per_token`` and ``cheapest_to_buy`` (rows or None), ``largest_batch`` (per model, precision, hardware
        and devices), ``mbu`` (the cheapest to buy that MBU's count would have let through) and ``mbu_extra_usd``: what
        it costs more to buy; None where one of the two is None. ``points``, ``feasible``, ``meeting``: how many rows;
        ``workloads``: (prompt, output) tokens of a request.
        ``bounds``: the same three rows of the uncalibrated points, None where all or none are. ``why_none``: where no
        row holds the limits, what comes nearest to it, or why nothing can be served.
    """
    rows = table.to_pylist() if isinstance(table, pa.Table) else list(table)
    limits = (tpot_s, ttft_s, accuracy)
    calibrated, bare = ([r for r in rows if r["upper_bound"] == bound] for bound in (False, True))
    chosen = _choose(calibrated or bare, *limits)
    buy, dense = chosen["cheapest_to_buy"], chosen["mbu"]
    largest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row[k] for k in SYSTEM)
        largest.setdefault(
            key,
            {**{k: row[k] for k in SYSTEM}, "largest_batch": row["largest_batch"], "largest_batch_in_time": None},
        )
        if meets(row, *limits):
            known = largest[key]["largest_batch_in_time"] or 0
            largest[key]["largest_batch_in_time"] = max(known, row["batch_size"])
    meeting = sum(meets(r, *limits) for r in rows)
    return {
        "points": len(rows),
        "workloads": sorted({(r["prompt_tokens"], r["output_tokens"]) for r in rows}),
        "feasible": sum(bool(r["feasible"]) for r in rows),
        "meeting": meeting,
        "upper_bound": any(r["upper_bound"] for r in rows),
        **chosen,
        "mbu_extra_usd": None if buy is None or dense is None else dense["hardware_usd"] - buy["hardware_usd"],
        "bounds": _choose(bare, *limits) if calibrated and bare else None,
        "why_none": [] if meeting else _why_none(rows),
        "largest_batch": list(largest.values()),
    }


#: What a row of the plan would be bought as.
SYSTEM = ("model", "precision", "hardware", "devices")


def _choose(
    rows: Sequence[Mapping[str, Any]], tpot_s: float | None, ttft_s: float | None, accuracy: float | None
) -> dict[str, Row | None]:
    limits = (tpot_s, ttft_s, accuracy)
    return {
        "cheapest_per_token": cheapest(rows, *limits),
        "cheapest_to_buy": cheapest(rows, *limits, by="hardware_usd"),
        "mbu": cheapest(rows, *limits, by="hardware_usd", dense=True),
    }


def _why_none(rows: Sequence[Mapping[str, Any]], most: int = 5) -> list[str]:
    """The fastest that can be served; where nothing can, the reasons, of each system at its smallest batch."""
    feasible = [r for r in rows if r["feasible"]]
    if feasible:
        best = min(feasible, key=lambda r: r["tpot_s"])
        known = "unknown" if best["accuracy"] is None else f"{best['accuracy']:.3f}"
        return [
            f"the fastest of what can be served is {best['devices']} x {best['hardware']}: {best['model']} "
            f"{best['precision']}, batch {best['batch_size']}, TPOT {best['tpot_s'] * 1e3:,.3g} ms, TTFT "
            f"{best['ttft_s'] * 1e3:,.3g} ms, accuracy {known}"
        ]
    first: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda r: r["batch_size"]):
        first.setdefault(tuple(row[k] for k in SYSTEM), row)
    said = [
        f"{r['devices']} x {r['hardware']}: {r['model']} {r['precision']}, batch {r['batch_size']}: {r['reason']}"
        for r in first.values()
    ]
    return [*said[:most], *([f"and {len(said) - most} more"] if len(said) > most else [])]


def in_words(found: Mapping[str, Any]) -> str:
    """What :func:`answer` found (and ``required_bytes_per_s``, ``cross_check``, where they are there), for a reader."""
    served = " and ".join(f"{prompt} prompt + {output} output tokens" for prompt, output in found["workloads"])
    lines = [
        f"{found['points']:,} points ({served} a request), {found['feasible']:,} can be served, {found['meeting']:,} "
        "meet the limits",
        "",
    ]
    titles = {
        "cheapest_per_token": "cheapest per token",
        "cheapest_to_buy": "cheapest to buy",
        "mbu": "MBU-thinking would buy",
    }

    def choices(of: Mapping[str, Any]) -> list[str]:
        return [f"{title:24} {'none' if of[key] is None else _row_in_words(of[key])}" for key, title in titles.items()]

    lines += choices(found)
    if found["mbu_extra_usd"]:
        lines.append(f"{'':24} {found['mbu_extra_usd']:,.0f} USD more")
    lines += [f"{'why none':24} {reason}" for reason in found["why_none"]]
    chosen = [found[key] for key in ("cheapest_per_token", "cheapest_to_buy") if found[key] is not None]
    for row in found["largest_batch"]:
        if any(all(row[k] == c[k] for k in SYSTEM) for c in chosen):
            fits, in_time = row["largest_batch"], row["largest_batch_in_time"]
            lines.append(
                f"{'largest batch':24} {row['devices']} x {row['hardware']}: {row['model']} {row['precision']}, "
                f"{'no limit' if fits is None else f'{fits:,.0f}'} fit in memory, {in_time} is the largest planned one "
                "within the limits"
            )
    for need in found.get("required_bytes_per_s", []):
        lines.append(
            f"{need['model']} {need['precision']} at batch {need['batch_size']} needs {need['s_mbu'] / 1e12:,.3g} TB/s "
            f"by S-MBU, {need['mbu'] / 1e12:,.3g} TB/s by MBU, for that TPOT"
        )
    if found["bounds"]:
        lines += [
            "",
            "On hardware where nothing was measured, by the roofline alone. No engine reaches it: not to be compared "
            "with the above.",
            *choices(found["bounds"]),
        ]
    if found.get("cross_check"):
        lines += ["", found["cross_check"]]
    return "\n".join(lines)


def _row_in_words(row: Mapping[str, Any]) -> str:
    bound = (
        "a roofline's bound: throughput at the most, times and cost at the least"
        if row["upper_bound"]
        else f"calibrated on {row['calibration']}"
    )
    unsure = ", rests on unverified figures" if row["figures_unverified"] else ""
    low, high = row["usd_per_million_tokens_low"], row["usd_per_million_tokens_high"]
    by = "by prices alone: " if row["upper_bound"] else ""
    between = f" ({by}{low:,.3g} to {high:,.3g})" if low is not None and high > low else ""
    return (
        f"{row['devices']} x {row['hardware']}: {row['model']} {row['precision']}, batch {row['batch_size']}, "
        f"TPOT {row['tpot_s'] * 1e3:,.3g} ms, TTFT {row['ttft_s'] * 1e3:,.3g} ms, "
        f"{row['output_tokens_per_s']:,.0f} token/s, {row['hardware_usd']:,.0f} USD, "
        f"{row['usd_per_million_tokens']:,.3g} USD per 10⁶ tokens{between}; "
        f"prices {row['price_status']}{unsure}; {bound}"
    )
