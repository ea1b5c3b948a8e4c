"""Bytes and FLOPs per device under tensor, expert, pipeline and data parallelism.

The rules are those of vLLM and SGLang: tensor parallelism (TP) splits matrices by heads, widths and vocabulary; with
fewer KV heads than ranks a head's keys and values are kept more than once, and a compressed KV (MLA) on every rank;
norms and routers are kept whole everywhere. Expert parallelism (EP) places whole experts over the TP × DP ranks of a
stage; without it every expert is split over those ranks. Pipeline parallelism (PP) cuts the layers into runs. Data
parallelism (DP) repeats the rest; replicas that share nothing are systems of their own, each with dp = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Literal

from moecap.errors import MoecapError
from moecap.model.structure import COMPONENTS, LAYER_COMPONENTS, Anatomy, Cache, LayerKind


@dataclass(frozen=True)
class Stage:
    """What one device of a pipeline stage holds: ``layers`` [first, last), bytes by component, KV, FLOPs."""

    layers: tuple[int, int]
    components: Mapping[str, int]
    kv_bytes_per_token: int
    state_bytes: int
    flops_per_token: float

    @property
    def weight_bytes(self) -> int:
        return sum(self.components.values())


@dataclass(frozen=True)
class PerDevice:
    """A model spread over devices. The figures of a model without qualification are those of its heaviest device.

    ``kinds`` are the anatomy's kinds of layers with a device's bytes and FLOPs; parameters stay global.
    ``experts`` is the number of routed experts whose weights (or shards) a device holds per MoE layer.
    """

    anatomy: Anatomy
    tp: int
    ep: int
    pp: int
    dp: int
    stages: tuple[Stage, ...]
    kinds: tuple[LayerKind, ...]
    experts: int

    @property
    def devices(self) -> int:
        return self.tp * self.dp * self.pp

    @property
    def heaviest(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.weight_bytes)

    @property
    def weight_bytes(self) -> int:
        return self.heaviest.weight_bytes

    @property
    def components(self) -> Mapping[str, int]:
        return self.heaviest.components

    @property
    def kv_bytes_per_token(self) -> int:
        return max(stage.kv_bytes_per_token for stage in self.stages)

    @property
    def state_bytes(self) -> int:
        return max(stage.state_bytes for stage in self.stages)

    def _over_layers(self, figure: Callable[[LayerKind], float]) -> float:
        """A figure of one layer, summed over those of the stage in which it is largest."""
        each = [figure(self.kinds[index]) for index in self.anatomy.layer_kind]
        return max(sum(each[slice(*stage.layers)]) for stage in self.stages)

    def kv_bytes_cached(self, context: float) -> float:
        """Bytes of KV that a device holds of a sequence of ``context`` tokens."""
        return self._over_layers(lambda kind: kind.kv_bytes_cached(context))

    def kv_bytes_read(self, context: float) -> float:
        """Bytes of KV that a device reads to decode one token of a sequence of ``context`` tokens."""
        return self._over_layers(lambda kind: kind.kv_bytes_read(context))

    @property
    def flops_per_token(self) -> float:
        """FLOPs per token that the busiest stage's device does, tokens spread evenly over experts."""
        return max(stage.flops_per_token for stage in self.stages)


def per_device(
    anatomy: Anatomy,
    tp: int = 1,
    ep: int = 1,
    pp: int = 1,
    dp: int = 1,
    shared: Literal["split", "replicate"] = "split",
) -> PerDevice:
    """Spread a model over tp × pp × dp devices.

    Args:
        tp, ep, pp, dp: degrees of parallelism. ``ep`` divides tp × dp; on its own (tp = dp = 1) it means that attention
            is data-parallel over the same devices.
        shared: whether shared experts are split by TP or kept whole on every rank.

    Raises:
        MoecapError: a degree below 1, heads that do not divide, more expert ranks than experts or stages than layers.

    With 8 ranks and 4 KV heads every head lies on two ranks: a rank's KV is a quarter, not an eighth.
    """
    for name, degree in (("tp", tp), ("ep", ep), ("pp", pp), ("dp", dp)):
        if not isinstance(degree, int) or degree < 1:
            raise MoecapError(f"{name} is {degree!r}; a degree of parallelism is a whole number from 1.")
    if shared not in ("split", "replicate"):
        raise MoecapError(f"shared is {shared!r}; shared experts are 'split' or 'replicate'.")
    if ep > 1 and tp * dp == 1:
        dp = ep
    if (tp * dp) % ep:
        raise MoecapError(
            f"ep is {ep}, which does not divide tp × dp = {tp * dp}: experts are placed over those ranks."
        )
    if ep > 1 and not anatomy.experts:
        raise MoecapError(f"ep is {ep}, but {anatomy.model} has no routed experts to place.")
    if ep > max(anatomy.experts, 1):
        raise MoecapError(
            f"ep is {ep}, but {anatomy.model} has {anatomy.experts} experts per layer; some ranks would be idle."
        )
    if pp > anatomy.layers:
        raise MoecapError(f"pp is {pp}, but {anatomy.model} has {anatomy.layers} layers.")
    for kind in anatomy.kinds:
        _check_heads(anatomy.model, kind, tp)
    kinds = tuple(_shard(kind, tp, ep, dp, shared) for kind in anatomy.kinds)
    placed = max((_experts_here(kind, ep) for kind in anatomy.kinds), default=0)
    stages = tuple(
        _stage(anatomy, kinds, first, last, tp, ep, number == 0, number == pp - 1)
        for number, (first, last) in enumerate(split_layers(anatomy.layers, pp))
    )
    return PerDevice(anatomy, tp, ep, pp, dp, stages, kinds, placed)


