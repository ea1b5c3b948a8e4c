"""Quantized checkpoints of every method: the config alone predicts the bytes that the headers sum to.

The tensors of each method are written here as the tool that makes such checkpoints writes them, by code that shares
nothing with what is tested; the weights are zeros.
"""

from __future__ import annotations

import json
import struct
from math import ceil, prod
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import contextlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moecap.errors import MoecapError
from moecap.model.counted import anatomy

SIZES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F16": 2, "BF16": 2, "F32": 4, "I32": 4, "I64": 8}
HIDDEN, WIDTH, DENSE, VOCAB, LAYERS, EXPERTS = 256, 128, 384, 64, 2, 4
COMMON = {
    "hidden_size": HIDDEN, "vocab_size": VOCAB, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "max_position_embeddings": 512,
}  # fmt: skip
HEAD_DIM = 64
ATTENTION = {"q_proj": (256, HIDDEN), "k_proj": (128, HIDDEN), "v_proj": (128, HIDDEN), "o_proj": (HIDDEN, 256)}
MLA = {
    "q_a_proj": (96, HIDDEN), "q_b_proj": (4 * 96, 96), "kv_a_proj_with_mqa": (64 + 32, HIDDEN),
    "kv_b_proj": (4 * 128, 64), "o_proj": (HIDDEN, 4 * 64),
}  # fmt: skip


def mlp(prefix, width, names=("gate_proj", "up_proj", "down_proj")):
    gate, up, down = names
    return {
        f"{prefix}.{gate}": (width, HIDDEN),
        f"{prefix}.{up}": (width, HIDDEN),
        f"{prefix}.{down}": (HIDDEN, width),
    }


def experts(prefix, names=("gate_proj", "up_proj", "down_proj")):
    return {k: v for e in range(EXPERTS) for k, v in mlp(f"{prefix}.experts.{e}", WIDTH, names).items()}


def attention(layer, shapes):
    return {f"{layer}.self_attn.{name}": shape for name, shape in shapes.items()}


