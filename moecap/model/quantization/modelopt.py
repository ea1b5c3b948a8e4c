"""NVIDIA ModelOpt: one algorithm for all layers, or a table of layers (``MIXED_PRECISION``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from moecap.errors import nearest
from moecap.model.layouts import Layout, mxfp, nvfp4, plain
from moecap.model.names import Patterns
from moecap.model.quantization.compressed import kv_bits_of, with_kv
from moecap.model.quantization.keys import Keys
from moecap.model.recipes import QUANTIZED, Recipe, Rule


def modelopt(keys: Keys, _dtype: str) -> Recipe:
    """``hf_quant_config.json``, or the same inside config.json in compressed-tensors' words."""
    inner = keys
    if "quantization" in keys.data:
        inner = Keys("modelopt", keys.get("quantization"))
    recipe = _modelopt_recipe(inner)
    algorithm = inner.get("kv_cache_quant_algo")
    if algorithm:
        bits = kv_bits_of(inner, "kv_cache_quant_algo", str(algorithm))
        recipe = replace(recipe, kv_bits=bits, kv_scale_bits=64)
    recipe = with_kv(inner, recipe, 32)
    inner.done()
    return recipe


def _modelopt_recipe(keys: Keys) -> Recipe:
    algorithm = str(keys.get("quant_algo") or "").upper()
    ignore = keys.names("exclude_modules", "ignore")
    components = (*QUANTIZED, "lm_head")
    group = keys.number("group_size", None, 1)
    awq_like = keys.get("pre_quant_scale", False)
    if awq_like:
        raise keys.refuse("pre_quant_scale", "which matrices keep one is not known.")
    keys.get("has_zero_point")
    layers = keys.get("quantized_layers")
    if algorithm != "MIXED_PRECISION":
        layout = _modelopt_layout(keys, algorithm, group)
        return Recipe(layout.name if layout else "bf16", layout, ignore=ignore, components=components)
    if not isinstance(layers, Mapping) or not layers:
        raise keys.refuse("quantized_layers", "MIXED_PRECISION needs the table of layers.")
    by_layout: dict[Layout, list[str]] = {}
    for name, options in layers.items():
        own = Keys("modelopt", options, "layer")
        own_algorithm, own_group = str(own.get("quant_algo") or "").upper(), own.number("group_size", group, 0)
        if own.get("pre_quant_scale", False):
            raise own.refuse("pre_quant_scale", "which matrices keep one is not known.")
        own.done()
        layout = _modelopt_layout(own, own_algorithm, own_group or None)
        if layout is not None:
            by_layout.setdefault(layout, []).append(name)
    rules = tuple(Rule(Patterns(tuple(names)), layout) for layout, names in by_layout.items())
    name = rules[0].layout.name if len(rules) == 1 and rules[0].layout else "modelopt"
    return Recipe(name, None, rules, ignore, components)


def _modelopt_layout(keys: Keys, algorithm: str, group: int | None) -> Layout | None:
    """What ``modelopt.torch.export`` (0.47) writes; ``weight_scale_2`` and ``input_scale`` are float32 per matrix."""
    if algorithm in {"", "NONE"}:
        return None
    made: dict[str, Callable[[], Layout]] = {
        "FP8": lambda: plain("fp8", 8, 0, scale_bits=32, matrix_bits=32, compute_dtype="fp8"),
        "FP8_PER_CHANNEL_PER_TOKEN": lambda: plain("fp8", 8, scale_bits=32, compute_dtype="fp8"),
        "FP8_PB_WO": lambda: plain("fp8", 8, block=(group or 128,) * 2, scale_bits=32, compute_dtype="fp8"),
        "FP8_BLOCK_SCALES": lambda: plain("fp8", 8, block=(group or 128,) * 2, scale_bits=32, compute_dtype="fp8"),
        "NVFP4": lambda: nvfp4(group_size=group or 16),
        "W4A16_NVFP4": lambda: nvfp4(matrix_bits=32, group_size=group or 16, compute_dtype=None),
        "W4A8_NVFP4_FP8": lambda: nvfp4(group_size=group or 16, compute_dtype="fp8"),
        "MXFP4": lambda: mxfp(4, compute_dtype="fp4"),
        "W4A8_MXFP4_FP8": lambda: mxfp(4, matrix_bits=32, compute_dtype="fp8"),
        "MXFP8": lambda: mxfp(8, compute_dtype="fp8"),
        "W8A16": lambda: plain("int8", 8, scale_bits=32),
    }
    if algorithm not in made:
        raise keys.refuse("quant_algo", f"how {algorithm!r} stores weights is not known. {nearest(algorithm, made)}")
    return made[algorithm]()
