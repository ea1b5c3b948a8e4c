"""compressed-tensors: groups of modules, each with a format of its own; and the KV cache that a scheme states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moecap.errors import MoecapError, nearest
from moecap.model.layouts import PER_COLUMN, PER_MATRIX, Companion, Layout, int_packed, mxfp, nvfp4, plain
from moecap.model.names import Patterns
from moecap.model.quantization.keys import Keys, block_of
from moecap.model.recipes import PLAIN_BITS, QUANTIZED, SCHEMES, Recipe, Rule


def compressed_tensors(keys: Keys, dtype: str) -> Recipe:
    """Groups of modules, each with a format, and what is left out of all of them."""
    whole = keys.get("format")
    named: list[Rule] = []
    everywhere: list[Layout] = []
    groups = keys.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise keys.refuse("config_groups", f"{groups!r:.100} is no table of groups.")
    for name, group in groups.items():
        targets, layout = _compressed_group(name, group, whole, dtype)
        classes = [t for t in targets if _is_class(t)]
        for target in classes:
            if target != "Linear":
                raise keys.refuse("targets", f"which modules are a {target!r} is not known.")
        if classes and layout not in everywhere:
            everywhere.append(layout)
        modules = [t for t in targets if not _is_class(t)]
        if modules:
            named.append(Rule(Patterns.of(modules, "targets"), layout))
    if len(everywhere) > 1:
        raise keys.refuse("config_groups", "more than one group has every Linear as its target.")
    for key, harmless in (("sparsity_config", {"format": "dense"}), ("transform_config", {"config_groups": {}})):
        stated = keys.get(key)
        if stated and any(stated.get(k) not in (v, None) for k, v in harmless.items()):
            raise keys.refuse(key, "what it stores is not known.")
    if not groups and not keys.data.get("kv_cache_scheme"):
        raise keys.refuse("config_groups", "it has no group.")
    # Where a pattern and every Linear are targets, the pattern decides.
    found = Recipe(
        "compressed-tensors",
        everywhere[0] if everywhere else None,
        tuple(named),
        keys.names("ignore"),
        components=(*QUANTIZED, "lm_head"),
    )
    found = replace(found, name=found.layouts[0].name if len(found.layouts) == 1 else found.name)
    return with_kv(keys, found, 16)


def _is_class(target: str) -> bool:
    return target[:1].isupper() and "." not in target and not target.startswith("re:")


def _compressed_group(name: str, group: Any, whole: str | None, dtype: str) -> tuple[list[str], Layout]:
    if isinstance(group, list):  # a preset by its name
        if name not in SCHEMES:
            raise MoecapError(f"quantization_config: the preset {name!r} is not known. {nearest(name, SCHEMES)}")
        return group, SCHEMES[name].layout()
    keys = Keys("compressed-tensors", group, "group")
    targets = list(keys.get("targets") or ("Linear",))
    weights = Arguments(keys.get("weights"), "weights")
    activations = Arguments(keys.get("input_activations"), "input_activations")
    outputs = Arguments(keys.get("output_activations"), "output_activations")
    form = keys.get("format") or (whole if whole != "mixed-precision" else None)
    keys.done()
    if not weights:
        raise MoecapError(f"quantization_config: the group {name} of compressed-tensors quantizes no weights.")
    layout = _compressed_layout(weights, activations, form or _inferred(weights, activations), PLAIN_BITS[dtype])
    beside = activations.stored(PLAIN_BITS[dtype]) + outputs.stored(PLAIN_BITS[dtype])
    extra = (Companion(beside, *PER_MATRIX),) if beside else ()
    return targets, replace(layout, companions=layout.companions + extra)


class Arguments:
    """How weights or activations are quantized (``QuantizationArgs``)."""

    def __init__(self, data: Any, part: str) -> None:
        self.given = data is not None
        keys = self.keys = Keys("compressed-tensors", data or {}, "args")
        self.bits = keys.number("num_bits", 8, 1)
        self.kind = keys.one_of("type", ("int", "float"), "int")
        self.symmetric = bool(keys.get("symmetric", True))
        group = keys.number("group_size")
        default = "tensor" if group is None else "group" if group > 0 else "channel"
        strategies = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")
        self.strategy = keys.one_of("strategy", strategies, default)
        self.block = block_of(keys, keys.get("block_structure"))
        self.group = None if self.strategy == "channel" else 0 if self.strategy == "tensor" else group
        self.dynamic = keys.get("dynamic", False)
        self.ordered = keys.one_of("actorder", ("group", "weight", "static", "dynamic", "False", "True")) in _ORDERED
        self.scale_dtype = str(keys.get("scale_dtype", "")).rpartition(".")[2]
        self.zero_dtype = str(keys.get("zp_dtype", "")).rpartition(".")[2]
        if self.strategy == "group" and not group:
            raise keys.refuse("group_size", "the strategy `group` needs one.")
        if self.strategy == "block" and not self.block:
            raise keys.refuse("block_structure", "the strategy `block` needs one.")
        if part == "weights" and self.strategy in {"token", "attn_head"}:
            raise keys.refuse("strategy", f"{self.strategy} is none of weights.")
        keys.done()

    def __bool__(self) -> bool:
        return self.given

    def stored(self, scale_bits: int) -> int:
        """Bits per matrix that static scales of activations take."""
        if not self.given or self.dynamic is True:
            return 0
        if self.strategy == "tensor_group" or self.dynamic == "local":
            return 32
        return scale_bits + (0 if self.symmetric else 8)


#: Values of ``actorder`` that store the order of the columns.
_ORDERED = {"group", "dynamic", "True"}
_TENSOR_GROUP = {"nvfp4-pack-quantized": 16, "mxfp4-pack-quantized": 32}


def _inferred(weights: Arguments, activations: Arguments) -> str:
    """The format that compressed-tensors would choose where none is stated."""
    if weights.kind == "float" and weights.bits == 4:
        return "nvfp4-pack-quantized" if weights.group == 16 else "mxfp4-pack-quantized"
    if weights.kind == "float":
        return "mxfp8-quantized" if weights.group == 32 and weights.scale_dtype == "uint8" else "float-quantized"
    return "int-quantized" if activations and weights.bits == 8 else "pack-quantized"


def _compressed_layout(weights: Arguments, activations: Arguments, form: str, scale_bits: int) -> Layout:
    bits, kind = weights.bits or 8, weights.kind
    compute = _compute_dtype(kind, bits, activations)
    if form == "pack-quantized" and kind == "int":
        if weights.strategy == "block":
            raise weights.keys.refuse("strategy", "blocks are not known in pack-quantized.")
        return int_packed(
            bits,
            weights.group,
            symmetric=weights.symmetric,
            scale_bits=scale_bits,
            ordered=weights.ordered,
            compute_dtype=compute,
        )
    if form == "nvfp4-pack-quantized":
        return nvfp4(matrix_bits=32, group_size=weights.group or 16, compute_dtype=compute)
    if form == "mxfp4-pack-quantized":
        return mxfp(4, compute_dtype=compute)
    if form == "mxfp8-quantized":
        return mxfp(8, compute_dtype=compute)
    if form in {"int-quantized", "float-quantized", "naive-quantized"} and (kind == "int" or bits == 8):
        name = f"int{bits}" if kind == "int" else "fp8"
        zeros = 0 if weights.symmetric else 8
        made = plain(
            name, 8, weights.group, block=weights.block, scale_bits=scale_bits, zero_bits=zeros, compute_dtype=compute
        )
        ordered = (Companion(32, *PER_COLUMN),) if weights.ordered else ()
        return replace(made, companions=made.companions + ordered)
    raise weights.keys.refuse("format", f"how {form!r} stores weights of {bits} bits ({kind}) is not known.")


def _compute_dtype(kind: str | None, bits: int, activations: Arguments) -> str | None:
    """What weights and activations are multiplied in; None: activations are not quantized."""
    if not activations:
        return None
    if activations.kind == "int":
        return "int8" if activations.bits == 8 else "int4"
    return "fp4" if activations.bits == 4 and kind == "float" and bits == 4 else "fp8"


def with_kv(keys: Keys, recipe: Recipe, scale_bits: int) -> Recipe:
    """With the KV cache that ``kv_cache_scheme`` states."""
    scheme = keys.get("kv_cache_scheme")
    if scheme is None:
        return recipe
    if isinstance(scheme, str):
        return replace(recipe, kv_bits=kv_bits_of(keys, "kv_cache_scheme", scheme), kv_scale_bits=2 * scale_bits)
    kv = Arguments(scheme, "kv_cache_scheme")
    stored = 2 * scale_bits if kv.dynamic is not True else 0
    return replace(recipe, kv_bits=kv.bits, kv_scale_bits=stored, kv_scale_per_head=kv.strategy == "attn_head")


#: Bits of an element of the KV cache by ModelOpt's name for it; NVFP4 has a scale for 16 elements.
KV_ALGORITHMS = {"FP8": 8, "INT8": 8, "NVFP4": 4.5, "NVFP4_AFFINE": 4.5}


def kv_bits_of(keys: Keys, key: str, name: str) -> float:
    if name.upper() not in KV_ALGORITHMS:
        raise keys.refuse(key, f"{name!r} is not known. {nearest(name.upper(), KV_ALGORITHMS)}")
    return KV_ALGORITHMS[name.upper()]
