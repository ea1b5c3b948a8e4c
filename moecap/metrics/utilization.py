"""Equations (1) to (4) of the MoE-CAP paper: MBU, MFU, S-MBU and S-MFU, as printed and complete.

The four functions take plain numbers, NumPy arrays or pandas Series, so that they assess any system, not only those
that this project measured. Mixtral-8x7B in bf16, decoded at batch 1, against a server of 2 TB/s and 312 TFLOP/s:

>>> from moecap import mbu, mfu, s_mbu, s_mfu
>>> attention, expert, layers = 41_943_040, 176_160_768, 32    # parameters per layer
>>> kv_bytes = 1000 * 32 * 2 * 8 * 128 * 2                     # a context of 1000 tokens
>>> model_bytes = layers * (attention + 8 * expert) * 2
>>> activated_bytes = layers * (attention + 2 * expert) * 2    # two experts of eight were chosen in every layer
>>> round(mbu(model_bytes, kv_bytes, tpot_s=0.050, peak_bytes_per_s=2.0e12), 3)  # what MBU says
0.93
>>> round(s_mbu(activated_bytes, kv_bytes, tpot_s=0.050, peak_bytes_per_s=2.0e12), 3)  # what was really read
0.254
>>> round(s_mfu(20.0, flops_per_token=activated_bytes, peak_flops=312e12), 5)  # 2 FLOP a weight, and 2 bytes
0.00162

A whole run is a column per quantity; bytes and times are summed before they are divided (a mean of ratios would let a
short step weigh as much as a long one):

>>> import numpy as np
>>> from moecap.metrics.utilization import aggregate
>>> step_bytes, step_s = np.array([40e9, 90e9]), np.array([0.03, 0.05])
>>> round(aggregate(step_bytes, step_s, peak=2.0e12), 4)
0.8125

*As printed* counts what the paper's equations name: attention and experts (and dense feed-forward blocks, which
equation (3) calls a model with one expert). *Complete* adds what a step reads or computes besides: router, norms,
shared experts' gates, lm_head, one embedding row per token, linear-attention state, activations; the attention scores
for FLOPs. Nothing here clips: a utilization above 1 says that the bytes, the time or the peak are wrong, and must be
seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moecap.errors import MoecapError, nearest
from moecap.model.reads import pair_flops

if TYPE_CHECKING:
    from moecap.model.structure import Anatomy, LayerKind

Values = Any  # a number, a NumPy array, a list or a pandas Series

# Components whose weights every step reads whole, whatever the routing.
_READ_WHOLE = ("attention", "router", "shared_experts", "dense_mlp", "norms", "other")


# ---------------------------------------------------------------- the equations


def mbu(model_bytes: Values, kv_bytes: Values, tpot_s: Values, peak_bytes_per_s: Values) -> Values:
    """Memory bandwidth utilization, equation (1): ``(S_model + S_KV) / TPOT / B_peak``.

    Args:
        model_bytes: S_model, all layers' attention and feed-forward weights, in bytes, whether used or not.
        kv_bytes: S_KV, the KV cache that a step reads, in bytes.
        tpot_s: time per output token: of one decode step, in seconds.
        peak_bytes_per_s: peak memory bandwidth, over all devices that hold the bytes.

    Returns:
        A fraction (never clipped at 1): a float, an array, or a Series where one was given; NaN stays NaN.

    Raises:
        MoecapError: a time or a peak that is zero or negative, a negative size.

    >>> round(mbu(model_bytes=93.4e9, kv_bytes=0.1e9, tpot_s=0.05, peak_bytes_per_s=2e12), 3)
    0.935
    """
    return _bandwidth("mbu", "model_bytes", model_bytes, kv_bytes, tpot_s, peak_bytes_per_s)


def s_mbu(activated_bytes: Values, kv_bytes: Values, tpot_s: Values, peak_bytes_per_s: Values) -> Values:
    """Sparse memory bandwidth utilization, equation (3): ``(S_activated + S_KV) / TPOT / B_peak``.

    Args:
        activated_bytes: S_activated, the weights that the step touched: each layer's attention and the union of the
            experts that the step's tokens were sent to, in bytes.
        kv_bytes, tpot_s, peak_bytes_per_s: as in :func:`mbu`.

    Returns and raises as :func:`mbu`.

    >>> round(s_mbu(activated_bytes=25.8e9, kv_bytes=0.1e9, tpot_s=0.05, peak_bytes_per_s=2e12), 3)
    0.259
    """
    return _bandwidth("s_mbu", "activated_bytes", activated_bytes, kv_bytes, tpot_s, peak_bytes_per_s)


def mfu(tokens_per_s: Values, flops_per_token: Values, peak_flops: Values) -> Values:
    """Model FLOPS utilization, equation (2): ``T_token × F_token / F_peak`` with ``F_token = 2 N``.

    Args:
        tokens_per_s: T_token, tokens per second.
        flops_per_token: F_token, floating-point operations of one token's forward pass: twice all parameters.
        peak_flops: dense (not 2:4-sparse) peak in FLOP/s, of the type that the GEMMs run in, over all devices.

    Returns and raises as :func:`mbu`.

    >>> round(mfu(tokens_per_s=1000, flops_per_token=2 * 46.7e9, peak_flops=312e12), 3)
    0.299
    """
    return _compute("mfu", tokens_per_s, flops_per_token, peak_flops)


def s_mfu(tokens_per_s: Values, flops_per_token: Values, peak_flops: Values) -> Values:
    """Sparse model FLOPS utilization, equation (4): ``T_token × S-F_token / F_peak``.

    Args:
        tokens_per_s: T_token, tokens per second.
        flops_per_token: S-F_token, ``2 N_attn + 2 N_router + 2 k N_expert`` summed over layers
            (:func:`printed_sparse_flops_per_token`).
        peak_flops: as in :func:`mfu`.

    Returns and raises as :func:`mbu`.

    >>> round(s_mfu(tokens_per_s=1000, flops_per_token=2 * 12.9e9, peak_flops=312e12), 3)
    0.083
    """
    return _compute("s_mfu", tokens_per_s, flops_per_token, peak_flops)


def aggregate(amount: Values, time_s: Values, peak: float) -> float:
    """Utilization over many steps: ``sum(amount) / sum(time) / peak``, never the mean of the steps' ratios.

    Args:
        amount: bytes read or FLOP done, per step.
        time_s: seconds, per step; all positive.
        peak: bytes/s or FLOP/s.
    """
    _require_positive("aggregate", time_s=time_s, peak=peak)
    total = np.sum(_numbers("aggregate", "amount", amount))
    return float(total / np.sum(_numbers("aggregate", "time_s", time_s)) / peak)


def overestimation(model_bytes: Values, activated_bytes: Values, kv_bytes: Values = 0) -> Values:
    """How many times MBU overstates S-MBU: ``(S_model + S_KV) / (S_activated + S_KV)``; 3.68 is +268%."""
    _require_positive("overestimation", activated_bytes=activated_bytes)
    return _plain((_operand(model_bytes) + _operand(kv_bytes)) / (_operand(activated_bytes) + _operand(kv_bytes)))


def above_one(utilization: Values) -> Values:
    """Whether a utilization exceeds 1, which no hardware does: bytes, time or peak are wrong. NaN is not above 1."""
    return _plain(_operand(utilization) > 1.0)


def peak_flops_of(peaks: Mapping[str, float | None], compute_dtype: str, source: str = "the hardware") -> float:
    """The dense peak that applies to GEMMs which run in ``compute_dtype``.

    Weight-only quantization (W4A16, W8A16: GPTQ, AWQ) dequantizes and multiplies in the activations' type, so its
    compute dtype is ``bf16``, not ``int4``; W8A8 multiplies in ``int8``.

    Args:
        peaks: FLOP/s per dtype, dense.
        compute_dtype: the type that the GEMMs run in.
        source: named in the error.

    Raises:
        MoecapError: no peak of that type is known. It is never taken as zero, nor borrowed from another type.
    """
    value = peaks.get(compute_dtype)
    if value is None:
        known = [dtype for dtype, peak in peaks.items() if peak is not None]
        raise MoecapError(
            f"No peak FLOP/s is known for compute type {compute_dtype!r} on {source}. {nearest(compute_dtype, known)} "
            "Weight-only quantization computes in its activations' type (W4A16: bf16); else add the dense peak with "
            "its source to the hardware catalogue, or calibrate the machine."
        )
    if not value > 0:
        raise MoecapError(f"The peak FLOP/s of {compute_dtype!r} on {source} is {value}; it must be positive.")
    return float(value)


# ---------------------------------------------------------------- sizes as the equations print them


def printed_model_bytes(anatomy: Anatomy) -> int:
    """S_model of equation (1): ``sum over layers of (S_attn + S_ff)``, every expert, as stored, in bytes."""
    return _over_layers(
        anatomy, lambda k: k.attention_bytes + k.experts * k.expert_bytes + k.shared_bytes + k.dense_mlp_bytes
    )


def printed_activated_bytes(anatomy: Anatomy, unique_experts: Values) -> Values:
    """S_activated of equation (3): ``n_layer × S_attn + sum over layers of (experts used × S_expert)``.

    Shared experts are experts that every token uses (Figure 2c); a dense feed-forward block is the equation's own
    special case of one expert, always used.

    Args:
        anatomy: sizes, as stored.
        unique_experts: routed experts that at least one token of the step used, shape (..., MoE layers).

    Returns:
        Bytes, shape (...).
    """
    always = _over_layers(anatomy, lambda k: k.attention_bytes + k.shared_bytes + k.dense_mlp_bytes)
    return _plain(always + expert_bytes_read(anatomy, unique_experts))


def printed_kv_bytes(anatomy: Anatomy, context_tokens: Values) -> Values:
    """S_KV of equations (1) and (3): the KV cache that the step's attention reads, at the cache's own dtype.

    Args:
        anatomy: bytes of an entry of each cache (at the KV dtype, whatever the weights are stored in).
        context_tokens: entries read, summed over the step's requests, as :func:`moecap.model.reads.entries_read` has
            them (windows, compression and sparse attention's choice of what to read), shape (..., caches).

    Returns:
        Bytes, shape (...).
    """
    per_entry = np.array(anatomy.cache_bytes, dtype=np.float64)
    return _plain(_last_axis("context_tokens", context_tokens, len(per_entry)) @ per_entry)


def printed_flops_per_token(anatomy: Anatomy) -> int:
    """F_token of equation (2): ``2 N``, N all parameters."""
    return 2 * anatomy.total_params


def printed_sparse_flops_per_token(anatomy: Anatomy) -> int:
    """S-F_token of equation (4), summed over layers: ``2 N_attn + 2 N_router + 2 k_expert N_expert``.

    ``k_expert`` counts the shared experts with the top-k routed ones (the paper's §4.3); a dense feed-forward block
    is one expert with k = 1. Attention scores, norms, embedding and lm_head are not in the equation.
    """

    def per_token(k: LayerKind) -> int:
        mlp = k.router_params + k.top_k * k.expert_params + k.shared_params + k.dense_mlp_params
        return 2 * (k.attention_params + mlp)

    return _over_layers(anatomy, per_token)


def expert_bytes_read(anatomy: Anatomy, unique_experts: Values) -> Values:
    """Bytes of the routed experts that a step reads: ``sum over MoE layers of (unique experts × stored expert size)``.

    Args:
        anatomy: stored size of one expert of each kind of layer (scales and zero points included).
        unique_experts: shape (..., MoE layers), in the order of ``anatomy.moe_layers``.

    Raises:
        MoecapError: another number of MoE layers, or more experts than a layer has.
    """
    kinds = moe_kinds(anatomy)
    unique = _last_axis("unique_experts", unique_experts, len(kinds))
    limit = np.array([k.experts for k in kinds])
    if unique.size and ((unique > limit).any() or (unique < 0).any()):
        raise MoecapError(
            f"unique_experts ranges from {unique.min()} to {unique.max()}; {anatomy.model} has {sorted(set(limit))} "
            "routed experts per MoE layer. The step table belongs to another model."
        )
    return _plain(unique @ np.array([k.expert_bytes for k in kinds], dtype=np.float64))


def moe_kinds(anatomy: Anatomy) -> list[LayerKind]:
    """The kind of each MoE layer, in layer order (the order of ``unique_experts``)."""
    return [anatomy.kinds[index] for index in anatomy.layer_kind if anatomy.kinds[index].experts > 0]


# ---------------------------------------------------------------- complete counts


def complete_bytes(
    anatomy: Anatomy,
    *,
    tokens: Values,
    requests: Values,
    context_tokens: Values,
    unique_experts: Values | None = None,
    activation_dtype_bytes: int = 2,
) -> dict[str, np.ndarray]:
    """Everything that engine steps read, by component, in bytes; sum the values for the complete byte count.

    Args:
        anatomy: sizes as stored.
        tokens: tokens computed per step, shape (steps,).
        requests: requests in the step, shape (steps,): each has one row of logits and one linear-attention state.
        context_tokens: entries of KV read, summed over requests, shape (steps, caches).
        unique_experts: routed experts used, shape (steps, MoE layers); None: all of them (the complete form of MBU).
        activation_dtype_bytes: size of one activation.

    Returns:
        component → bytes, each of shape (steps,). ``activations`` is an estimate (:func:`activation_elements`),
        the rest is counted.
    """
    tokens = np.asarray(tokens, dtype=np.float64)
    requests = np.asarray(requests, dtype=np.float64)
    used = tokens > 0

    def weights(component: str) -> np.ndarray:
        return used * float(anatomy.components[component].bytes)

    every = np.array([k.experts for k in moe_kinds(anatomy)], dtype=np.float64)
    per_token, per_request = activation_elements(anatomy)
    return {
        **{component: weights(component) for component in _READ_WHOLE},
        "routed_experts": used * expert_bytes_read(anatomy, every if unique_experts is None else unique_experts),
        "lm_head": used * float(anatomy.head_read_bytes),
        "embedding": tokens * float(anatomy.embedding_row_bytes),
        "kv": np.asarray(printed_kv_bytes(anatomy, context_tokens)),
        "state": requests * float(anatomy.state_bytes),
        "activations": activation_dtype_bytes * (tokens * per_token + requests * per_request),
    }


def complete_flops(
    anatomy: Anatomy, *, tokens: Values, requests: Values, attention_pairs: Values, dense: bool = False
) -> dict[str, np.ndarray]:
    """Floating-point operations of engine steps, by component: matrix products and attention scores.

    A product with a weight of N elements is 2 N operations per token; a (query, key) pair is
    ``2 × heads × (qk_head_dim + v_head_dim)`` per layer (scores and values), of an indexer ``2 × heads × head_dim``.
    Softmax, norms, activation functions and
    the update of a linear-attention state are left out (well under 1%).

    Args:
        anatomy: parameters and head shapes.
        tokens: tokens computed per step, shape (steps,).
        requests: requests in the step: each has one row of logits computed, shape (steps,).
        attention_pairs: (query, key) pairs, as :func:`moecap.model.reads.pairs` has them, summed over requests, shape
            (steps, caches).
        dense: count every routed expert for every token (the complete form of MFU) instead of the top-k.

    Returns:
        component → FLOP, each of shape (steps,).
    """
    tokens = np.asarray(tokens, dtype=np.float64)
    requests = np.asarray(requests, dtype=np.float64)

    def products(flops: Callable[[LayerKind], int]) -> np.ndarray:
        return tokens * float(_over_layers(anatomy, flops))

    per_pair = pair_flops(anatomy)
    return {
        "attention": products(lambda k: k.attention_flops),
        "attention_scores": _last_axis("attention_pairs", attention_pairs, len(per_pair)) @ per_pair,
        "router": products(lambda k: k.router_flops),
        "routed_experts": products(lambda k: (k.experts if dense else k.top_k) * k.expert_flops),
        "shared_experts": products(lambda k: k.shared_flops),
        "dense_mlp": products(lambda k: k.dense_mlp_flops),
        "other": products(lambda k: k.other_flops),
        "lm_head": requests * float(anatomy.head_flops),
    }


def activation_elements(anatomy: Anatomy) -> tuple[float, float]:
    """Estimated activations moved, in elements: (per token, per request), as each matrix product's input and output.

    This is the floor of an engine that fuses everything between two products; one that does not moves more. Widths
    follow from parameter counts (a gated MLP has three matrices of hidden × width; two-matrix ones come out a third
    lower).
    """
    hidden = float(anatomy.hidden_size)

    def mlp(params: float) -> float:
        width = params / (3.0 * hidden)
        return 2.0 * hidden + 3.0 * width if params else 0.0

    def layer(k: LayerKind) -> float:
        query, value = k.query_heads * k.qk_head_dim, k.query_heads * k.v_head_dim
        latents = k.attention_replicated_params / hidden  # made, and multiplied again (MLA)
        attention = 2.0 * hidden + 2.0 * (query + value + latents) + k.kv_elements_per_token
        router = hidden + k.experts if k.experts else 0.0
        return attention + router + k.top_k * mlp(k.expert_params) + mlp(k.shared_params) + mlp(k.dense_mlp_params)

    return float(_over_layers(anatomy, layer)), hidden + float(anatomy.vocab_size)


# ---------------------------------------------------------------- memory tiers


def split_by_tier(
    read_bytes: Mapping[str, Values], placement: Mapping[str, Mapping[str, float]], device: str = "hbm"
) -> dict[str, np.ndarray]:
    """Bytes read per memory tier for weights that are (partly) offloaded.

    Args:
        read_bytes: component → bytes (:func:`complete_bytes`).
        placement: component → {tier: share of what is read of it}, tiers ``hbm``, ``dram``, ``ssd``; shares add up to
            1; a component that is not named is on the device.
        device: the tier of the device's own memory.

    Returns:
        tier → bytes. What does not lie on the device also crosses ``pcie``, unless the device is the CPU (``dram``);
        what lies on ``ssd`` also passes ``dram``.

    Raises:
        MoecapError: an unknown component, or shares that do not add up to 1.
    """
    for component, shares in placement.items():
        if component not in read_bytes:
            raise MoecapError(f"Unknown component {component!r} in the placement. {nearest(component, read_bytes)}")
        if abs(sum(shares.values()) - 1.0) > 1e-9 or min(shares.values()) < 0:
            raise MoecapError(f"The shares of {component!r} are {dict(shares)}; they must be ≥ 0 and add up to 1.")
    tiers: dict[str, np.ndarray] = {}
    for component, amount in read_bytes.items():
        for tier, share in placement.get(component, {device: 1.0}).items():
            passes = [tier] if tier == device else [tier, *([] if device == "dram" else ["pcie"])]
            passes += ["dram"] if tier == "ssd" else []
            for passed in passes:
                tiers[passed] = tiers.get(passed, 0.0) + share * np.asarray(amount, dtype=np.float64)
    return tiers


def tier_utilization(
    bytes_by_tier: Mapping[str, Values], time_s: Values, peak_bytes_per_s: Mapping[str, float]
) -> dict[str, float]:
    """Utilization of each tier's bandwidth over the same steps: ``sum(bytes of the tier) / sum(time) / its peak``.

    Raises:
        MoecapError: a tier with bytes but without a peak, zero or negative times.
    """
    missing = [tier for tier in bytes_by_tier if peak_bytes_per_s.get(tier) is None]
    if missing:
        raise MoecapError(
            f"No peak bandwidth is given for memory tier {', '.join(missing)}. {nearest(missing[0], peak_bytes_per_s)}"
        )
    return {tier: aggregate(amount, time_s, peak_bytes_per_s[tier]) for tier, amount in bytes_by_tier.items()}


# ---------------------------------------------------------------- helpers


def _bandwidth(name: str, weights_name: str, weights: Values, kv: Values, time: Values, peak: Values) -> Values:
    _require_positive(name, tpot_s=time, peak_bytes_per_s=peak)
    _require_not_negative(name, **{weights_name: weights, "kv_bytes": kv})
    return _plain((_operand(weights) + _operand(kv)) / (_operand(time) * _operand(peak)))


def _compute(name: str, rate: Values, flops: Values, peak: Values) -> Values:
    _require_positive(name, peak_flops=peak)
    _require_not_negative(name, tokens_per_s=rate, flops_per_token=flops)
    return _plain(_operand(rate) * _operand(flops) / _operand(peak))


def _operand(value: Values) -> Any:
    """Series stay Series (their index aligns); everything else becomes a float array."""
    return value if hasattr(value, "index") and hasattr(value, "to_numpy") else np.asarray(value, dtype=np.float64)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0 else value


def _numbers(function: str, name: str, value: Values) -> np.ndarray:
    try:
        if hasattr(value, "to_numpy") and hasattr(value, "index"):
            return np.asarray(value.to_numpy(dtype=float, na_value=np.nan))
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MoecapError(f"{function}: {name} is {value!r}; a number, an array or a Series is needed.") from error


def _require_positive(function: str, **values: Values) -> None:
    for name, value in values.items():
        numbers = _numbers(function, name, value)
        if (numbers <= 0).any():
            worst = numbers.min() if numbers.ndim == 0 else np.nanmin(numbers)
            raise MoecapError(f"{function}: {name} must be positive, but {worst:g} was given.")


def _require_not_negative(function: str, **values: Values) -> None:
    for name, value in values.items():
        numbers = _numbers(function, name, value)
        if (numbers < 0).any():
            raise MoecapError(f"{function}: {name} must not be negative, but {np.nanmin(numbers):g} was given.")


def _last_axis(name: str, value: Values, length: int) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim == 0 or array.shape[-1] != length:
        raise MoecapError(f"{name} has shape {array.shape}; its last axis must have {length} entries for this model.")
    return array


def _over_layers(anatomy: Anatomy, of_kind: Callable[[LayerKind], Any]) -> Any:
    return sum(kind.count * of_kind(kind) for kind in anatomy.kinds)
