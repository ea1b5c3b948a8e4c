"""What the time of a decode step and of a prefill is made of: a few terms, each with a physical meaning.

    step = bytes of experts / bandwidth × kernel's slope (+ dequantization)   experts
         + MoE layers × the kernel's fixed time                              expert_launch
         + bytes of other weights, KV and state / bandwidth                  memory
         + layers                                                            layers
         + layers with a latent KV, shared experts                           extra_ops
         + layers × log2(devices), layers with more than one device          sync, sync_any
         + bytes between devices / bandwidth of their links                  links
         + activations written and read per token                            activations
         + FLOP / peak                                                       compute
         + requests: scheduling, sampling, text on the host                  requests
         + 1 per step                                                        step
    TPOT = (step + requests / output tokens × prefill of one request) × (requests / requests that fit)^overload

The sum, with a coefficient per term (:mod:`moecap.plan.prior`), is what an engine takes; the roofline
(:mod:`moecap.plan.counts`) is what the hardware allows. In the steady state of a closed loop each request's decode
sees the prefill of every other once, hence the share of the prefill. Where the KV of the concurrency does not fit,
requests wait or are preempted; what runs is what fits.

A fused MoE kernel's slope and fixed time are measured alone (``data/kernels.yaml``). A format that the chip cannot
multiply in (int4; mxfp4 before Blackwell) is unpacked first: its elements take time, whatever the bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from moecap.errors import MoecapError
from moecap.hardware.systems import Speeds
from moecap.metrics.utilization import moe_kinds
from moecap.model.parallel import PerDevice, per_device
from moecap.model.structure import Anatomy, LayerKind
from moecap.plan.counts import expected_unique_experts
from moecap.plan.names import DATA
from moecap.plan.target import USABLE_MEMORY, Workload, stored_format
from moecap.schema import read_yaml

ACTIVATION_BYTES = 2
#: Terms of a decode step, in the order of :attr:`Terms.decode`; those of a prefill in that of :attr:`Terms.prefill`.
DECODE = ("experts", "expert_launch", "memory", "layers", "extra_ops", "sync", "sync_any", "links", "activations",
          "compute", "requests", "step")  # fmt: skip
PREFILL = ("prefill_compute", "prefill_activations", "prefill_links")


@dataclass(frozen=True)
class Parallel:
    """How devices share a model: ``tp``, ``dp`` split attention, ``ep`` places experts whole, ``pp`` splits layers."""

    tp: int = 1
    dp: int = 1
    ep: int = 1
    pp: int = 1

    @property
    def devices(self) -> int:
        return self.tp * self.dp * self.pp

    def __str__(self) -> str:
        parts = [f"{name}{value}" for name, value in self.__dict__.items() if value > 1]
        return "-".join(parts) or "tp1"


@dataclass(frozen=True)
class Terms:
    """Times in s with coefficients of 1, per concurrency: ``decode`` and ``prefill`` of shape (concurrencies, terms).

    Attributes:
        running: requests that run together: those of the concurrency whose KV fits.
        fits_requests: how many fit; below 1 the weights leave no room for one.
        prefill: of ONE request.
        roofline_s: what the hardware allows at least, for a decode step of the running requests.
        read_bytes: what all devices together read in that step; ``flops`` what they compute.
        dense_read_bytes: the same with every expert read.
    """

    concurrency: np.ndarray
    running: np.ndarray
    fits_requests: float
    decode: np.ndarray
    prefill: np.ndarray
    roofline_s: np.ndarray
    read_bytes: np.ndarray
    dense_read_bytes: np.ndarray
    flops: np.ndarray
    prefill_roofline_s: float
    weight_bytes: float
    request_bytes: float
    bytes_per_s: float
    peak_flops: float

    @property
    def over(self) -> np.ndarray:
        """log of how many times the concurrency exceeds what fits; 0 where it fits."""
        return np.log(np.maximum(self.concurrency / max(self.fits_requests, 1.0), 1.0))


@lru_cache(maxsize=1)
def kernels() -> Mapping[str, Any]:
    """``data/kernels.yaml``: slope and fixed time of fused MoE kernels by format of the weights."""
    return read_yaml(DATA / "kernels.yaml")


def native(fmt: str, speeds: Speeds) -> bool:
    """Whether the chip multiplies in the format that the weights are stored in; else they are unpacked first."""
    dtype = kernels()["formats"][fmt]["multiplies_in"]
    return dtype is not None and speeds.peak_flops.get(dtype) is not None


def compute_peak(fmt: str, speeds: Speeds) -> float | None:
    """Dense FLOP/s of the products: the format's own where the chip has it, else that of 16-bit activations."""
    facts = kernels()["formats"][fmt]
    dtype = facts.get("peak") if native(fmt, speeds) else "bf16"
    peak = speeds.peak_flops.get(dtype or "bf16")
    return peak if peak is not None else speeds.peak_flops.get("fp16") or speeds.peak_flops.get("fp32")


