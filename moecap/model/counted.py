"""From a structure to numbers: bytes by how the weights are stored, and the :class:`Anatomy` of it all."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError
from moecap.model.counts import kept_skeleton
from moecap.model.quantization import recipe_from_quantization_config
from moecap.model.recipes import Recipe, dtype_precision, resolve_precision
from moecap.model.resolve import Found, resolve
from moecap.model.shapes import from_shapes
from moecap.model.skeleton import Layer, Skeleton
from moecap.model.structure import COMPONENTS, LAYER_COMPONENTS, Anatomy, Component, LayerKind

#: Bytes of an element of a dtype that a cache or state can have.
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}


def anatomy(
    model: str | Path | Mapping[str, Any],
    precision: str | Mapping[str, Any] | None = None,
    *,
    kv_dtype_bytes: float | None = None,
    name: str | None = None,
    catalogue: str | Path | None = None,
) -> Anatomy:
    """Count a model: parameters, bytes, FLOPs and KV per layer and component.

    Args:
        model: a catalogue name, a hub id, a checkpoint folder, a ``config.json``, or a config as a dict. A folder with
            safetensors is counted from their headers, unless ``precision`` asks for another than it has.
        precision: how the weights are to be stored: a name of ``config/catalogue/precisions.yaml``, a dtype
            (``bf16``), or a recipe (``weight_bits``, ``group_size``, ``symmetric``, ``scale_bits``, ``ignore``). None:
            as the checkpoint or config has it.
        kv_dtype_bytes: bytes of a KV element; None: that of the model's dtype.
        name: what to call the model; None: what was given.
        catalogue: the folder of catalogues; None: the project's.

    Raises:
        MoecapError: an unknown model, a checkpoint that is truncated or does not fit its config, top-k over experts.
        Refused: modules that could not be told apart.

    >>> anatomy("mixtral-8x7b").total_params
    46702792704
    """
    found = resolve(model, catalogue=catalogue)
    label = name or found.name
    structure = structure_of(found)
    if kv_dtype_bytes is not None and not kv_dtype_bytes > 0:
        raise MoecapError(
            f"kv_dtype_bytes is {kv_dtype_bytes}; a KV element takes more than 0 bytes (bf16: 2, fp8: 1)."
        )
    recipe, doubts = _recipe(precision, structure, catalogue, found.checkpoint is not None)
    kv_bytes = kv_dtype_bytes or recipe.kv_dtype_bytes or DTYPE_BYTES.get(structure.dtype, 2)
    sizes, compute = recipe.count(structure)
    if found.checkpoint is None or precision is not None:
        return assemble(
            label,
            recipe.name,
            structure,
            sizes,
            kv_dtype_bytes=kv_bytes,
            compute_dtypes=compute,
            notes=(*found.notes, *recipe.notes),
        )
    from moecap.model.stored import stored_sizes

    stored = stored_sizes(found.checkpoint, structure)
    return assemble(
        label,
        recipe.name if structure.quantization else stored.main_dtype,
        structure,
        stored.sizes,
        kv_dtype_bytes=kv_bytes,
        compute_dtypes={} if doubts else compute,
        unread=stored.unread,
        source="checkpoint",
        notes=(*found.notes, *doubts, *stored.notes),
    )


def _recipe(
    precision: str | Mapping[str, Any] | None, structure: Skeleton, catalogue: str | Path | None, stored: bool
) -> tuple[Recipe, tuple[str, ...]]:
    """How weights are, or are to be, stored; of a checkpoint whose recipe is not understood, its name and a doubt.

    Raises:
        MoecapError: a precision that is not known, or a recipe that is not understood where no headers say more.
    """
    if precision is not None:
        return resolve_precision(precision, catalogue), ()
    if not structure.quantization:
        return resolve_precision(dtype_precision(structure.dtype), catalogue), ()
    try:
        return recipe_from_quantization_config(structure.quantization, structure.dtype), ()
    except MoecapError as error:
        if not stored:
            raise
        name = str(structure.quantization.get("quant_method") or "quantized")
        doubt = f"Bytes are those of the headers; the dtypes of products and of the KV cache are not known: {error}"
        return Recipe(name), (doubt,)


def structure_of(found: Found) -> Skeleton:
    """The structure of a model that was found: from stated shapes, from what is kept of its config, or built."""
    if found.shapes is not None:
        return from_shapes(found.shapes)
    assert found.config is not None
    kept = kept_skeleton(found.config) if found.checkpoint is None else None
    return kept if kept is not None else _skeleton_of(json.dumps(found.config))


@lru_cache(maxsize=16)
def _skeleton_of(config: str) -> Skeleton:
    """:func:`built_skeleton` of a config's JSON text."""
    return built_skeleton(json.loads(config))


