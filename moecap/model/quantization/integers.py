"""GPTQ, AWQ and AutoRound: integers packed into words of 32 bits, with options per module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecap.errors import nearest
from moecap.model.layouts import Layout, awq, gptq
from moecap.model.names import Patterns
from moecap.model.quantization.keys import GATES, HEAD, Keys, flat
from moecap.model.recipes import Recipe, Rule

#: AutoGPTQ 0.7 and older wrote a ``bias`` of zeros beside every ``qweight``; no key of its config says so.
ZERO_BIASES = (
    "GPTQ: a quantized matrix without a bias is counted without one. Older tools store a bias of zeros, 2 bytes per "
    "output, beside each, and no key of the config says so: the checkpoint itself is counted exactly."
)


def gptq_recipe(keys: Keys, _dtype: str) -> Recipe:
    """GPTQ and GPTQModel, with its rules per module (``dynamic``) and a quantized head."""
    bits, group = keys.number("bits", 4, 1) or 4, keys.group_size(128)
    keys.one_of("checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    keys.one_of("format", ("gptq", "gptq_v2"), "gptq")
    keys.one_of("pack_dtype", ("int32",), "int32")
    if keys.data.get("is_marlin_format"):
        raise keys.refuse("is_marlin_format", "how Marlin's own format lies on disk is not known.")
    layout = gptq(_packed_bits(keys, bits), group)
    rules = _gptq_rules(keys, bits, group)
    if keys.get("lm_head", False):
        rules = [*rules, Rule(HEAD, layout)]
    chosen = list(flat(keys.get("modules_in_block_to_quantize") or ()))
    ignore = keys.names("modules_to_not_convert", "ignore") + GATES
    if chosen:
        rules, layout_of_rest = [*rules, Rule(Patterns.of(chosen), layout)], None
    else:
        layout_of_rest = layout
    return Recipe(f"int{bits}", layout_of_rest, tuple(rules), ignore, notes=(ZERO_BIASES,))


def _gptq_rules(keys: Keys, bits: int, group: int | None) -> list[Rule]:
    """GPTQModel's ``dynamic``: patterns marked ``-:`` are left out, others have options of their own."""
    rules: list[Rule] = []
    dynamic = keys.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise keys.refuse("dynamic", f"{dynamic!r:.100} is no table of patterns.")
    for pattern, options in dynamic.items():
        where = Patterns.of([f"re:{pattern.removeprefix('-:').removeprefix('+:')}"], "dynamic")
        if pattern.startswith("-:") or options is False:
            rules.append(Rule(where, None))
            continue
        own = Keys("gptq", options, "dynamic")
        own_bits = _packed_bits(own, own.number("bits", bits, 1))
        own_group = own.group_size(-1 if group is None else group)
        own.done()
        rules.append(Rule(where, gptq(own_bits, own_group)))
    return rules


def _packed_bits(keys: Keys, bits: int | None) -> int:
    if bits not in {2, 3, 4, 5, 6, 7, 8}:
        raise keys.refuse("bits", f"{bits!r} bits are not packed into words of 32.")
    return bits


def awq_recipe(keys: Keys, _dtype: str) -> Recipe:
    bits = _packed_bits(keys, keys.number("bits") or keys.number("w_bit", 4, 1))
    group = keys.group_size(keys.number("q_group_size", 128))
    keys.one_of("version", ("gemm", "GEMM"), "gemm")
    if keys.get("zero_point", True) is not True:
        raise keys.refuse("zero_point", "false is not known beside the version gemm.")
    ignore = keys.names("modules_to_not_convert", "ignore")
    return Recipe(f"int{bits}", awq(bits, group), ignore=ignore + GATES + HEAD)


def auto_round(keys: Keys, dtype: str) -> Recipe:
    """Intel AutoRound: GPTQ's or AWQ's way to store integers, with options per layer."""
    if (keys.number("act_bits", 16, 1) or 16) < 16:
        raise keys.refuse("act_bits", "what is stored for quantized activations is not known.")
    options = {key: keys.get(key) for key in ("bits", "group_size", "sym", "data_type")}
    form = str(keys.get("packing_format", "auto_round:auto_gptq"))
    layout = _auto_round_layout(keys, options, form)
    rules = []
    for name, own in (keys.get("extra_config") or {}).items():
        layer = Keys("auto-round", own, "layer")
        given = {key: layer.get(key) for key in options}
        layer.done()
        merged = {key: given[key] if given[key] is not None else options[key] for key in options}
        rules.append(Rule(Patterns.of([name], "extra_config"), _auto_round_layout(layer, merged, form)))
    blocks = keys.get("block_name_to_quantize") or keys.get("to_quant_block_names")
    keys.get("to_quant_block_names")
    names = [name.strip() for name in blocks.split(",")] if isinstance(blocks, str) else list(flat(blocks or ()))
    if names:
        return Recipe(layout.name if layout else "bf16", None, (*rules, *_blocks(keys, names, layout)))
    return Recipe(layout.name if layout else "bf16", layout, tuple(rules), GATES)


def _blocks(keys: Keys, names: list[str], layout: Layout | None) -> list[Rule]:
    """Blocks that are quantized, but for their gates."""
    return [Rule(GATES, None), Rule(Patterns.of(names, "block_name_to_quantize"), layout)]


def _auto_round_layout(keys: Keys, options: Mapping[str, Any], form: str) -> Layout | None:
    bits, group = options["bits"] or 4, options["group_size"]
    if bits >= 16:
        return None
    if str(options["data_type"] or "int") != "int":
        raise keys.refuse("data_type", f"how {options['data_type']!r} is stored is not known.")
    group = None if group in {-1, None} else int(group)
    kinds = {
        "auto_round:auto_gptq": lambda: gptq(_packed_bits(keys, bits), group, indexed=False),
        "auto_round:gptq": lambda: gptq(_packed_bits(keys, bits), group, indexed=False),
        "auto_round": lambda: gptq(_packed_bits(keys, bits), group, indexed=False),
        "auto_round:gptqmodel": lambda: gptq(_packed_bits(keys, bits), group),
        "auto_round:auto_awq": lambda: awq(_packed_bits(keys, bits), group),
    }
    if form not in kinds:
        raise keys.refuse("packing_format", f"{form!r} is not known. {nearest(form, kinds)}")
    return kinds[form]()
