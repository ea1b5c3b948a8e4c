"""What a precision would weigh: which matrices of a model are quantized, and how each is stored. No torch.

A :class:`Recipe` is made from a precision of the catalogue, from plain keys, or from the ``quantization_config`` of a
checkpoint (:mod:`moecap.model.quantization`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError, nearest
from moecap.model.layouts import Layout, awq, gptq, int_packed, mxfp, nvfp4, plain
from moecap.model.names import CheckpointNames, Module, Patterns

if TYPE_CHECKING:
    from moecap.model.skeleton import Part, Skeleton

#: Names of dtypes, as people write precisions.
DTYPE_PRECISION = {
    "bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "BF16": "bf16", "F16": "fp16", "F32": "fp32",
}  # fmt: skip
PLAIN_BITS = {"bf16": 16, "fp16": 16, "fp32": 32}

#: Components that a recipe quantizes unless it says otherwise; routers, norms and embeddings it never does.
QUANTIZED = ("attention", "routed_experts", "shared_experts", "dense_mlp")
#: What stays as it is where a recipe does not say: as in every recipe of the catalogue.
IGNORED = ("lm_head", "re:.*gate$", "re:.*router.*")


@dataclass(frozen=True)
class Rule:
    """Modules that are stored otherwise than the rest: as they are, where ``layout`` is None."""

    modules: Patterns
    layout: Layout | None


@dataclass(frozen=True)
class Recipe:
    """How the weights and the KV cache of a model are stored.

    Attributes:
        name: the precision: ``bf16``, ``int4``, ``fp8``, …; a method's name where several layouts lie side by side.
        layout: of every matrix of ``components`` that no rule and not ``ignore`` names; None: they stay as they are.
        rules: exceptions; the first that matches decides. They reach every component but routers and embeddings.
        ignore: modules that stay as they are, whatever the rules say.
        components: what ``layout`` quantizes.
        component_layouts: (component, layout) of components that are stored otherwise than by ``layout``.
        rest_bits: bits of a weight that is not quantized.
        kv_bits: bits of an element of the KV cache; None: the recipe does not say.
        kv_scale_bits: bits of scales per layer that caches keys and values, stored in the checkpoint; with
            ``kv_scale_per_head`` per KV head of each.
        notes: what a reader should know of the count.
    """

    name: str
    layout: Layout | None = None
    rules: tuple[Rule, ...] = ()
    ignore: Patterns = field(default_factory=Patterns)
    components: tuple[str, ...] = QUANTIZED
    component_layouts: tuple[tuple[str, Layout], ...] = ()
    rest_bits: int = 16
    kv_bits: float | None = None
    kv_scale_bits: int = 0
    kv_scale_per_head: bool = False
    notes: tuple[str, ...] = ()

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Every layout that the recipe may store a matrix in."""
        found = [self.layout, *(layout for _, layout in self.component_layouts), *(rule.layout for rule in self.rules)]
        return tuple(dict.fromkeys(layout for layout in found if layout is not None))

    @property
    def kv_dtype_bytes(self) -> float | None:
        """Bytes of an element of the KV cache, where the recipe says."""
        return None if self.kv_bits is None else self.kv_bits / 8

    def layout_of(self, module: Module, component: str) -> Layout | None:
        """How one matrix is stored; None: as it is."""
        if component in {"router", "embedding", "norms"} or self.ignore.match(module.names):
            return None
        for rule in self.rules:
            if rule.modules.match(module.names):
                return rule.layout
        return self._own_layout(component)

    def _own_layout(self, component: str) -> Layout | None:
        """How a component is stored where no module of it is an exception."""
        if component not in self.components:
            return None
        return dict(self.component_layouts).get(component, self.layout)

    def sizes(self, structure: Skeleton) -> dict[tuple[int | None, str], int]:
        """Bytes per (layer, component) if the model were stored by this recipe; a layer of None is outside them."""
        return self.count(structure)[0]

    def count(self, structure: Skeleton) -> tuple[dict[tuple[int | None, str], int], dict[str, dict[str, float]]]:
        """What :meth:`sizes` says, and per component the dtypes that its matrices are multiplied in.

        Each dtype has the share of the component's weights. Attention scores and norms are no such products: they run
        in the model's own dtype.
        """
        names, rest = CheckpointNames(structure.renamings), dtype_precision(structure.dtype)
        sizes: dict[tuple[int | None, str], int] = defaultdict(int)
        weights: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for part in structure.parts:
            experts = structure.layers[part.layer].experts if part.layer is not None else 0
            kept, place = part.numel, (part.layer, part.component)
            for module, layout in self._modules(part, names, experts):
                count = module.copies * module.rows * module.columns
                if layout is not None:
                    kept -= count
                    sizes[place] += module.copies * layout.matrix_bytes(module.rows, module.columns)
                weights[part.component][(layout.compute_dtype if layout else None) or rest] += count
            sizes[place] += ceil(kept * self.rest_bits / 8)
        for index, layer in enumerate(structure.layers):
            if self.kv_scale_bits and layer.memory.kv_elements_per_token and layer.memory.attention != "latent":
                heads = layer.memory.kv_heads if self.kv_scale_per_head else 1
                sizes[index, "attention"] += heads * self.kv_scale_bits // 8
        shares = {c: {dtype: n / sum(by.values()) for dtype, n in by.items()} for c, by in weights.items()}
        return dict(sizes), shares

    @cached_property
    def _tells_experts_apart(self) -> bool:
        return any(p.tells_experts_apart for p in (self.ignore, *(rule.modules for rule in self.rules)))

    def _modules(self, part: Part, names: CheckpointNames, experts: int) -> Iterator[tuple[Module, Layout | None]]:
        """The matrices of a parameter, each with its layout; one line for all where nothing tells them apart."""
        quantizable = all(matrix.quantizable for matrix in part.matrices)
        if not quantizable or not (self.rules or self.ignore):
            layout = self._own_layout(part.component) if quantizable else None
            for matrix in part.matrices:
                yield Module((part.name,), matrix.rows, matrix.columns, matrix.copies), layout
            return
        for module in names.modules(part, experts, self._tells_experts_apart):
            yield module, self.layout_of(module, part.component)