def built_skeleton(data: Mapping[str, Any]) -> Skeleton:
    """The structure of a config, by its family's shapes or by building it: the only import of the library that builds.

    Raises:
        MoecapError: as :func:`anatomy`; torch and transformers are not installed.
    """
    from moecap.model.families import family_of, from_family

    if (family := family_of(data)) is not None:
        return from_family(family, data)
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise MoecapError(
            f"The catalogue does not keep this model's structure; to build it from its config, {' and '.join(missing)} "
            "must be installed: `pip install 'moecap[anatomy]'`."
        )
    from moecap.model.reader import skeleton

    return skeleton(data)


def assemble(
    model: str,
    precision: str,
    structure: Skeleton,
    sizes: Mapping[tuple[int | None, str], int],
    *,
    kv_dtype_bytes: float = 2,
    embedding_row_bytes: int | None = None,
    unread: Mapping[str, int] | None = None,
    source: str = "config",
    notes: Iterable[str] = (),
    compute_dtypes: Mapping[str, Mapping[str, float]] | None = None,
) -> Anatomy:
    """Put a structure and the bytes per (layer, component) together; a layer of None is outside the layers."""
    params, flops = _by_place(structure, "numel"), _by_place(structure, "flops")
    keys, replicated = _by_layer(structure, "kv_params"), _by_layer(structure, "replicated_params")
    widths = _expert_widths(structure)
    described = []
    for index, layer in enumerate(structure.layers):
        values: dict[str, Any] = {}
        for component, word in LAYER_COMPONENTS.items():
            divisor = (layer.experts if component == "routed_experts" else 1) or 1
            count, size = params[index, component], sizes.get((index, component), 0)
            values[f"{word}_params"] = count // divisor
            values[f"{word}_bytes"] = size // divisor if size % divisor == 0 else size / divisor
            if component != "norms":
                values[f"{word}_flops"] = flops[index, component] // divisor
        values |= {
            "attention_kv_params": keys[index],
            "attention_replicated_params": replicated[index],
            "expert_width": widths[index],
        }
        described.append(_kind(layer, structure, kv_dtype_bytes, values))
    distinct = list(dict.fromkeys(described))
    layer_kind = tuple(distinct.index(kind) for kind in described)
    kinds = tuple(replace(kind, count=layer_kind.count(i)) for i, kind in enumerate(distinct))
    totals = {
        component: Component(
            sum(n for (_, c), n in params.items() if c == component),
            sum(n for (_, c), n in sizes.items() if c == component),
        )
        for component in COMPONENTS
    }
    total = structure.total_params
    idle = sum(kind.count * (kind.experts - kind.top_k) * kind.expert_params for kind in kinds)
    if embedding_row_bytes is None:
        embedding_row_bytes = sum(
            totals["embedding"].bytes * part.numel // (totals["embedding"].params * part.shape[0])
            for part in structure.parts
            if part.embedding and part.layer is None
        )
    mtp_params, mtp_bytes = _mtp(structure, described, totals)
    return Anatomy(
        model=model,
        precision=precision,
        total_params=total,
        active_params=total - idle,
        components=totals,
        kinds=kinds,
        layer_kind=layer_kind,
        hidden_size=structure.hidden_size,
        vocab_size=structure.vocab_size,
        tied_embeddings=structure.tied_embeddings,
        embedding_row_bytes=embedding_row_bytes,
        kv_dtype_bytes=kv_dtype_bytes,
        unread=dict(unread or {}),
        compute_dtypes=dict(compute_dtypes or {}),
        source=source,
        notes=(*structure.notes, *notes),
        mtp_layers=structure.extra_layers,
        mtp_params=mtp_params,
        mtp_bytes=mtp_bytes,
    )