def terms(
    anatomy: Anatomy,
    speeds: Speeds,
    parallel: Parallel,
    concurrency: Sequence[float] | np.ndarray,
    workload: Workload,
    profile: Sequence[np.ndarray] | None = None,
    context: float | None = None,
    usable_memory: float = USABLE_MEMORY,
    drafted: int = 0,
) -> Terms:
    """The terms of a deployment, per concurrency.

    Args:
        anatomy: the model, at the precision that is served.
        speeds: of one device.
        concurrency: requests that are open together, shape (n,).
        profile: routing, as in :func:`moecap.plan.counts.expected_unique_experts`.
        context: tokens that a request's attention sees on average; None: the prompt and half of the output.
        drafted: tokens that a step verifies beside the one that it makes anyway (speculative decoding).

    Raises:
        MoecapError: degrees of parallelism that the model does not allow, no known peak.
    """
    asked = np.asarray(concurrency, dtype=np.float64)
    shard = per_device(anatomy, tp=parallel.tp, dp=parallel.dp, ep=parallel.ep, pp=parallel.pp)
    layer = _Layers(anatomy, shard, parallel)
    fmt = stored_format(anatomy.precision)
    peak, peak16 = compute_peak(fmt, speeds), compute_peak("bf16", speeds)
    if peak is None or peak16 is None:
        raise MoecapError(f"No peak FLOP/s is known that {anatomy.precision} could be computed with.")
    longest = workload.prompt_tokens + workload.output_tokens
    request = layer.held_bytes(longest) + layer.state_bytes
    room = usable_memory * speeds.memory_bytes - shard.weight_bytes
    fits = room / (request / parallel.pp) * parallel.dp if request else math.inf
    running = np.minimum(asked, max(fits, 1.0)) / parallel.pp  # a pipeline holds pp batches
    rank = running / parallel.dp
    tokens, own = running * (1 + drafted), rank * (1 + drafted)
    seen = context if context is not None else workload.prompt_tokens + workload.output_tokens / 2
    bandwidth = speeds.memory_bytes_per_s
    experts = _experts(anatomy, shard, parallel, tokens, profile)
    memory = layer.fixed_bytes + rank * (layer.kv_bytes(seen) + layer.state_bytes)
    compute16 = own * (layer.attention_flops + layer.score_flops(seen)) / peak16
    compute = compute16 + (own * layer.dense_flops + tokens * layer.expert_flops) / peak
    link = speeds.link_bytes_per_s or speeds.pcie_bytes_per_s
    moved = layer.moved_bytes(own, tokens)
    row = own * anatomy.layers * anatomy.hidden_size * ACTIVATION_BYTES / bandwidth
    several = float(parallel.tp * parallel.dp > 1)
    ones = np.ones_like(running)
    slope, launch = _kernel(fmt, native(fmt, speeds), bandwidth)
    decode = np.stack(
        [
            experts.bytes * slope + experts.elements * _dequantization(fmt, speeds),
            ones * len(anatomy.moe_layers) * launch,
            memory / bandwidth,
            ones * anatomy.layers * 1e-3,
            ones * layer.extra_layers * 1e-3,
            ones * anatomy.layers * math.log2(parallel.tp * parallel.dp) * 1e-3,
            ones * anatomy.layers * several * 1e-3 + ones * (parallel.pp - 1) * 1e-3,
            moved / link if link else 0.0 * ones,
            row,
            compute,
            running * 1e-6,
            ones * 1e-3,
        ],
        axis=1,
    )
    prefill = _prefill(anatomy, layer, parallel, workload, bandwidth, peak, peak16, link)
    read = experts.mean_bytes + memory
    dense = layer.all_expert_bytes + memory
    width = parallel.tp * parallel.dp
    return Terms(
        concurrency=asked,
        running=running * parallel.pp,
        fits_requests=fits,
        decode=decode,
        prefill=prefill,
        roofline_s=np.maximum(read / bandwidth, compute),
        read_bytes=read * width,
        dense_read_bytes=dense * width,
        flops=compute * peak * width,
        prefill_roofline_s=max(float(prefill[0]), layer.fixed_bytes / bandwidth),
        weight_bytes=float(shard.weight_bytes),
        request_bytes=float(request),
        bytes_per_s=bandwidth,
        peak_flops=peak,
    )


def _kernel(fmt: str, is_native: bool, bandwidth: float) -> tuple[float, float]:
    facts = kernels()
    slope = facts["formats"][fmt]["slope"] if is_native else facts["unpacked"]["slope"]
    return slope / bandwidth, facts["formats"][fmt]["launch_s"]


def _dequantization(fmt: str, speeds: Speeds) -> float:
    if native(fmt, speeds):
        return 0.0
    return 1.0 / float(kernels()["unpacked"]["elements_per_s"])


@dataclass(frozen=True)
class _Experts:
    """Bytes of routed experts that the busiest device (and the mean one) reads in a step, and their elements."""

    bytes: np.ndarray
    mean_bytes: np.ndarray
    elements: np.ndarray


