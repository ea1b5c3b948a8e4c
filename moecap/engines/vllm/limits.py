"""What vLLM refuses when it loads a model: sizes that the ways of sharing it out do not divide.

Read in the sources of vLLM 0.32 (the file is named beside each rule). The planner and the checks of a campaign ask the
same function, so that nothing is bought, queued or sold as cheapest that no engine would load. What is not known
(None) is not objected to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from moecap.model.structure import Anatomy

#: vLLM pads the vocabulary to a multiple of this before it is shared out (layers/vocab_parallel_embedding.py).
VOCABULARY_PADDING = 64


@dataclass(frozen=True)
class Sizes:
    """What of a model is shared out.

    Attributes:
        heads: (query heads, KV heads) of each kind of attention; KV heads None: a compressed KV (MLA), kept everywhere.
        head_dim: width of a head; None: not known.
        state_heads: heads of linear attention or state-space layers, by the name that the config gives them.
        experts: routed experts of a layer; 0: a dense model.
        expert_width: inner width of one routed expert.
        other_widths: inner widths of dense and shared-expert blocks, by what they are.
    """

    hidden: int | None = None
    vocabulary: int | None = None
    layers: int | None = None
    heads: tuple[tuple[int, int | None], ...] = ()
    head_dim: int | None = None
    state_heads: Mapping[str, int] = field(default_factory=dict)
    experts: int | None = None
    expert_width: int | None = None
    other_widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """How a model is shared out, as the columns of the deployment table say it."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    data_parallel: int = 1


@dataclass(frozen=True)
class Scales:
    """How many weights share a scale: fp8 in blocks of (outputs, inputs), or groups along the input (int4).

    ``attention`` says whether attention is stored so too.
    """

    block: tuple[int, int] | None = None
    group: int | None = None
    attention: bool = False


#: What released configs call the same thing; the first that is there counts.
_NAMES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "d_model", "n_embd"),
    "vocabulary": ("vocab_size",),
    "layers": ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    "query_heads": ("num_attention_heads", "n_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "n_head_kv", "multi_query_group_num"),
    "head_dim": ("head_dim",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "expert_width": ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size"),
    "dense": ("dense_intermediate_size", "intermediate_size_mlp", "intermediate_size", "ffn_hidden_size"),
    "shared": ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size"),
}
#: Heads of further kinds of attention: query heads, KV heads, and what switches the kind on where a config has it.
_OTHER_HEADS = (
    ("swa_num_attention_heads", "swa_num_key_value_heads", None),
    ("num_attention_heads", "num_global_key_value_heads", "attention_k_eq_v"),
)
#: One entry per layer, in configs that state no number of layers.
_LAYER_LISTS = ("layers_block_type", "hybrid_override_pattern", "layer_types")
#: A key with one of these words, and a value, speaks of a mixture of experts.
_EXPERT_WORDS = ("expert", "moe")
_STATE_HEADS = ("linear_num_key_heads", "linear_num_value_heads", "mamba_num_heads")
_PARTS = ("text_config", "llm_config", "attn_config", "ffn_config")


def sizes_of_config(config: Mapping[str, Any]) -> Sizes:
    """Sizes from a Hugging Face ``config.json``, nested text configs included; no torch."""
    if isinstance(config.get("shapes"), Mapping):
        return sizes_of_shapes(config["shapes"])
    flat: dict[str, Any] = dict(config)
    for part in _PARTS:
        inner = flat.get(part)
        flat |= inner if isinstance(inner, Mapping) else {}

    def find(what: str) -> int | None:
        values = (flat.get(name) for name in _NAMES[what])
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)

    experts, width, dense = find("experts"), find("expert_width"), find("dense")
    if experts and width is None:  # Mixtral and its kin: `intermediate_size` is that of an expert
        width, dense = flat.get("intermediate_size"), flat.get("intermediate_size_mlp")
    if experts and not _has_dense_layers(flat):
        dense = None
    other = {"dense MLP": dense, "shared expert": find("shared")}
    shared = flat.get("n_shared_experts")
    if other["shared expert"] is None and isinstance(shared, int) and shared and width:
        other["shared expert"] = shared * width
    return Sizes(
        hidden=find("hidden"),
        vocabulary=find("vocabulary"),
        layers=find("layers") or next((len(flat[name]) for name in _LAYER_LISTS if flat.get(name)), None),
        heads=_heads_of_config(flat, find("query_heads"), find("kv_heads")),
        head_dim=find("head_dim"),
        state_heads={name: flat[name] for name in _STATE_HEADS if isinstance(flat.get(name), int)},
        experts=0 if experts is None and find("hidden") and not _speaks_of_experts(flat) else experts,
        expert_width=width,
        other_widths={name: value for name, value in other.items() if isinstance(value, int) and value > 0},
    )