def dtype_precision(dtype: str) -> str:
    """``bf16`` for ``torch.bfloat16`` and so on.

    Raises:
        MoecapError: a dtype that weights are not kept in.
    """
    short = dtype.split(".")[-1]
    if short not in DTYPE_PRECISION:
        raise MoecapError(f"dtype {dtype!r} in the config is no dtype of weights. {nearest(short, DTYPE_PRECISION)}")
    return DTYPE_PRECISION[short]


# -- precisions by name


def _int8(symmetric: bool) -> Layout:
    return plain("int8", 8, zero_bits=0 if symmetric else 8, compute_dtype="int8")


def _int4_unpacked(compute_dtype: str, group_size: int | None, symmetric: bool) -> Layout:
    """Four bits in a byte each: compressed-tensors 0.19 packs integers only where activations stay as they are."""
    zeros = 0 if symmetric else 8
    return plain("int4", 8, group_size, zero_bits=zeros, compute_dtype=compute_dtype)


@dataclass(frozen=True)
class Scheme:
    """How a scheme stores weights: ``make`` with ``options``, which a recipe may set otherwise."""

    make: Callable[..., Layout]
    options: Mapping[str, Any] = field(default_factory=dict)

    def layout(self) -> Layout:
        return self.make(**self.options)


#: How the schemes of the catalogue store weights and what they are multiplied in. llmcompressor's names (its MXFP4,
#: whose activations are in 4 bits too, is MXFP4A4 here), and those of ready-made checkpoints (GPTQ, AWQ,
#: FP8_BLOCK_F32) as their tools write them.
SCHEMES: dict[str, Scheme] = {
    "W8A8": Scheme(_int8, {"symmetric": True}),
    "W8A16": Scheme(partial(int_packed, 8), {"group_size": 128, "symmetric": True}),
    "W4A16": Scheme(partial(int_packed, 4), {"group_size": 128, "symmetric": True}),
    "W4A16_ASYM": Scheme(partial(int_packed, 4), {"group_size": 128, "symmetric": False}),
    "W4A8": Scheme(partial(_int4_unpacked, "int8"), {"group_size": 128, "symmetric": True}),
    "W4AFP8": Scheme(partial(_int4_unpacked, "fp8"), {"group_size": 128, "symmetric": True}),
    "GPTQ": Scheme(partial(gptq, 4), {"group_size": 128}),
    "AWQ": Scheme(partial(awq, 4), {"group_size": 128}),
    "FP8": Scheme(partial(plain, "fp8", 8, 0, matrix_bits=16, compute_dtype="fp8")),
    "FP8_DYNAMIC": Scheme(partial(plain, "fp8", 8, compute_dtype="fp8")),
    "FP8_BLOCK": Scheme(partial(plain, "fp8", 8, compute_dtype="fp8"), {"block": (128, 128)}),
    "FP8_BLOCK_F32": Scheme(partial(plain, "fp8", 8, scale_bits=32, compute_dtype="fp8"), {"block": (128, 128)}),
    "MXFP4": Scheme(partial(mxfp, 4)),
    "MXFP4A4": Scheme(partial(mxfp, 4, compute_dtype="fp4")),
    "MXFP8": Scheme(partial(mxfp, 8, compute_dtype="fp8")),
    "MXFP8A16": Scheme(partial(mxfp, 8)),
    "NVFP4": Scheme(nvfp4),
    "NVFP4A16": Scheme(partial(nvfp4, matrix_bits=32, compute_dtype=None)),
}
#: Precisions that need no catalogue.
BUILT_IN = {
    "int8": "W8A8", "int4": "W4A16", "fp8": "FP8_DYNAMIC", "mxfp4": "MXFP4", "mxfp8": "MXFP8", "nvfp4": "NVFP4",
}  # fmt: skip