def split_layers(layers: int, pp: int) -> tuple[tuple[int, int], ...]:
    """Runs of layers per stage: as even as can be, the extra ones on the last stages but the very last (as in vLLM).

    >>> split_layers(10, 4)
    ((0, 2), (2, 5), (5, 8), (8, 10))
    """
    sizes = [layers // pp] * pp
    extra = layers % pp
    for i in range(2, extra + 2):
        sizes[-i if pp >= i else -1] += 1
    edges = [0]
    for size in sizes:
        edges.append(edges[-1] + size)
    return tuple(pairwise(edges))


def kv_share(kind: LayerKind, tp: int) -> Fraction:
    """A rank's share of a layer's KV: whole heads, so never less than one; a compressed KV is on every rank."""
    if kind.attention in {"latent", "none"} or not kind.kv_heads:
        return Fraction(1) if kind.attention == "latent" else Fraction(1, tp)
    return Fraction(ceil(Fraction(kind.kv_heads, tp)), kind.kv_heads)


def _shard_cache(cache: Cache, tp: int) -> Cache:
    """A rank's part of a cache: whole KV heads and its own query heads; all of what an indexer has."""
    share = Fraction(ceil(Fraction(cache.heads, tp)), cache.heads) if cache.heads else Fraction(1, tp)
    flops = cache.flops_per_pair if cache.index else cache.flops_per_pair // tp
    return replace(cache, elements=round(cache.elements * share), flops_per_pair=flops)


def _check_heads(model: str, kind: LayerKind, tp: int) -> None:
    if kind.block_heads % tp:
        raise MoecapError(f"tp is {tp}, which does not divide the {kind.block_heads} attention heads of {model}.")
    heads = kind.kv_heads if kind.attention != "latent" else 0
    if heads and heads % tp and tp % heads:
        raise MoecapError(f"tp is {tp}, but {model} has {heads} KV heads: neither divides the other.")


def _experts_here(kind: LayerKind, ep: int) -> int:
    return ceil(kind.experts / ep)


def _shard(kind: LayerKind, tp: int, ep: int, dp: int, shared: str) -> LayerKind:
    """One layer as one device has it: bytes and FLOPs divided, parameters global."""
    keys = kv_share(kind, tp)
    whole = Fraction(1)
    if kind.attention_params:
        kv, kept = kind.attention_kv_params, kind.attention_replicated_params
        rest = kind.attention_params - kv - kept
        attention = (kv * keys + kept * whole + Fraction(rest, tp)) / kind.attention_params
    else:
        attention = Fraction(1, tp)
    # Experts: whole ones over the EP ranks; what ranks are left over share an expert, as all do without EP.
    cut = Fraction(ep, tp * dp)
    shared_part = Fraction(1, tp) if shared == "split" else whole

    def part(value: float, share: Fraction) -> int:
        return round(Fraction(value).limit_denominator(10**6) * share)

    kept = part(kind.kv_elements_per_token, keys)
    caches = tuple(_shard_cache(cache, tp) for cache in kind.cache_parts)
    if caches:
        kept = round(sum(cache.elements / cache.tokens for cache in caches))
    return replace(
        kind,
        cache_parts=caches,
        attention_bytes=part(kind.attention_bytes, attention),
        attention_flops=part(kind.attention_flops, attention),
        expert_bytes=float(Fraction(kind.expert_bytes).limit_denominator(10**6) * cut),
        expert_flops=part(kind.expert_flops, cut),
        shared_bytes=part(kind.shared_bytes, shared_part),
        shared_flops=part(kind.shared_flops, shared_part),
        dense_mlp_bytes=part(kind.dense_mlp_bytes, Fraction(1, tp)),
        dense_mlp_flops=part(kind.dense_mlp_flops, Fraction(1, tp)),
        kv_elements_per_token=kept,
        kv_bytes_per_token=round(kept * kind.kv_dtype_bytes) if caches else part(kind.kv_bytes_per_token, keys),
        cross_kv_elements_per_token=part(kind.cross_kv_elements_per_token, keys),
        state_bytes=part(kind.state_bytes, Fraction(1, tp)),
        query_heads=kind.query_heads // tp,
    )


def _stage(
    anatomy: Anatomy,
    kinds: tuple[LayerKind, ...],
    first: int,
    last: int,
    tp: int,
    ep: int,
    has_embedding: bool,
    has_head: bool,
) -> Stage:
    sizes = dict.fromkeys(COMPONENTS, 0)
    kv = state = 0
    flops = 0.0
    for index in anatomy.layer_kind[first:last]:
        kind = kinds[index]
        for component, name in LAYER_COMPONENTS.items():
            own = getattr(kind, f"{name}_bytes")
            sizes[component] += round(own * _experts_here(kind, ep)) if component == "routed_experts" else own
        kv += kind.kv_bytes_per_token
        state += kind.state_bytes
        # A token's experts lie on any of the EP ranks alike: a rank does 1/ep of them.
        flops += kind.flops_per_token - kind.top_k * kind.expert_flops * (1 - 1 / ep)
    outside = {row["component"]: row["bytes"] for row in anatomy.table() if row["layer"] is None}
    if has_embedding:
        sizes["embedding"] += ceil(outside.get("embedding", 0) / tp)
        sizes["other"] += outside.get("other", 0)
    if has_head:
        tied_elsewhere = anatomy.tied_embeddings and not has_embedding
        sizes["lm_head"] += ceil(outside.get("embedding" if tied_elsewhere else "lm_head", 0) / tp)
        sizes["norms"] += outside.get("norms", 0)
        flops += anatomy.head_flops / tp
    return Stage((first, last), sizes, kv, state, flops)