def _heads_of_config(
    config: Mapping[str, Any], query: int | None, kv: int | None
) -> tuple[tuple[int, int | None], ...]:
    """(query heads, KV heads) of each kind of attention that a config tells of."""
    if not query:
        return ()
    if config.get("kv_lora_rank"):
        return ((query, None),)
    heads = {(query, kv or query)}
    for queries, keys, switch in _OTHER_HEADS:
        if config.get(keys) and (switch is None or config.get(switch, True)):
            heads.add((config.get(queries) or query, config[keys]))
    return tuple(sorted(heads, key=str))


def _speaks_of_experts(config: Mapping[str, Any]) -> bool:
    return any(value and any(word in name.lower() for word in _EXPERT_WORDS) for name, value in config.items())


def _has_dense_layers(config: Mapping[str, Any]) -> bool:
    """Whether some layers have a dense MLP where others have experts; most configs state its width even without."""
    counts = ("first_k_dense_replace", "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq")
    least = (1, 2, 2, 2)
    stated = [config.get(name) for name in counts]
    return any(isinstance(v, int) and v >= n for v, n in zip(stated, least, strict=True)) or any(
        bool(config.get(name)) for name in ("mlp_only_layers", "dense_intermediate_size", "expert_ffn_hidden_size")
    )


def sizes_of_shapes(shapes: Mapping[str, Any]) -> Sizes:
    """Sizes from shapes that the catalogue states as data (:func:`moecap.model.shapes.from_shapes`)."""
    hidden, layers = shapes.get("hidden_size"), list(shapes.get("layers") or ())
    memories = [layer.get("memory") or {} for layer in layers]
    heads = {
        (m["query_heads"], None if m.get("attention") == "latent" else m.get("kv_heads") or m["query_heads"])
        for m in memories
        if m.get("query_heads")
    }
    down = [
        shape[1] for layer in layers for shape in layer.get("expert") or () if len(shape) == 2 and shape[0] == hidden
    ]
    return Sizes(
        hidden=hidden,
        vocabulary=shapes.get("vocab_size"),
        layers=sum(int(layer.get("count", 0)) for layer in layers),
        heads=tuple(sorted(heads, key=str)),
        experts=max((int(layer.get("experts", 0)) for layer in layers), default=0),
        expert_width=min(down, default=None),
    )


def sizes_of_anatomy(anatomy: Anatomy) -> Sizes:
    """Sizes from a counted model."""
    heads = {
        (kind.block_heads, None if kind.attention == "latent" else kind.kv_heads or kind.block_heads)
        for kind in anatomy.kinds
        if kind.query_heads
    }
    return Sizes(
        hidden=anatomy.hidden_size,
        vocabulary=anatomy.vocab_size,
        layers=anatomy.layers,
        heads=tuple(sorted(heads, key=str)),
        experts=anatomy.experts,
        expert_width=next((kind.expert_width for kind in anatomy.kinds if kind.experts and kind.expert_width), None),
    )


def scales_of_config(config: Mapping[str, Any]) -> Scales:
    """How a checkpoint's ``quantization_config`` shares scales: fp8 in blocks; nothing that vLLM pads to size."""
    stored = config.get("quantization_config") or {}
    block = stored.get("weight_block_size")
    if not (isinstance(block, (list, tuple)) and len(block) == 2):
        return Scales()
    kept = stored.get("modules_to_not_convert") or stored.get("ignored_layers") or stored.get("ignore")
    return Scales(block=(int(block[0]), int(block[1])), attention=not kept)


