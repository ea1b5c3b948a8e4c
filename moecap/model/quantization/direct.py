"""Methods that quantize every projection alike: fp8 (DeepSeek's, FBGEMM's), mxfp4 (gpt-oss), bitsandbytes."""

from __future__ import annotations

from moecap.model.layouts import bnb_4bit, bnb_int8, mxfp, plain
from moecap.model.names import Patterns
from moecap.model.quantization.compressed import with_kv
from moecap.model.quantization.keys import HEAD, Keys, block_of
from moecap.model.recipes import Recipe, Rule


def fp8(keys: Keys, _dtype: str) -> Recipe:
    """DeepSeek's and transformers' fp8: ``weight`` and ``weight_scale_inv`` in float32, by block or by matrix."""
    block = keys.get("weight_block_size")
    static = keys.one_of("activation_scheme", ("dynamic", "static"), "dynamic") == "static"
    experts = keys.one_of("expert_dtype", ("fp4", "fp8"), "fp8")
    keys.one_of("scale_fmt", ("float", "ue8m0"))
    ignore = keys.names("modules_to_not_convert", "ignored_layers", "ignore") + HEAD + INDEXERS
    if keys.get("modules_to_convert"):
        raise keys.refuse("modules_to_convert", "which of them are matrices is not known.")
    # DeepSeek-V4 keeps block scales in one byte (e8m0); V3.1 and V3.2 round to that format, but store float32.
    scale_bits = 8 if experts == "fp4" else 32
    layout = plain(
        "fp8",
        8,
        0,
        block=block_of(keys, block),
        scale_bits=scale_bits,
        matrix_bits=32 if static else 0,
        compute_dtype="fp8",
    )
    if experts == "fp4":
        rule = Rule(Patterns(("re:.*experts\\.\\d+\\.",)), mxfp(4, compute_dtype="fp8"))
        return with_kv(keys, Recipe("fp4-fp8", layout, (rule,), ignore), 32)
    return with_kv(keys, Recipe("fp8", layout, ignore=ignore), 32)


#: What weighs the heads of DeepSeek's indexer; engines load it unquantized, without any list that says so.
INDEXERS = Patterns(("re:.*indexer\\.weights_proj$",))


def fbgemm(keys: Keys, _dtype: str) -> Recipe:
    layout = plain("fp8", 8, scale_bits=32, compute_dtype="fp8")
    return Recipe("fp8", layout, ignore=keys.names("modules_to_not_convert") + HEAD)


def mxfp4(keys: Keys, _dtype: str) -> Recipe:
    """gpt-oss: ``_blocks`` and ``_scales`` of the experts."""
    return Recipe("mxfp4", mxfp(4), ignore=keys.names("modules_to_not_convert"), components=("routed_experts",))


def bitsandbytes(keys: Keys, dtype: str) -> Recipe:
    ignore = keys.names("llm_int8_skip_modules", "modules_to_not_convert") + HEAD
    if keys.get("llm_int8_has_fp16_weight", False):
        raise keys.refuse("llm_int8_has_fp16_weight", "the weights are then not stored in int8.")
    four = keys.get("load_in_4bit", False)
    kind = keys.one_of("bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")
    nested, block = keys.get("bnb_4bit_use_double_quant", False), keys.number("bnb_4bit_blocksize", 64, 1)
    if keys.get("load_in_8bit", False) == bool(four):
        raise keys.refuse("load_in_8bit", "exactly one of load_in_8bit and load_in_4bit must be true.")
    if not four:
        return Recipe("int8", bnb_int8(), ignore=ignore)
    long = {short: long for long, short in (("bfloat16", "bf16"), ("float16", "fp16"), ("float32", "fp32"))}
    layout = bnb_4bit(str(kind), nested=bool(nested), dtype=long[dtype], block=block or 64)
    note = (
        "A number in each matrix's quant_state is written out in about 20 characters: bytes to within a few per matrix."
    )
    return Recipe(str(kind), layout, ignore=ignore, notes=(note,) if nested else ())
