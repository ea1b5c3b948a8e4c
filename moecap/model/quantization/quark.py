"""AMD Quark: one config for all layers, others by name, and what is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moecap.errors import nearest
from moecap.model.layouts import Companion, Layout, mxfp, plain
from moecap.model.names import Patterns
from moecap.model.quantization.keys import Keys
from moecap.model.recipes import QUANTIZED, Recipe, Rule


def quark(keys: Keys, dtype: str) -> Recipe:
    """AMD Quark: one config for all layers, others by name, and what is left out."""
    ignore = keys.names("exclude")
    if keys.get("layer_type_quant_config"):
        raise keys.refuse("layer_type_quant_config", "which layers are of a type is not known.")
    export = Keys("quark", keys.get("export") or {}, "export")
    groups = Patterns.of(export.get("kv_cache_group"), "kv_cache_group")
    export.one_of("weight_format", ("real_quantized",), "real_quantized")
    export.done()
    layout = _quark_layout(keys.get("global_quant_config"), dtype)
    kv_bits, rules = None, []
    for pattern, options in (keys.get("layer_quant_config") or {}).items():
        own = Keys("quark", options, "layer")
        if pattern in groups.patterns and own.data.get("output_tensors"):
            kv_bits = _quark_tensor(own.data["output_tensors"])[0]
            options = {**options, "output_tensors": None}
        rules.append(Rule(Patterns((pattern,)), _quark_layout(options, dtype)))
    cache = keys.get("kv_cache_quant_config")
    for options in (cache or {}).values():
        kv_bits = _quark_tensor(options["output_tensors"])[0] if options.get("output_tensors") else kv_bits
    if groups.patterns and kv_bits is None:
        raise keys.refuse("export", "`kv_cache_group` names layers, and nothing says how their cache is quantized.")
    found = Recipe("quark", layout, tuple(rules), ignore, (*QUANTIZED, "lm_head"), kv_bits=kv_bits)
    name = found.layouts[0].name if len(found.layouts) == 1 else "quark"
    return replace(found, name=name, kv_scale_bits=64 if kv_bits is not None else 0)


def _quark_layout(config: Any, dtype: str) -> Layout | None:
    if config is None:
        return None
    keys = Keys("quark", config, "layer")
    weight, activations = keys.get("weight"), keys.get("input_tensors")
    for key in ("bias", "output_tensors"):
        if keys.get(key):
            raise keys.refuse(key, "what is stored for it is not known.")
    keys.done()
    if weight is None:
        return None
    if isinstance(weight, list) or isinstance(activations, list):
        raise keys.refuse("weight", "weights that are quantized twice are not known.")
    bits, kind, scheme, _, weight_form = _quark_tensor(weight)
    own_bits, own_kind, _, _, form = _quark_tensor(activations) if activations else (16, "", "", None, {})
    static = bool(activations) and not form["is_dynamic"]
    compute = None
    if activations and own_bits <= 8:
        compute = "int8" if own_kind == "int" else "fp4" if own_bits == bits == 4 else "fp8"
    if weight_form["scale_format"] == "e8m0":
        return mxfp(bits, matrix_bits=32 if static else 0, compute_dtype=compute)
    if kind == "fp" and bits == 8 and weight_form["symmetric"]:
        sizes = {"per_tensor": 0, "per_channel": None}
        if scheme in sizes:
            made = plain("fp8", 8, sizes[scheme], scale_bits=32, compute_dtype=compute)
            return replace(made, companions=(*made.companions, *((Companion(32),) if static else ())))
    if kind == "int" and bits == 8 and weight_form["symmetric"] and scheme in {"per_tensor", "per_channel"}:
        size = None if scheme == "per_channel" else 0
        return plain("int8", 8, size, scale_bits=32, matrix_bits=32 if static else 0, compute_dtype=compute)
    raise keys.refuse("weight", f"how {weight.get('dtype')!r} is stored {scheme} is not known.")


def _quark_tensor(data: Any) -> tuple[int, str, str, int | None, dict[str, Any]]:
    """(bits, ``int`` or ``fp``, scheme, group size, the rest) of a tensor's quantization."""
    keys = Keys("quark", data, "tensor")
    dtype = str(keys.get("dtype", ""))
    known = {"int8": (8, "int"), "int4": (4, "int"), "uint4": (4, "int"), "fp8_e4m3": (8, "fp"), "fp8_e5m2": (8, "fp"),
             "fp4": (4, "fp"), "fp6_e2m3": (6, "fp"), "fp6_e3m2": (6, "fp"), "bfloat16": (16, "fp"),
             "float16": (16, "fp")}  # fmt: skip
    if dtype not in known:
        raise keys.refuse("dtype", f"{dtype!r} is not known. {nearest(dtype, known)}")
    bits, kind = known[dtype]
    scheme = str(keys.one_of("qscheme", ("per_tensor", "per_channel", "per_group", "per_token"), "per_tensor"))
    group, axis = keys.number("group_size"), keys.get("ch_axis")
    form = {
        "is_dynamic": bool(keys.get("is_dynamic", False)),
        "symmetric": keys.get("symmetric", True) is not False,
        "scale_format": keys.one_of("scale_format", ("e8m0", "float32", "float", "e4m3")),
        "axis": axis,
    }
    if form["scale_format"] == "e8m0" and group != 32:
        raise keys.refuse("group_size", f"{group!r} is not the 32 weights that share a scale in e8m0.")
    keys.done()
    return bits, kind, scheme, group, form