def refusals(sizes: Sizes, split: Split, scales: Scales | None = None) -> list[str]:
    """Why vLLM would not load a model that is shared out so: a sentence each, with a remedy; none: it would."""
    return [*_parallelism(sizes, split), *_heads(sizes, split.tensor_parallel), *_widths(sizes, split, scales)]


def _parallelism(sizes: Sizes, split: Split) -> Iterator[str]:
    ranks, expert = split.tensor_parallel * split.data_parallel, split.expert_parallel
    if expert not in (1, ranks):  # enable_expert_parallel is yes or no (fused_moe/config.py)
        yield (
            f"`expert_parallel` is {expert}, but vLLM places experts over all tensor × data parallel ranks or none: 1 "
            f"or {ranks}"
        )
    elif expert > 1 and sizes.experts is not None and expert > max(sizes.experts, 1):
        yield f"`expert_parallel` is {expert}, but a layer has {sizes.experts} routed experts to place"
    if sizes.layers is not None and split.pipeline_parallel > sizes.layers:
        yield f"`pipeline_parallel` is {split.pipeline_parallel}, but the model has {sizes.layers} layers"


def _heads(sizes: Sizes, tensor: int) -> Iterator[str]:
    for query, kv in sizes.heads:
        if query % tensor:  # config/model.py
            yield f"`tensor_parallel` is {tensor}, which does not divide the {query} attention heads"
        elif kv and kv % tensor and tensor % kv:  # layers/linear.py: QKVParallelLinear
            yield f"`tensor_parallel` is {tensor}, and of it and the {kv} KV heads neither divides the other"
    for name, heads in sizes.state_heads.items():
        if heads % tensor:
            yield f"`tensor_parallel` is {tensor}, which does not divide `{name}`, {heads}"
    if sizes.vocabulary and (padded := VOCABULARY_PADDING * ceil(sizes.vocabulary / VOCABULARY_PADDING)) % tensor:
        yield (
            f"`tensor_parallel` is {tensor}, which does not divide the vocabulary of {sizes.vocabulary} (padded to "
            f"{padded})"
        )


def _widths(sizes: Sizes, split: Split, scales: Scales | None) -> Iterator[str]:
    scales = scales or Scales()
    tensor = split.tensor_parallel
    # Without expert parallelism every expert is cut over all ranks; with it experts stay whole (fused_moe/config.py).
    over = 1 if split.expert_parallel > 1 else tensor * split.data_parallel
    parts = [("routed expert", sizes.expert_width, over, True)]
    parts += [(name, width, tensor, False) for name, width in sizes.other_widths.items()]
    for name, width, ranks, expert in parts:
        if not width:
            continue
        if width % ranks:
            yield f"the {ranks} ranks that share a {name} do not divide its width of {width}"
            continue
        yield from _scaled(name, width // ranks, width, ranks, scales, expert=expert)
    if scales.group and sizes.hidden and sizes.experts and sizes.hidden % scales.group:
        yield f"{scales.group} weights share a scale, which does not divide the model's width of {sizes.hidden}"
    if scales.block and scales.attention and sizes.head_dim and tensor > 1:
        yield from _attention_blocks(sizes, tensor, scales.block)


def _scaled(name: str, here: int, width: int, ranks: int, scales: Scales, *, expert: bool) -> Iterator[str]:
    """Scales must not reach over the border between ranks."""
    share = f"a rank has {here} of the {width} columns of a {name}"
    if scales.block and (here % scales.block[0] or (ranks > 1 and here % scales.block[1])):
        # fp8_utils.py: validate_fp8_block_shape, validate_fp8_block_shape_moe
        rows, columns = scales.block
        yield f"fp8 scales are per block of {rows} × {columns} weights, and {share}, no multiple of it"
    if scales.group and expert and here % scales.group:  # compressed_tensors_moe_wna16.py
        yield f"{scales.group} weights share a scale, and {share}, no multiple of it"


def _attention_blocks(sizes: Sizes, tensor: int, block: tuple[int, int]) -> Iterator[str]:
    for query, kv in sizes.heads:
        if kv is None or query % tensor:
            continue
        for heads in (query // tensor, max(1, kv // tensor)):
            if (width := heads * (sizes.head_dim or 0)) % block[0]:
                yield f"fp8 scales are per block of {block[0]} × {block[1]} weights; a rank's heads are {width} wide"
                return