#: Keys by which a recipe states a layout of its own, and those that say what is stored in it.
LAYOUT_KEYS = (
    "weight_bits", "group_size", "block", "symmetric", "scale_bits", "word_bits", "index_bytes", "compute_dtype",
)  # fmt: skip
RECIPE_KEYS = ("rest_bits", "components", "component_schemes", "ignore", "kv_bits")


def recipe_from_dict(name: str, values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain keys (``LAYOUT_KEYS``, ``RECIPE_KEYS``); packed words are assumed below 8 bits.

    Raises:
        MoecapError: an unknown key, or bits that are none.
    """
    known = {*LAYOUT_KEYS, *RECIPE_KEYS}
    unknown = sorted(set(values) - known)
    if unknown:
        raise MoecapError(f"Precision {name!r}: unknown key {unknown[0]!r} in its recipe. {nearest(unknown[0], known)}")
    return _recipe(name, _stated_layout(name, values), values)


def _recipe(name: str, layout: Layout, values: Mapping[str, Any]) -> Recipe:
    given = {key: values[key] for key in ("rest_bits", "kv_bits") if values.get(key) is not None}
    if values.get("components") is not None:
        given["components"] = tuple(values["components"])
    own = dict(values.get("component_schemes") or {})
    for scheme in own.values():
        if scheme not in SCHEMES:
            known = nearest(scheme, SCHEMES)
            raise MoecapError(f"Precision {name!r}: how {scheme!r} stores weights is not known. {known}")
    given["component_layouts"] = tuple((component, SCHEMES[scheme].layout()) for component, scheme in own.items())
    ignore = values.get("ignore")
    return Recipe(name, layout, ignore=Patterns.of(IGNORED if ignore is None else ignore), **given)


def _stated_layout(name: str, values: Mapping[str, Any]) -> Layout:
    bits = values.get("weight_bits", 16)
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 32:
        raise MoecapError(f"Precision {name!r}: weight_bits is {bits!r}, it must be a whole number from 1 to 32.")
    group, block = values.get("group_size"), values.get("block")
    for key, value in (("group_size", group), *(("block", side) for side in block or ())):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise MoecapError(f"Precision {name!r}: {key} is {value!r}, it must be a whole number.")
    scale_bits, compute = values.get("scale_bits", 16), values.get("compute_dtype")
    symmetric = values.get("symmetric", True)
    if bits < 8 and block is None and values.get("word_bits", 32) == 32:
        matrix_bits = 8 * values.get("index_bytes", 16)
        made = int_packed(
            bits, group, symmetric=symmetric, scale_bits=scale_bits, matrix_bits=matrix_bits, compute_dtype=compute
        )
        return replace(made, name=name)
    return plain(
        name,
        bits,
        group,
        block=tuple(block) if block else None,
        scale_bits=scale_bits,
        zero_bits=0 if symmetric else bits,
        matrix_bits=8 * values.get("index_bytes", 0),
        compute_dtype=compute,
    )


def scheme_layout(precision: str, scheme: str, values: Mapping[str, Any]) -> Layout:
    """The layout of a scheme, with the group size, block or zero points that a recipe sets.

    Raises:
        MoecapError: the scheme has no such thing to set, or the value is none.
    """
    made = SCHEMES[scheme]
    own = {key: values[key] for key in ("group_size", "block", "symmetric") if values.get(key) is not None}
    if own.get("symmetric") is True and "symmetric" not in made.options:
        del own["symmetric"]
    for key in own:
        if key not in made.options:
            raise MoecapError(
                f"Precision {precision!r}: the scheme {scheme} has no `{key}`. Remove it from the recipe."
            )
    group = own.get("group_size")
    if group is not None and (not isinstance(group, int) or isinstance(group, bool) or group < 1):
        raise MoecapError(f"Precision {precision!r}: group_size is {group!r}, it must be at least 1.")
    return made.make(**{**made.options, **own})


def resolve_precision(precision: str | Mapping[str, Any], catalogue: str | Path | None = None) -> Recipe:
    """The recipe of a precision: a dtype, an entry of ``precisions.yaml``, or plain keys.

    Raises:
        MoecapError: a precision that neither the catalogue nor this module knows.
    """
    if isinstance(precision, Mapping):
        return recipe_from_dict(
            str(precision.get("name", "custom")), {k: v for k, v in precision.items() if k != "name"}
        )
    if precision in PLAIN_BITS:
        return Recipe(precision, rest_bits=PLAIN_BITS[precision])
    entries = _precisions(catalogue)
    entry = entries.get(precision, {"scheme": BUILT_IN.get(precision)})
    own = {**entry, **(entry.get("recipe") or {})}
    scheme = own.get("stored") or own.get("scheme")
    if scheme in PLAIN_BITS:
        return Recipe(precision, rest_bits=PLAIN_BITS[scheme])
    stated = {key: own[key] for key in (*LAYOUT_KEYS, *RECIPE_KEYS) if key in own}
    if "weight_bits" in stated:
        return recipe_from_dict(precision, stated)
    if scheme in SCHEMES:
        return _recipe(precision, scheme_layout(precision, scheme, stated), stated)
    if precision in entries:
        raise MoecapError(
            f"Precision {precision!r} has scheme {scheme!r}, and how that stores weights is not known. "
            f"{nearest(scheme, SCHEMES)} Or state `weight_bits` (and `group_size`, `symmetric`) in its `recipe`."
        )
    raise MoecapError(
        f"Precision {precision!r} is not known. {nearest(precision, {*entries, *BUILT_IN, *PLAIN_BITS})} Add it to "
        "config/catalogue/precisions.yaml with `weight_bits` and `group_size`."
    )


def _precisions(catalogue: str | Path | None) -> Mapping[str, Any]:
    from moecap.documents import read_yaml
    from moecap.paths import catalogue_layers

    entries: dict[str, Any] = {}
    for layer in catalogue_layers() if catalogue is None else [Path(catalogue)]:
        path = layer / "precisions.yaml"
        found = (read_yaml(path) or {}) if path.exists() else {}
        if isinstance(found, Mapping):
            entries |= found.get("precisions", found)
    return entries


# Embeddings, norms, routers and the head stay in 16 bits; they are a few per cent of what is listed here.
UNQUANTIZED_SHARE = 0.05


def planned_bytes(total_params: int, scheme: str) -> int:
    """Bytes of a checkpoint that is not there yet. An estimate: a few per cent too many rather than too few.

    >>> planned_bytes(46_702_792_704, "bf16")
    93405585408
    >>> 24e9 < planned_bytes(46_702_792_704, "W4A16") < 30e9
    True
    """
    stored = SCHEMES.get(scheme)
    if stored is None:
        return 2 * total_params
    share = (1 - UNQUANTIZED_SHARE) * stored.layout().bits_per_weight / 8 + UNQUANTIZED_SHARE * 2
    return round(total_params * share)