def norms(layer, *inner):
    own = {f"{layer}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    return own | {f"{layer}.self_attn.{name}.weight": (size,) for name, size in inner}


def qwen3_moe(i):
    layer = f"model.layers.{i}"
    rest = {f"{layer}.mlp.gate.weight": (EXPERTS, HIDDEN)}
    rest |= norms(layer, ("q_norm", HEAD_DIM), ("k_norm", HEAD_DIM))
    return attention(layer, ATTENTION) | experts(f"{layer}.mlp"), rest


def mixtral(i):
    layer = f"model.layers.{i}"
    rest = {f"{layer}.block_sparse_moe.gate.weight": (EXPERTS, HIDDEN)} | norms(layer)
    return attention(layer, ATTENTION) | experts(f"{layer}.block_sparse_moe", ("w1", "w3", "w2")), rest


def deepseek_v3(i):
    layer = f"model.layers.{i}"
    rest = norms(layer, ("q_a_layernorm", 96), ("kv_a_layernorm", 64))
    if i == 0:
        return attention(layer, MLA) | mlp(f"{layer}.mlp", DENSE), rest
    rest |= {f"{layer}.mlp.gate.weight": (EXPERTS, HIDDEN), f"{layer}.mlp.gate.e_score_correction_bias": (EXPERTS,)}
    return attention(layer, MLA) | experts(f"{layer}.mlp") | mlp(f"{layer}.mlp.shared_experts", WIDTH), rest


MODELS = {
    "qwen3_moe": (qwen3_moe, {"intermediate_size": DENSE, "moe_intermediate_size": WIDTH, "num_experts": EXPERTS,
                              "head_dim": HEAD_DIM, "mlp_only_layers": [], "decoder_sparse_step": 1}),
    "mixtral": (mixtral, {"intermediate_size": WIDTH, "num_local_experts": EXPERTS, "head_dim": HEAD_DIM}),
    "deepseek_v3": (deepseek_v3, {"intermediate_size": DENSE, "moe_intermediate_size": WIDTH,
                                  "n_routed_experts": EXPERTS, "n_shared_experts": 1, "first_k_dense_replace": 1,
                                  "num_key_value_heads": 4, "q_lora_rank": 96, "kv_lora_rank": 64,
                                  "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "n_group": 1,
                                  "topk_group": 1}),
}  # fmt: skip


def modules_of(model):
    """All linear modules of a model (name -> outputs, inputs), and everything else (parameter -> shape)."""
    linear, rest = {}, {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        own, other = MODELS[model][0](i)
        linear, rest = linear | own, rest | other
    return linear | {"lm_head": (VOCAB, HIDDEN)}, rest


# -- tensors, as tools write them: module, outputs, inputs -> tensor -> dtype and shape


def as_is(n, r, c):
    return {f"{n}.weight": ("BF16", (r, c))}


def gptq(bits=4, group=128, g_idx=True, bias=False):
    def tensors(n, r, c):
        groups = 1 if group == -1 else ceil(c / group)
        found = {f"{n}.qweight": ("I32", (c // 32 * bits, r)), f"{n}.qzeros": ("I32", (groups, r // 32 * bits)),
                 f"{n}.scales": ("F16", (groups, r))}  # fmt: skip
        return found | ({f"{n}.g_idx": ("I32", (c,))} if g_idx else {}) | ({f"{n}.bias": ("F16", (r,))} if bias else {})

    return tensors


def awq(group):
    return lambda n, r, c: {f"{n}.qweight": ("I32", (c, r // 8)), f"{n}.qzeros": ("I32", (ceil(c / group), r // 8)),
                            f"{n}.scales": ("F16", (ceil(c / group), r))}  # fmt: skip


def fp8(block=None, static=False):
    def tensors(n, r, c):
        shape = (ceil(r / block[0]), ceil(c / block[1])) if block else ()
        scale = {f"{n}.weight_scale_inv" if block else f"{n}.weight_scale": ("F32", shape)}
        static_scale = {f"{n}.input_scale": ("F32", ())} if static else {}
        return {f"{n}.weight": ("F8_E4M3", (r, c))} | scale | static_scale

    return tensors


def fbgemm(n, r, c):
    return {f"{n}.weight": ("F8_E4M3", (r, c)), f"{n}.weight_scale": ("F32", (r, 1))}


def bnb8(n, r, c):
    return {f"{n}.weight": ("I8", (r, c)), f"{n}.SCB": ("F32", (r,)), f"{n}.weight_format": ("U8", ())}


def bnb4(kind, nested):
    def tensors(n, r, c):
        state = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [r, c]}
        blocks = ceil(r * c / 64)
        found = {f"{n}.weight": ("U8", (r * c // 2, 1)), f"{n}.weight.quant_map": ("F32", (16,)),
                 f"{n}.weight.absmax": ("U8" if nested else "F32", (blocks,))}  # fmt: skip
        if nested:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.04172012209892273}
            found |= {f"{n}.weight.nested_absmax": ("F32", (ceil(blocks / 256),)),
                      f"{n}.weight.nested_quant_map": ("F32", (256,))}  # fmt: skip
        return found | {f"{n}.weight.quant_state.bitsandbytes__{kind}": ("U8", (len(json.dumps(state)),))}

    return tensors


def packed(bits, group, symmetric=True, g_idx=False):
    def tensors(n, r, c):
        groups = ceil(c / group) if group else 1
        found = {f"{n}.weight_packed": ("I32", (r, ceil(c * bits / 32))), f"{n}.weight_scale": ("BF16", (r, groups)),
                 f"{n}.weight_shape": ("I64", (2,))}  # fmt: skip
        if not symmetric:
            found[f"{n}.weight_zero_point"] = ("I32", (ceil(r * bits / 32), groups))
        return found | ({f"{n}.weight_g_idx": ("I32", (c,))} if g_idx else {})

    return tensors


def int8(n, r, c):
    return {f"{n}.weight": ("I8", (r, c)), f"{n}.weight_scale": ("BF16", (r, 1))}


def fp8_compressed(static):
    def tensors(n, r, c):
        scale = {f"{n}.weight_scale": ("BF16", (1,) if static else (r, 1))}
        return {f"{n}.weight": ("F8_E4M3", (r, c))} | scale | ({f"{n}.input_scale": ("BF16", (1,))} if static else {})

    return tensors


def nvfp4_compressed(n, r, c):
    return {f"{n}.weight_packed": ("U8", (r, c // 2)), f"{n}.weight_scale": ("F8_E4M3", (r, c // 16)),
            f"{n}.weight_global_scale": ("F32", (1,)), f"{n}.input_global_scale": ("F32", (1,))}  # fmt: skip


def mx(weight, dtype, scale="U8"):
    values = 2 if dtype == "U8" else 1
    return lambda n, r, c: {f"{n}.{weight}": (dtype, (r, c // values)), f"{n}.weight_scale": (scale, (r, c // 32))}


def nvfp4_modelopt(n, r, c):
    return {f"{n}.weight": ("U8", (r, c // 2)), f"{n}.weight_scale": ("F8_E4M3", (r, c // 16)),
            f"{n}.weight_scale_2": ("F32", ()), f"{n}.input_scale": ("F32", ())}  # fmt: skip


def fp8_modelopt(n, r, c):
    return {f"{n}.weight": ("F8_E4M3", (r, c)), f"{n}.weight_scale": ("F32", ()), f"{n}.input_scale": ("F32", ())}


# -- configs: what each method says of a checkpoint, given the modules that it left as they are


def weights(bits, kind="int", **more):
    return {"num_bits": bits, "type": kind, "dynamic": False, "observer": "minmax", **more}


def compressed(form, weights, activations=None, targets=("Linear",), **more):
    group = {"targets": list(targets), "weights": weights, "input_activations": activations, "format": form}
    return lambda left: {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
                         "config_groups": {"group_0": group}, "ignore": left, **more}  # fmt: skip


TOKENS = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
E8M0 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "ch_axis": -1,
        "is_dynamic": False, "scale_type": "float", "round_method": "half_even"}  # fmt: skip


def quark(left):
    layer = {"weight": E8M0, "input_tensors": {**E8M0, "is_dynamic": True}, "output_tensors": None, "bias": None}
    return {"quant_method": "quark", "global_quant_config": layer, "exclude": left, "layer_quant_config": {},
            "export": {"kv_cache_group": [], "pack_method": "reorder", "weight_format": "real_quantized"}}  # fmt: skip


def fp8_config(key, **more):
    return lambda left: {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", key: left, **more}


def modelopt(algorithm, **more):
    return lambda left: {"producer": {"name": "modelopt", "version": "0.47.0"},
                         "quantization": {"quant_algo": algorithm, "exclude_modules": left, **more}}  # fmt: skip


def gptq_config(bits, group, **more):
    def config(left):
        rules = {f"-:.*{name.replace('.', chr(92) + '.')}$": {} for name in left if name != "lm_head"}
        return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": True, "desc_act": False,
                "dynamic": rules or None, **more}  # fmt: skip

    return config


#: method -> how it writes a matrix, and its config
METHODS = {
    "fp8-block": (fp8((128, 128)), fp8_config("modules_to_not_convert", weight_block_size=[128, 128])),
    "fp8-ignored-layers": (fp8((64, 32)), fp8_config("ignored_layers", weight_block_size=[64, 32])),
    "fp8-static": (fp8(static=True), lambda left: fp8_config("ignored_layers")(left) | {"activation_scheme": "static"}),
    "fbgemm": (fbgemm, lambda left: {"quant_method": "fbgemm_fp8", "modules_to_not_convert": left}),
    **{f"gptq-{b}-{g}": (gptq(b, g), gptq_config(b, g)) for b, g in ((4, 128), (8, 32), (2, 64), (3, -1))},
    "awq": (awq(64), lambda left: {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True,
                                   "version": "gemm", "modules_to_not_convert": left}),
    "auto-round": (gptq(4, 128, g_idx=False),
                   lambda left: {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True,
                                 "packing_format": "auto_round:auto_gptq", "iters": 200,
                                 "extra_config": {n: {"bits": 16, "data_type": "float"} for n in left}}),
    "bnb-int8": (bnb8, lambda left: {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False,
                                     "llm_int8_skip_modules": left}),
    **{f"bnb-{kind}{'-nested' * nested}": (
        bnb4(kind, nested),
        lambda left, kind=kind, nested=nested: {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": nested, "llm_int8_skip_modules": left},
    ) for kind, nested in (("nf4", True), ("nf4", False), ("fp4", False))},
    "ct-int8": (int8, compressed("int-quantized", weights(8, strategy="channel"), TOKENS)),
    "ct-int4": (packed(4, 32), compressed("pack-quantized", weights(4, strategy="group", group_size=32))),
    "ct-int4-zeros": (packed(4, 128, False), compressed("pack-quantized",
                                                        weights(4, group_size=128, symmetric=False))),
    "ct-int3-ordered": (packed(3, 64, g_idx=True), compressed("pack-quantized",
                                                              weights(3, group_size=64, actorder="group"))),
    "ct-int8-packed": (packed(8, None), compressed("pack-quantized", weights(8, strategy="channel", group_size=-1))),
    "ct-fp8": (fp8_compressed(False), compressed("float-quantized", weights(8, "float", strategy="channel"),
                                                 {**TOKENS, "type": "float"})),
    "ct-fp8-static": (fp8_compressed(True), compressed("float-quantized", weights(8, "float", strategy="tensor"),
                                                       weights(8, "float", strategy="tensor"))),
    "ct-nvfp4": (nvfp4_compressed, compressed(
        "nvfp4-pack-quantized", weights(4, "float", strategy="tensor_group", group_size=16),
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local"})),
    "ct-mxfp4": (mx("weight_packed", "U8"), compressed("mxfp4-pack-quantized",
                                                       weights(4, "float", strategy="group", group_size=32,
                                                               scale_dtype="torch.uint8"))),
    "modelopt-nvfp4": (nvfp4_modelopt, modelopt("NVFP4", group_size=16)),
    "modelopt-fp8": (fp8_modelopt, modelopt("FP8", kv_cache_quant_algo=None)),
    "modelopt-mxfp8": (mx("weight", "F8_E4M3"), modelopt("MXFP8", group_size=32)),
    "quark-mxfp4": (mx("weight", "U8"), quark),
}  # fmt: skip


def write(path: Path, tensors) -> int:
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return at


def make(folder: Path, model: str, how, quantization, extra=None):
    """A checkpoint; ``how`` says of each module how it is written. Returns its config and the bytes of its tensors."""
    linear, rest = modules_of(model)
    tensors = {name: ("BF16", shape) for name, shape in rest.items()}
    for name, (rows, columns) in linear.items():
        tensors |= how(name)(name, rows, columns)
    config = {**COMMON, **MODELS[model][1], "model_type": model, "quantization_config": quantization}
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return config, write(folder / "model.safetensors", tensors | (extra or {}))


def same(folder: Path, config, size: int):
    """The headers' sum, component by component, from the folder and from the config alone."""
    stored, planned = anatomy(folder), anatomy(config)
    assert stored.source == "checkpoint" and planned.source == "config"
    assert stored.stored_bytes == stored.weight_bytes == size
    assert {k: c.bytes for k, c in planned.components.items()} == {k: c.bytes for k, c in stored.components.items()}
    assert stored.precision == planned.precision
    assert stored.kv_dtype_bytes == planned.kv_dtype_bytes
    return planned


@pytest.mark.parametrize("method", METHODS)
def test_the_config_alone_predicts_the_headers(method, tmp_path):
    """Every method, with modules left out in every way that its tool can say."""
    write_matrix, config_of = METHODS[method]

    @settings(max_examples=4, deadline=None, derandomize=True,
              suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])  # fmt: skip
    @given(st.data())
    def check(data):
        model = data.draw(st.sampled_from(sorted(MODELS)))
        linear, _ = modules_of(model)
        names = sorted(set(linear) - {"lm_head"})
        left = data.draw(st.lists(st.sampled_from(names), max_size=5, unique=True))
        config, size = make(
            tmp_path / "m", model,
            lambda name: as_is if name == "lm_head" or name in left else write_matrix,
            config_of([*left, "lm_head"]),
        )  # fmt: skip
        same(tmp_path / "m", config, size)

    check()


SPELLINGS = {
    "names": lambda left: left,
    "of a multimodal model": lambda left: [f"language_model.{n}" for n in left],
    "of another multimodal model": lambda left: [n.replace("model.", "model.language_model.", 1) for n in left],
    "patterns": lambda left: ["re:.*" + n.replace(".", r"\.").replace("model", "", 1) + "$" for n in left],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("model", MODELS)
def test_modules_are_left_out_by_any_spelling(model, spelling, tmp_path):
    linear, _ = modules_of(model)
    left = [n for i, n in enumerate(sorted(linear)) if i % 5 == 0 and n != "lm_head"]
    config, size = make(tmp_path, model, lambda n: as_is if n in left or n == "lm_head" else int8,
                        METHODS["ct-int8"][1]([*SPELLINGS[spelling](left), "lm_head"]))  # fmt: skip
    same(tmp_path, config, size)


def wildcard(name):
    return "self_attn" in name


MIXED = {
    "globs": (modelopt("NVFP4", group_size=16)(["model.layers.*.self_attn*", "lm_head"]),
              lambda n: as_is if wildcard(n) or n == "lm_head" else nvfp4_modelopt),
    "whole layers": (modelopt("FP8")(["model.layers.0.*", "lm_head"]),
                     lambda n: as_is if "layers.0." in n or n == "lm_head" else fp8_modelopt),
    "experts only": (compressed("pack-quantized", weights(4, group_size=32), targets=[r"re:.*experts\.\d+\..*"])([]),
                     lambda n: packed(4, 32) if "experts." in n and "shared" not in n else as_is),
    "a group beside another": (
        {"quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["lm_head"], "config_groups": {
            "a": {"targets": ["Linear"], "weights": weights(8, strategy="channel"), "input_activations": TOKENS,
                  "format": "int-quantized"},
            "b": {"targets": [r"re:.*\.experts\.[0-9]+\."], "weights": weights(4, group_size=64),
                  "format": "pack-quantized"}}},
        lambda n: as_is if n == "lm_head" else packed(4, 64) if ".experts." in n else int8),
    "every linear, the head too": (compressed("int-quantized", weights(8, strategy="channel"), TOKENS)([]),
                                   lambda n: int8),
    "modules in a block": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128,
         "modules_in_block_to_quantize": [["self_attn.o_proj"], ["self_attn.q_proj", "self_attn.k_proj"]]},
        lambda n: gptq() if n.endswith(("o_proj", "q_proj", "k_proj")) else as_is),
    "a head of its own": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True}, lambda n: gptq()),
    "rules with bits": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128,
         "dynamic": {r"-:.*\.0\.self_attn\.q": {}, r"+:.*self_attn": {"bits": 8, "group_size": 32}}},
        lambda n: as_is if n == "lm_head" or ".0.self_attn.q" in n else gptq(8, 32) if wildcard(n) else gptq()),
    "a table of layers": (
        modelopt("MIXED_PRECISION", quantized_layers={
            **{f"model.layers.{i}.self_attn.o_proj": {"quant_algo": "FP8"} for i in range(LAYERS)},
            **{f"model.layers.{i}.{block}.experts": {"quant_algo": "NVFP4", "group_size": 16}
               for i in range(LAYERS) for block in ("mlp", "block_sparse_moe")}})(["lm_head"]),
        lambda n: fp8_modelopt if n.endswith("o_proj") else nvfp4_modelopt if ".experts." in n else as_is),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("model", ["qwen3_moe", "mixtral"])
def test_several_layouts_in_one_checkpoint(model, kind, tmp_path):
    quantization, how = MIXED[kind]
    config, size = make(tmp_path, model, how, quantization)
    same(tmp_path, config, size)


# -- keys that nobody reads


@pytest.mark.parametrize("method", METHODS)
def test_a_key_that_is_not_understood_is_refused_by_its_name(method):
    stated = METHODS[method][1](["lm_head"])
    inner = stated.get("quantization", stated)
    config = {**COMMON, **MODELS["qwen3_moe"][1], "model_type": "qwen3_moe"}
    for value in (True, "x", ["model.layers.0"], {"a": 1}):
        strange = {**stated, "quantization": {**inner, "newly_invented": value}} if inner is not stated else None
        with pytest.raises(MoecapError, match="newly_invented"):
            anatomy({**config, "quantization_config": strange or {**stated, "newly_invented": value}})


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"bits": 4, "group_size": 64}, "without a name"),
        ({"quant_method": "awq", "version": "gemv"}, "gemv"),
        ({"quant_method": "awq", "zero_point": False}, "zero_point"),
        ({"quant_method": "gptq", "is_marlin_format": True}, "is_marlin_format"),
        ({"quant_method": "gptq", "group_size": 0}, "group_size"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
        ({"quant_method": "fp8", "ignored_layers": {"a": 1}}, "ignored_layers"),
        (modelopt("INT8_SQ")([]), "INT8_SQ"),
        (modelopt("NVFP4", kv_cache_quant_algo="FP2")([]), "kv_cache_quant_algo"),
        (compressed("int-quantized", weights(8), targets=["Embedding"])([]), "Embedding"),
        (compressed("marlin-24", weights(4, group_size=128))([]), "marlin-24"),
        (compressed("int-quantized", weights(8))(["re:(("]), "ignore"),
        (METHODS["bnb-int8"][1]([]) | {"load_in_4bit": True}, "load_in_8bit"),
    ],
)
def test_what_is_not_known_is_refused_by_its_name(stated, named):
    with pytest.raises(MoecapError, match=named):
        anatomy({**COMMON, **MODELS["qwen3_moe"][1], "model_type": "qwen3_moe", "quantization_config": stated})


def test_headers_count_where_the_config_is_not_understood(tmp_path):
    stated = METHODS["ct-int8"][1](["lm_head"]) | {"newly_invented": 1}
    config, size = make(tmp_path, "mixtral", lambda n: as_is if n == "lm_head" else int8, stated)
    counted = anatomy(tmp_path)
    assert counted.weight_bytes == size and not counted.compute_dtypes
    assert any("newly_invented" in note for note in counted.notes)
    with pytest.raises(MoecapError, match="newly_invented"):
        anatomy(config)


# -- the KV cache, and what is computed in


def test_the_kv_cache_has_the_dtype_that_the_checkpoint_states(tmp_path):
    """8 bits an element, and scales of keys and values in each layer."""
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    stated = METHODS["ct-int8"][1](["lm_head"]) | {"kv_cache_scheme": scheme}
    scales = {f"model.layers.{i}.self_attn.{k}_scale": ("BF16", (1,)) for i in range(LAYERS) for k in "kv"}
    config, size = make(tmp_path, "qwen3_moe", lambda n: as_is if n == "lm_head" else int8, stated, scales)
    planned = same(tmp_path, config, size)
    assert planned.kv_dtype_bytes == 1
    assert planned.kv_bytes_per_token == planned.kv_elements_per_token == LAYERS * 2 * 128
    plain = anatomy({**config, "quantization_config": METHODS["ct-int8"][1](["lm_head"])})
    assert plain.kv_bytes_per_token == 2 * planned.kv_bytes_per_token
    assert anatomy(config, kv_dtype_bytes=2).kv_bytes_per_token == plain.kv_bytes_per_token
    nvfp4 = modelopt("NVFP4", group_size=16, kv_cache_quant_algo="NVFP4")(["lm_head"])
    assert anatomy({**config, "quantization_config": nvfp4}).kv_dtype_bytes == 4.5 / 8


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("gptq-4-128", "bf16"), ("awq", "bf16"), ("ct-int4", "bf16"), ("bnb-nf4", "bf16"), ("ct-int8", "int8"),
     ("ct-fp8", "fp8"), ("fp8-block", "fp8"), ("modelopt-nvfp4", "fp4"), ("quark-mxfp4", "fp4"), ("ct-mxfp4", "bf16")],
)  # fmt: skip
def test_products_run_in_what_weights_and_activations_allow(method, dtype):
    stated = METHODS[method][1](["model.layers.0.self_attn.q_proj", "lm_head"])
    counted = anatomy({**COMMON, **MODELS["qwen3_moe"][1], "model_type": "qwen3_moe", "quantization_config": stated})
    assert counted.compute_dtypes["routed_experts"] == {dtype: 1}
    assert counted.compute_dtypes["lm_head"] == counted.compute_dtypes["router"] == {"bf16": 1}
    if dtype != "bf16":
        q, all_of_them = 256 * HIDDEN, 2 * sum(r * c for r, c in ATTENTION.values())
        assert counted.compute_dtypes["attention"]["bf16"] == pytest.approx(q / all_of_them)


# -- ModelOpt's own file, and names


def test_a_quantization_file_beside_the_config_is_read(tmp_path):
    write_matrix, config_of = METHODS["modelopt-nvfp4"]
    config, size = make(tmp_path, "mixtral", lambda n: as_is if n == "lm_head" else write_matrix, None)
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(config_of(["lm_head"])))
    assert anatomy(tmp_path / "config.json").weight_bytes == anatomy(tmp_path).weight_bytes == size
    assert anatomy(tmp_path).precision == "nvfp4"


def test_a_name_that_states_a_format_is_an_estimate_and_says_so(tmp_path):
    folder = tmp_path / "owner__Tiny-NVFP4"
    config, size = make(folder, "mixtral", lambda n: as_is if n == "lm_head" else nvfp4_modelopt, None)
    (folder / "model.safetensors").unlink()
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    counted = anatomy(folder / "config.json")
    assert counted.weight_bytes == size and "estimate" in counted.notes[0]


# -- files that are damaged, or not what they seem


def raw(path: Path, header, data=0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def u8(start, end, shape=None):
    return {"dtype": "U8", "shape": shape or [end - start], "data_offsets": [start, end]}


HOSTILE = {
    "nesting": (b'{"a":' * 9000 + b"1" + b"}" * 9000, 0),
    "overlap": ({"a": u8(0, 4), "b": u8(2, 6)}, 6),
    "hole": ({"a": u8(0, 4), "b": u8(8, 12)}, 12),
    "not the shape's size": ({"a": u8(0, 4, [5])}, 4),
    "a shape beyond all sizes": ({"a": u8(0, 4, [2**40, 2**40])}, 4),
    "negative offsets": ({"a": u8(-4, 0, [4])}, 4),
    "shorter than it says": ({"a": u8(0, 4)}, 2),
    "longer than it says": ({"a": u8(0, 4)}, 9),
    "an unknown dtype": ({"a": {**u8(0, 4), "dtype": "F5"}}, 4),
    "no JSON": (b"\xff" * 40, 4),
    "a list": (b"[1, 2]", 0),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers_are_named(kind, tmp_path):
    from moecap.model.headers import read_header

    with pytest.raises(MoecapError, match=r"x\.safetensors"):
        read_header(raw(tmp_path / "x.safetensors", *HOSTILE[kind]))


@given(st.binary(max_size=300))
def test_no_bytes_are_a_traceback(data):
    import tempfile

    from moecap.model.headers import read_header

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        with contextlib.suppress(MoecapError):
            read_header(path)


def test_folders_whose_files_do_not_agree(tmp_path):
    from moecap.model.headers import read_checkpoint

    folder = tmp_path / "m"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    raw(folder / "a.safetensors", {"x": u8(0, 4)}, 4)
    raw(folder / "b.safetensors", {"x": u8(0, 4), "y": u8(4, 8)}, 8)
    with pytest.raises(MoecapError, match=r"x is in a.safetensors and in b.safetensors"):
        read_checkpoint(folder)
    for places, named in (
        ({"x": "a.safetensors", "z": "a.safetensors"}, "z"),
        ({"x": "gone.safetensors"}, r"gone\.safetensors does not exist"),
        ({"x": "../a.safetensors"}, "outside"),
        ({"x": "/etc/passwd"}, "outside"),
        ({"x": 3}, "index"),
        ([1], "index"),
    ):
        index.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(MoecapError, match=named):
            read_checkpoint(folder)
    index.write_text("[" * 100_000)
    with pytest.raises(MoecapError, match="index"):
        read_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused_but_not_the_hubs_own(tmp_path):
    from moecap.model.headers import read_checkpoint

    elsewhere = raw(tmp_path / "elsewhere.safetensors", {"x": u8(0, 4)}, 4)
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(elsewhere)
    with pytest.raises(MoecapError, match="link out of its folder"):
        read_checkpoint(folder)
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    elsewhere.rename(blobs / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert [t.name for t in read_checkpoint(snapshot).tensors] == ["x"]


def test_a_stale_index_beside_a_whole_file_is_a_note(tmp_path):
    _config, size = make(tmp_path, "mixtral", lambda n: as_is, None)
    stale = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(stale))
    counted = anatomy(tmp_path)
    assert counted.weight_bytes == size and any("index" in note for note in counted.notes)


def test_a_tensor_that_could_not_be_the_parameter_is_named(tmp_path):
    stated = METHODS["gptq-4-128"][1](["lm_head"])
    name = "model.layers.0.self_attn.q_proj.qweight"
    _config, _ = make(tmp_path, "mixtral", lambda n: as_is if n == "lm_head" else gptq(), stated,
                     {name: ("I32", (31, 250))})  # fmt: skip
    with pytest.raises(MoecapError, match=r"q_proj\.qweight"):
        anatomy(tmp_path)


def test_zero_biases_of_older_gptq_tools_count_with_their_module(tmp_path):
    stated = METHODS["gptq-4-128"][1](["lm_head"])
    _, size = make(tmp_path, "qwen3_moe", lambda n: as_is if n == "lm_head" else gptq(bias=True), stated)
    assert anatomy(tmp_path).weight_bytes == size
    planned = anatomy(tmp_path / "config.json")
    assert planned.weight_bytes < size and any("bias of zeros" in note for note in planned.notes)


# -- precisions by name


def test_ready_made_precisions_of_the_catalogue_weigh_what_their_tools_write(tmp_path):
    config = {**COMMON, **MODELS["mixtral"][1], "model_type": "mixtral"}
    for precision, how in (
        ("nvfp4", nvfp4_modelopt), ("mxfp8", mx("weight", "F8_E4M3")), ("mxfp4", mx("weight_packed", "U8")),
        ("fp8-block", fp8((128, 128))), ("gptq-int4", gptq()), ("awq-int4", awq(128)), ("fp8", fp8_compressed(False)),
        ("int8", int8), ("int4", packed(4, 128)),
    ):  # fmt: skip
        _, size = make(tmp_path, "mixtral", lambda n, how=how: as_is if n == "lm_head" else how, None)
        assert anatomy(config, precision).weight_bytes == size, precision


@pytest.mark.parametrize(
    ("hardware", "dtype"), [("A100-SXM4-80GB", "bf16"), ("H100-SXM5-80GB", "fp8"), ("B200-SXM-180GB", "fp8")]
)
def test_a_gpu_without_units_for_a_dtype_multiplies_in_bf16_and_validate_says_so(hardware, dtype):
    from moecap.campaign.catalogue import PrecisionEntry
    from moecap.hardware.catalogue import load

    gpu = load().find(hardware).gpu
    entry = PrecisionEntry(scheme="FP8")
    assert entry.computes_in == "fp8"
    assert (entry.computes_in in gpu.lacks) == (dtype == "bf16")
    assert PrecisionEntry(scheme="W4A16").computes_in == "bf16" and PrecisionEntry(scheme="NVFP4").computes_in == "fp4"
    with pytest.raises(ValueError, match="compute_dtype"):
        PrecisionEntry(scheme="of my own")
