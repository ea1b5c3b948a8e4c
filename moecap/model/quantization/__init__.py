"""The recipe that a checkpoint's ``quantization_config`` (or ModelOpt's ``hf_quant_config.json``) states.

One reader per method. Every key is read, or is listed in ``harmless.yaml`` as one that changes no stored byte; any
other is refused by its name, for what it does is then not known. What each method stores is taken from the tool that
writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from moecap.errors import MoecapError
from moecap.model.quantization import compressed, direct, integers, modelopt, quark
from moecap.model.quantization.keys import Keys
from moecap.model.recipes import PLAIN_BITS, Recipe, dtype_precision

READERS: dict[str, Callable[[Keys, str], Recipe]] = {
    "fp8": direct.fp8,
    "fbgemm-fp8": direct.fbgemm,
    "mxfp4": direct.mxfp4,
    "gptq": integers.gptq_recipe,
    "awq": integers.awq_recipe,
    "bitsandbytes": direct.bitsandbytes,
    "compressed-tensors": compressed.compressed_tensors,
    "modelopt": modelopt.modelopt,
    "quark": quark.quark,
    "auto-round": integers.auto_round,
}
#: Other names of the same ways to store weights.
ALIASES = {
    "modelopt-fp4": "modelopt", "modelopt-mixed": "modelopt", "modelopt-mxfp8": "modelopt", "gptq-marlin": "gptq",
    "awq-marlin": "awq", "bnb": "bitsandbytes", "intel/auto-round": "auto-round", "inc": "auto-round",
}  # fmt: skip


def recipe_from_quantization_config(config: Mapping[str, Any], dtype: str = "bfloat16") -> Recipe:
    """The recipe that a checkpoint's ``quantization_config`` states.

    Args:
        config: the table, or the contents of ModelOpt's ``hf_quant_config.json``.
        dtype: the model's own, in which everything else is stored.

    Raises:
        MoecapError: a method, key or value that is not understood; nothing is assumed about how it stores weights.
    """
    method = method_of(config)
    reader = READERS.get(method)
    if reader is None:
        raise MoecapError(
            f"quantization_config: how {method or 'a method without a name'!r} stores weights is not known. Give the "
            "checkpoint itself (its headers say what it weighs) or a precision. Known: "
            f"{', '.join(sorted(READERS))}."
        )
    keys = Keys(method, config)
    found = reader(keys, dtype_precision(dtype))
    keys.done()
    return replace(found, rest_bits=PLAIN_BITS[dtype_precision(dtype)])


def method_of(config: Mapping[str, Any]) -> str:
    """The quantization method that a config names, or that its keys imply where older tools named none."""
    method = str(config.get("quant_method") or "").lower().replace("_", "-")
    method = ALIASES.get(method, method)
    if not method:
        if "quantization" in config or "quant_algo" in config:
            return "modelopt"
        if config.get("load_in_4bit") or config.get("load_in_8bit"):
            return "bitsandbytes"
    return method
