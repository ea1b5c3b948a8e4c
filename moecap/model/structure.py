"""What a model is made of, as numbers: parameters, bytes, FLOPs and KV per layer and component.

Pure data: no torch, no files. :mod:`moecap.model.counted` fills it from a config, :mod:`moecap.model.stored` puts in
the bytes of a checkpoint, everything else reads it. Layers that count alike share one :class:`LayerKind`; the model is
the list of kinds, which layer has which kind, and what lies outside the layers.

Units: ``*_params`` and ``*_elements`` are counts, ``*_bytes`` bytes, ``*_flops`` floating-point operations for one
token (a multiply-add is two).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from moecap.errors import MoecapError

#: The components of a model, in the order in which tables show them.
COMPONENTS = (
    "attention",
    "router",
    "routed_experts",
    "shared_experts",
    "dense_mlp",
    "norms",
    "embedding",
    "lm_head",
    "other",
)

#: Components that belong to a layer, and the name of their fields in :class:`LayerKind`.
LAYER_COMPONENTS = {
    "attention": "attention",
    "router": "router",
    "routed_experts": "expert",
    "shared_experts": "shared",
    "dense_mlp": "dense_mlp",
    "norms": "norm",
    "other": "other",
}

SCHEMA_VERSION = 1
#: Fields that an anatomy written by an older version does not have.
MTP_FIELDS = ("mtp_layers", "mtp_params", "mtp_bytes")
#: Contexts, in tokens, for which an anatomy states its KV cached and read.
CONTEXTS = (1024, 8192, 32768, 131072, 1048576)


@dataclass(frozen=True)
class Component:
    """Parameters and stored bytes of one component over the whole model."""

    params: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Cache:
    """One list of entries that a layer keeps for every sequence. What is kept and what is read are two things.

    Attributes:
        elements: elements of one entry (keys and values of all heads, a compressed latent, an indexer's key).
        tokens: tokens that one entry stands for: 1, or more where a layer compresses runs of tokens into one.
        window: tokens after which the oldest entries are dropped; None: never.
        chunked: the window does not slide: it starts anew at every multiple of itself.
        read_limit: entries that one query reads at most (sparse attention); None: all that are kept.
        heads: KV heads, over which tensor parallelism splits the entry; 1: it is whole on every rank; 0: it has none.
        flops_per_pair: FLOP for one query and one entry that it reads.
        index: it holds the keys by which an indexer chooses what is read of the others; whole on every rank.
    """

    elements: int
    tokens: int = 1
    window: int | None = None
    chunked: bool = False
    read_limit: int | None = None
    heads: int = 0
    flops_per_pair: int = 0
    index: bool = False


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer; every figure is that of ONE layer, and of ONE routed expert.

    Attributes:
        count: layers of this kind.
        stack: where they lie: ``decoder`` or ``encoder`` (an encoder runs once per request, not once per token).
        attention: how the layer remembers: ``full``, ``sliding``, ``chunked``, ``latent`` (MLA), ``linear`` (a constant
            state), ``mixed`` (several at once) or ``none``.
        expert_params, expert_bytes: one routed expert as stored, its scales and biases included.
        experts, top_k: 0 in a layer without routed experts.
        zero_experts: choices of the router that compute nothing; ``top_k`` counts them, so fewer experts may be used.
        shared_params, shared_bytes: all shared experts of the layer together, with their gate.
        kv_elements_per_token, kv_bytes_per_token: what the KV cache grows by per token, before any window.
        kv_window: tokens after which the KV stops growing; None: never.
        cache_parts: what the KV consists of, in layers that keep more than one list of keys and values, or read less of
            it than they keep; empty: one list, read whole (:attr:`caches` has it in any case).
        cross_kv_elements_per_token: KV per token of the encoder that the layer's cross-attention reads.
        state_bytes: constant state per sequence of a linear-attention layer.
        query_heads, qk_head_dim, v_head_dim: score FLOPs per query-key pair: 2·query_heads·(qk_head_dim+v_head_dim).
            ``query_heads`` are those of all ``attention_blocks`` of the layer together, ``kv_heads`` those of one.
        expert_width: inner width of one routed expert; 0: none, or not known.
        attention_kv_params: the part of ``attention_params`` that makes keys and values: tensor parallelism splits it
            by KV heads. ``attention_replicated_params``: down-projections (MLA), indexers: whole on every rank.
        *_flops: of the matrix products per token (2 per weight), context-dependent attention scores not included.
    """

    count: int
    attention_params: int = 0
    attention_bytes: int = 0
    router_params: int = 0
    router_bytes: int = 0
    expert_params: int = 0
    expert_bytes: int | float = 0
    experts: int = 0
    top_k: int = 0
    shared_params: int = 0
    shared_bytes: int = 0
    dense_mlp_params: int = 0
    dense_mlp_bytes: int = 0
    norm_params: int = 0
    norm_bytes: int = 0
    other_params: int = 0
    other_bytes: int = 0
    kv_elements_per_token: int = 0
    kv_bytes_per_token: int = 0
    kv_window: int | None = None
    cache_parts: tuple[Cache, ...] = ()
    state_bytes: int = 0
    query_heads: int = 0
    attention_blocks: int = 1
    qk_head_dim: int = 0
    v_head_dim: int = 0
    kv_heads: int = 0
    expert_width: int = 0
    zero_experts: int = 0
    attention_kv_params: int = 0
    attention_replicated_params: int = 0
    cross_kv_elements_per_token: int = 0
    attention: str = "full"
    stack: str = "decoder"
    attention_flops: int = 0
    router_flops: int = 0
    expert_flops: int = 0
    shared_flops: int = 0
    dense_mlp_flops: int = 0
    other_flops: int = 0

    def __post_init__(self) -> None:
        parts = tuple(part if isinstance(part, Cache) else Cache(**part) for part in self.cache_parts)
        object.__setattr__(self, "cache_parts", parts)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The lists of entries that the layer keeps; at least one (of no elements, where nothing is kept per token)."""
        if self.cache_parts:
            return self.cache_parts
        whole = Cache(
            self.kv_elements_per_token,
            window=self.kv_window,
            chunked=self.attention == "chunked",
            heads=1 if self.attention == "latent" else self.kv_heads,
            flops_per_pair=self.score_flops_per_pair,
        )
        return (whole,)

    @property
    def kv_dtype_bytes(self) -> float:
        """Bytes of a KV element; 0 where the layer keeps none."""
        return self.kv_bytes_per_token / self.kv_elements_per_token if self.kv_elements_per_token else 0.0

    def kv_bytes_read(self, context: float) -> float:
        """Bytes of KV that decoding one token reads with ``context`` tokens in the cache, its own included."""
        from moecap.model.reads import entries_read

        return self.kv_dtype_bytes * sum(c.elements * float(entries_read(c, context - 1, 1)) for c in self.caches)

    def kv_bytes_cached(self, context: float) -> float:
        """Bytes of KV that a sequence of ``context`` tokens holds in one layer."""
        from moecap.model.reads import entries_cached

        return self.kv_dtype_bytes * sum(c.elements * float(entries_cached(c, context)) for c in self.caches)

    def score_flops(self, first: float, tokens: float) -> float:
        """FLOP of the attention scores of computing positions ``first`` to ``first + tokens - 1``."""
        from moecap.model.reads import pairs

        return sum(cache.flops_per_pair * float(pairs(cache, first, tokens)) for cache in self.caches)

    @property
    def params(self) -> int:
        """Parameters of the layer, every routed expert included."""
        return sum(self.component_params(name) for name in LAYER_COMPONENTS)

    @property
    def active_params(self) -> int:
        """Parameters that one token uses: ``top_k`` of the routed experts, everything else."""
        return self.params - (self.experts - self.top_k) * self.expert_params

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of the layer, every routed expert included."""
        return sum(self.component_bytes(name) for name in LAYER_COMPONENTS)

    @property
    def fixed_bytes(self) -> int:
        """Bytes that every step reads, whatever the routing: all but the routed experts."""
        return self.weight_bytes - self.component_bytes("routed_experts")

    @property
    def score_flops_per_pair(self) -> int:
        """FLOPs per query-key pair: q·k and p·v over all query heads."""
        return 2 * self.query_heads * (self.qk_head_dim + self.v_head_dim)

    @property
    def block_heads(self) -> int:
        """Query heads of one attention block: what tensor parallelism shares out."""
        return self.query_heads // self.attention_blocks

    @property
    def flops_per_token(self) -> int:
        """FLOPs of the layer's matrix products for one token, attention scores not included."""
        return (
            self.attention_flops
            + self.router_flops
            + self.top_k * self.expert_flops
            + self.shared_flops
            + self.dense_mlp_flops
            + self.other_flops
        )

    def component_params(self, component: str) -> int:
        """Parameters of a component in this layer (``routed_experts``: all of them)."""
        own = getattr(self, f"{LAYER_COMPONENTS[component]}_params")
        return own * self.experts if component == "routed_experts" else own

    def component_bytes(self, component: str) -> int:
        """Stored bytes of a component in this layer (``routed_experts``: all of them)."""
        own = getattr(self, f"{LAYER_COMPONENTS[component]}_bytes")
        return round(own * self.experts) if component == "routed_experts" else own


@dataclass(frozen=True)
class Anatomy:
    """A model counted. ``components`` covers the whole model and sums to ``total_params`` and ``weight_bytes``.

    Attributes:
        model, precision: what was counted; precision names how the weights are stored (``bf16``, ``int4``, …).
        active_params: parameters per token, with the whole embedding and head.
        kinds, layer_kind: the kinds of layers, and the kind's index for each layer (encoder layers first).
        tied_embeddings: the head is the embedding; it is counted once, under ``embedding``.
        embedding_row_bytes: what one token reads of the embedding.
        kv_dtype_bytes: bytes per KV element (2: bf16, 1: fp8).
        compute_dtypes: per component, the dtypes that its matrices are multiplied in, with the share of its weights in
            each (attention scores are not in it). Empty: not known.
        unread: bytes that are stored but that decoding does not read (MTP layers, a vision tower), by name; they are
            in no component.
        mtp_layers, mtp_params, mtp_bytes: layers of multi-token prediction, in no component and in no total; an engine
            that drafts with them holds them in memory. An estimate: as many as the last layer has, and a projection
            of two hidden states to one, with three norms, each.
        source: what the bytes were counted from: ``config`` (planned) or ``checkpoint`` (safetensors headers).
        notes: what a reader should know, e.g. an unpinned revision.
    """

    model: str
    precision: str
    total_params: int
    active_params: int
    components: Mapping[str, Component]
    kinds: tuple[LayerKind, ...]
    layer_kind: tuple[int, ...]
    hidden_size: int
    vocab_size: int
    tied_embeddings: bool
    embedding_row_bytes: int
    kv_dtype_bytes: float
    unread: Mapping[str, int] = field(default_factory=dict)
    compute_dtypes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = "config"
    notes: tuple[str, ...] = ()
    mtp_layers: int = 0
    mtp_params: int = 0
    mtp_bytes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        object.__setattr__(self, "layer_kind", tuple(self.layer_kind))
        object.__setattr__(self, "notes", tuple(self.notes))
        counts = [self.layer_kind.count(i) for i in range(len(self.kinds))]
        if counts != [kind.count for kind in self.kinds]:
            raise MoecapError(f"{self.model}: the layers per kind {counts} do not match the list of layers.")
        params = sum(c.params for c in self.components.values())
        if params != self.total_params:
            raise MoecapError(
                f"{self.model}: the components hold {params} parameters, but the model has {self.total_params}; "
                "this is a fault of the count, not of the model. Please report it with the config."
            )

    # -- layers

    @property
    def layers(self) -> int:
        """Number of layers (encoder and decoder together)."""
        return len(self.layer_kind)

    @cached_property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer, in order."""
        return tuple(self.kinds[i] for i in self.layer_kind)

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that have routed experts."""
        return tuple(i for i, kind in enumerate(self.layer_kinds) if kind.experts)

    @property
    def experts(self) -> int:
        """Routed experts of a MoE layer (the most, where layers differ); 0 for a dense model."""
        return max((kind.experts for kind in self.kinds), default=0)

    @property
    def top_k(self) -> int:
        """Routed experts per token (the most, where layers differ); 0 for a dense model."""
        return max((kind.top_k for kind in self.kinds), default=0)

    # -- bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that inference reads (``unread`` ones are not in it)."""
        return sum(c.bytes for c in self.components.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in the checkpoint: what inference reads, and what it does not."""
        return self.weight_bytes + sum(self.unread.values())

    @property
    def head_read_bytes(self) -> int:
        """Bytes of the head that a decode step reads: the embedding once more where the two are tied."""
        return self.components["embedding" if self.tied_embeddings else "lm_head"].bytes

    @property
    def head_flops(self) -> int:
        """FLOPs of the head for one token."""
        return 2 * self.components["embedding" if self.tied_embeddings else "lm_head"].params

    @cached_property
    def caches(self) -> tuple[tuple[int, Cache], ...]:
        """Every cache of every kind of layer, with the kind's index, in order: what a step table counts entries of.

        One per kind, but for kinds that keep several lists (sparse attention's keys of its indexer, compressed KV).
        """
        return tuple((index, cache) for index, kind in enumerate(self.kinds) for cache in kind.caches)

    @cached_property
    def cache_bytes(self) -> tuple[float, ...]:
        """Bytes of one entry of each of :attr:`caches`, over all layers of its kind."""
        return tuple(
            self.kinds[index].count * cache.elements * self.kinds[index].kv_dtype_bytes for index, cache in self.caches
        )

    def kv_bytes_cached(self, context: float) -> float:
        """Bytes of KV that a sequence of ``context`` tokens holds, constant state not included."""
        return sum(kind.count * kind.kv_bytes_cached(context) for kind in self.kinds)

    def kv_bytes_read(self, context: float) -> float:
        """Bytes of KV that decoding one token reads with ``context`` tokens in the cache, its own included."""
        return sum(kind.count * kind.kv_bytes_read(context) for kind in self.kinds)

    @property
    def kv_elements_per_token(self) -> int:
        """KV elements that one token adds, over all layers whose KV grows, before window limits."""
        return sum(kind.count * kind.kv_elements_per_token for kind in self.kinds)

    @property
    def kv_bytes_per_token(self) -> int:
        """KV bytes that one token adds, over all layers whose KV grows, before window limits."""
        return sum(kind.count * kind.kv_bytes_per_token for kind in self.kinds)

    @property
    def state_bytes(self) -> int:
        """Constant state per sequence (linear attention, convolutions), over all layers."""
        return sum(kind.count * kind.state_bytes for kind in self.kinds)

    @property
    def flops_per_token(self) -> int:
        """FLOPs of all matrix products for one token (head included), attention scores not included."""
        return self.head_flops + sum(kind.count * kind.flops_per_token for kind in self.kinds)

    # -- views

    def with_kv_dtype_bytes(self, kv_dtype_bytes: float) -> Anatomy:
        """The same model with another KV dtype (1 for an fp8 cache)."""
        kinds = tuple(
            replace(kind, kv_bytes_per_token=round(kind.kv_elements_per_token * kv_dtype_bytes)) for kind in self.kinds
        )
        return replace(self, kinds=kinds, kv_dtype_bytes=kv_dtype_bytes)

    def table(self) -> list[dict[str, Any]]:
        """One row per layer × component, and per component outside the layers (``layer`` is None)."""
        rows: list[dict[str, Any]] = []
        inside = dict.fromkeys(COMPONENTS, (0, 0))
        for index, kind in enumerate(self.layer_kinds):
            for component, name in LAYER_COMPONENTS.items():
                params, size = kind.component_params(component), kind.component_bytes(component)
                inside[component] = (inside[component][0] + params, inside[component][1] + size)
                if not params and not size:
                    continue
                flops = getattr(kind, f"{name}_flops", 0) * (kind.top_k if component == "routed_experts" else 1)
                rows.append(
                    {
                        "layer": index,
                        "kind": self.layer_kind[index],
                        "component": component,
                        "params": params,
                        "bytes": size,
                        "flops_per_token": flops,
                    }
                )
        for component in COMPONENTS:
            whole = self.components[component]
            params, size = whole.params - inside[component][0], whole.bytes - inside[component][1]
            head = component == ("embedding" if self.tied_embeddings else "lm_head")
            if params or size:
                rows.append(
                    {
                        "layer": None,
                        "kind": None,
                        "component": component,
                        "params": params,
                        "bytes": size,
                        "flops_per_token": self.head_flops if head else 0,
                    }
                )
        return rows

    def to_json(self) -> dict[str, Any]:
        """The anatomy as plain data; :meth:`from_json` reads it back."""
        kinds = [
            {
                **asdict(kind),
                "params": kind.params,
                "active_params": kind.active_params,
                "weight_bytes": kind.weight_bytes,
                "flops_per_token": kind.flops_per_token,
                "score_flops_per_pair": kind.score_flops_per_pair,
            }
            for kind in self.kinds
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "precision": self.precision,
            "source": self.source,
            "total_params": self.total_params,
            "active_params": self.active_params,
            "layers": self.layers,
            "moe_layers": len(self.moe_layers),
            "moe_layer_indices": list(self.moe_layers),
            "experts": self.experts,
            "top_k": self.top_k,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "kv_elements_per_token": self.kv_elements_per_token,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_dtype_bytes": self.kv_dtype_bytes,
            "kv_at": [
                {
                    "context_tokens": context,
                    "cached_bytes": round(self.kv_bytes_cached(context)),
                    "read_bytes": round(self.kv_bytes_read(context)),
                }
                for context in CONTEXTS
            ],
            "state_bytes": self.state_bytes,
            "mtp_layers": self.mtp_layers,
            "mtp_params": self.mtp_params,
            "mtp_bytes": self.mtp_bytes,
            "weight_bytes": self.weight_bytes,
            "stored_bytes": self.stored_bytes,
            "unread": dict(self.unread),
            "compute_dtypes": {name: dict(shares) for name, shares in self.compute_dtypes.items()},
            "flops_per_token": self.flops_per_token,
            "tied_embeddings": self.tied_embeddings,
            "embedding_row_bytes": self.embedding_row_bytes,
            "components": {name: asdict(self.components[name]) for name in COMPONENTS},
            "layer_kinds": kinds,
            "layer_kind": list(self.layer_kind),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str) -> Anatomy:
        """Read what :meth:`to_json` wrote (a dict, or its JSON text).

        Raises:
            MoecapError: a key is missing, or the file was written by another version of the format.
        """
        if isinstance(data, str):
            return cls.from_json(json.loads(data))
        if data.get("schema_version") != SCHEMA_VERSION:
            raise MoecapError(
                f"This anatomy has schema_version {data.get('schema_version')!r}, this version reads "
                f"{SCHEMA_VERSION}. Delete the file to have it made again."
            )
        names = {f.name for f in fields(LayerKind)}
        try:
            own: dict[str, Any] = {
                f.name: data[f.name]
                for f in fields(cls)
                if f.name not in {"components", "kinds", "compute_dtypes", *MTP_FIELDS}
            }
            own |= {name: data.get(name, 0) for name in MTP_FIELDS}
            return cls(
                **own,
                compute_dtypes=data.get("compute_dtypes", {}),
                components={name: Component(**data["components"][name]) for name in COMPONENTS},
                kinds=tuple(LayerKind(**{k: v for k, v in kind.items() if k in names}) for kind in data["layer_kinds"]),
            )
        except KeyError as error:
            raise MoecapError(f"This anatomy lacks the key {error}. Delete the file to have it made again.") from error