def _by_place(structure: Skeleton, figure: str) -> dict[tuple[int | None, str], int]:
    found: dict[tuple[int | None, str], int] = defaultdict(int)
    for part in structure.parts:
        found[part.layer, part.component] += getattr(part, figure)
    return found


def _by_layer(structure: Skeleton, figure: str) -> dict[int | None, int]:
    found: dict[int | None, int] = defaultdict(int)
    for part in structure.parts:
        found[part.layer] += getattr(part, figure)
    return found


def _expert_widths(structure: Skeleton) -> dict[int | None, int]:
    """The inner width of an expert, per layer: that of the product that leads back to what an expert takes in; of fused
    ones with as many outputs, the narrower."""
    products: dict[int | None, list[tuple[int, int]]] = defaultdict(list)
    for part in structure.parts:
        if part.component == "routed_experts":
            products[part.layer] += [(m.rows, m.columns) for m in part.matrices]
    widths: dict[int | None, int] = defaultdict(int)
    for layer, sizes in products.items():
        taken_in = {structure.hidden_size} if any(structure.hidden_size in size for size in sizes) else set()
        taken_in = taken_in or set.intersection(*(set(size) for size in sizes)) - {rows for rows, _ in sizes[:1]}
        widths[layer] = min((columns for rows, columns in sizes if rows in taken_in), default=0)
    return widths


def _kind(layer: Layer, structure: Skeleton, kv_dtype_bytes: float, values: Mapping[str, Any]) -> LayerKind:
    """One layer as a kind of its own. State has its own dtypes, whatever that of the KV."""
    memory = layer.memory
    plain = DTYPE_BYTES.get(structure.dtype, 2)
    recurrent = DTYPE_BYTES.get(structure.state_dtype or structure.dtype, 2)
    main = memory.caches[0] if memory.caches else None
    simple = main is not None and len(memory.caches) == 1 and main.read_limit is None and main.tokens == 1
    return LayerKind(
        count=1,
        experts=layer.experts,
        top_k=layer.top_k,
        zero_experts=layer.zero_experts,
        stack=layer.stack,
        attention=memory.attention,
        kv_elements_per_token=memory.kv_elements_per_token,
        kv_bytes_per_token=round(memory.kv_elements_per_token * kv_dtype_bytes),
        kv_window=main.window if main is not None else None,
        cache_parts=() if simple else memory.caches,
        state_bytes=memory.recurrent_elements * recurrent + memory.conv_elements * plain,
        query_heads=memory.query_heads,
        attention_blocks=memory.blocks,
        qk_head_dim=memory.qk_head_dim,
        v_head_dim=memory.v_head_dim,
        kv_heads=memory.kv_heads,
        cross_kv_elements_per_token=memory.cross_kv_elements_per_token,
        **values,
    )


def _mtp(structure: Skeleton, layers: list[LayerKind], totals: Mapping[str, Component]) -> tuple[int, int]:
    """Parameters and bytes of the layers of multi-token prediction: each as the last layer, and what joins two hidden
    states to one (a matrix of 2 × hidden to hidden, three norms), at the average size of the model's parameters."""
    if not structure.extra_layers or not layers:
        return 0, 0
    hidden, last = structure.hidden_size, layers[-1]
    joint = 2 * hidden * hidden + 3 * hidden
    per_param = totals["attention"].bytes / max(totals["attention"].params, 1)
    return structure.extra_layers * (last.params + joint), round(
        structure.extra_layers * (last.weight_bytes + joint * per_param)
    )