def _experts(
    anatomy: Anatomy, shard: PerDevice, parallel: Parallel, tokens: np.ndarray, profile: Sequence[np.ndarray] | None
) -> _Experts:
    kinds = moe_kinds(anatomy)
    if not kinds:
        none = np.zeros_like(tokens)
        return _Experts(none, none, none)
    unique = expected_unique_experts(anatomy, tokens, profile) / parallel.ep
    held = np.array([k.experts / parallel.ep for k in kinds])
    busiest = unique
    if parallel.ep > 1:
        spread = np.sqrt(2 * unique * (1 - 1 / parallel.ep) * math.log(parallel.ep))
        busiest = np.minimum(unique + spread * np.maximum(1 - unique / held, 0.0), held)
    cut = parallel.ep / (parallel.tp * parallel.dp)
    size = np.array([k.expert_bytes for k in kinds], dtype=np.float64) * cut
    elements = np.array([k.expert_params for k in kinds], dtype=np.float64) * cut
    return _Experts(busiest @ size, unique @ size, busiest @ elements)


#: Small operations of a layer beyond the 14 of grouped-query attention with plain experts.
LATENT_OPS, INDEXER_OPS = 4, 14


@dataclass(frozen=True)
class _Layers:
    """Sums over a model's layers of what one device holds, reads and computes (its share of each layer)."""

    anatomy: Anatomy
    shard: PerDevice
    parallel: Parallel
    kinds: tuple[LayerKind, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", self.shard.kinds)

    def _sum(self, values: Sequence[float]) -> float:
        return float(sum(k.count * v for k, v in zip(self.kinds, values, strict=True)))

    @property
    def fixed_bytes(self) -> float:
        """Weights that every step reads: all but the routed experts, and the head."""
        inside = self._sum([k.fixed_bytes for k in self.kinds])
        return inside + self.anatomy.head_read_bytes / self.parallel.tp

    @property
    def all_expert_bytes(self) -> float:
        return self._sum([k.experts / self.parallel.ep * k.expert_bytes for k in self.kinds])

    @property
    def state_bytes(self) -> float:
        return self._sum([k.state_bytes for k in self.kinds])

    @property
    def extra_layers(self) -> float:
        """Layers' small operations beyond those of grouped-query attention with plain experts, in layers.

        A latent KV adds a low-rank pair, its norms and the absorbed products; a choice of what to read its own
        projections, rotation, quantization, scores and top-k; shared experts and a recurrent state their own products.
        """

        def extra(kind: LayerKind) -> float:
            own = LATENT_OPS if kind.attention in ("latent", "linear") else 0
            chooses = INDEXER_OPS if any(cache.read_limit for cache in kind.caches) else 0
            return (own + chooses + (2 if kind.shared_params else 0)) / 14

        return self._sum([extra(k) for k in self.kinds])

    def held_bytes(self, tokens: float) -> float:
        """KV that a request of so many tokens keeps."""
        return self._sum([k.kv_bytes_per_token * min(tokens, k.kv_window or tokens) for k in self.kinds])

    def kv_bytes(self, tokens: float) -> float:
        """KV that a step of one request reads."""
        return self._sum([k.kv_bytes_read(tokens) for k in self.kinds])

    @property
    def attention_flops(self) -> float:
        return self._sum([k.attention_flops for k in self.kinds])

    def score_flops(self, tokens: float) -> float:
        return self._sum([k.score_flops(tokens - 1, 1) for k in self.kinds])

    @property
    def dense_flops(self) -> float:
        inside = self._sum([k.shared_flops + k.dense_mlp_flops + k.router_flops + k.other_flops for k in self.kinds])
        return inside + self.anatomy.head_flops / self.parallel.tp

    @property
    def expert_flops(self) -> float:
        """Of one token, over all devices of a stage together, divided by their number: its experts lie anywhere."""
        width = self.parallel.tp * self.parallel.dp
        return sum(k.count * k.top_k * k.expert_flops for k in self.anatomy.kinds) / width

    def moved_bytes(self, rank: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Between devices: two all-reduces per layer; with data-parallel attention gathering and scattering tokens."""
        row = self.anatomy.hidden_size * ACTIVATION_BYTES
        reduced = 2 * self.anatomy.layers * rank * row if self.parallel.tp > 1 else 0.0 * rank
        gathered = 2 * len(self.anatomy.moe_layers) * running * row if self.parallel.dp > 1 else 0.0 * rank
        return reduced + gathered


def _prefill(
    anatomy: Anatomy,
    layer: _Layers,
    parallel: Parallel,
    workload: Workload,
    bandwidth: float,
    peak: float,
    peak16: float,
    link: float | None,
) -> np.ndarray:
    """One request's prefill: (FLOP / peak, activations, bytes over links), shape (3,)."""
    prompt, width = workload.prompt_tokens, parallel.tp * parallel.dp
    products = prompt * sum(k.count * k.flops_per_token for k in anatomy.kinds)
    scores = sum(k.count * k.score_flops(0, prompt) for k in anatomy.kinds)
    row = prompt * anatomy.layers * anatomy.hidden_size * ACTIVATION_BYTES
    moved = 2 * row / link if link and width > 1 else 0.0
    return np.array([products / width / peak + scores / width / peak16, row / bandwidth, moved])
