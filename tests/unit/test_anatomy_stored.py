"""Bytes as checkpoints store them: headers, quantized layouts, and checkpoints that do not fit their config."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

from moecap.errors import MoecapError
from moecap.model.counted import anatomy
from moecap.model.headers import DTYPE_BITS, read_checkpoint
from moecap.model.layouts import int_packed, plain
from moecap.model.quantization import recipe_from_quantization_config
from moecap.model.reader import skeleton
from moecap.model.recipes import resolve_precision
from moecap.model.stored import stored_sizes

HIDDEN, WIDTH, EXPERTS, LAYERS, VOCAB, KV = 256, 128, 4, 2, 64, 64
CONFIG = {
    "model_type": "qwen2_moe",
    "hidden_size": HIDDEN,
    "intermediate_size": 512,
    "moe_intermediate_size": WIDTH,
    "shared_expert_intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "vocab_size": VOCAB,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.shared_expert.gate_proj": (WIDTH, HIDDEN),
    "mlp.shared_expert.up_proj": (WIDTH, HIDDEN),
    "mlp.shared_expert.down_proj": (HIDDEN, WIDTH),
    **{f"mlp.experts.{e}.gate_proj": (WIDTH, HIDDEN) for e in range(EXPERTS)},
    **{f"mlp.experts.{e}.up_proj": (WIDTH, HIDDEN) for e in range(EXPERTS)},
    **{f"mlp.experts.{e}.down_proj": (HIDDEN, WIDTH) for e in range(EXPERTS)},
}


def write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """A safetensors file of zeros; returns the bytes of its tensors."""
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = DTYPE_BITS[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size // 8]}
        at += size // 8
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return at


def plain_tensors() -> dict[str, tuple[str, tuple[int, ...]]]:
    """What no recipe touches: embedding, head, norms, router, shared gate, biases."""
    tensors = {"model.embed_tokens.weight": ("BF16", (VOCAB, HIDDEN)), "lm_head.weight": ("BF16", (VOCAB, HIDDEN)),
               "model.norm.weight": ("BF16", (HIDDEN,))}  # fmt: skip
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        tensors |= {
            f"{layer}.input_layernorm.weight": ("BF16", (HIDDEN,)),
            f"{layer}.post_attention_layernorm.weight": ("BF16", (HIDDEN,)),
            f"{layer}.mlp.gate.weight": ("BF16", (EXPERTS, HIDDEN)),
            f"{layer}.mlp.shared_expert_gate.weight": ("BF16", (1, HIDDEN)),
            f"{layer}.self_attn.q_proj.bias": ("BF16", (HIDDEN,)),
            f"{layer}.self_attn.k_proj.bias": ("BF16", (KV,)),
            f"{layer}.self_attn.v_proj.bias": ("BF16", (KV,)),
        }
    return tensors


def bf16(name, rows, columns):
    return {f"{name}.weight": ("BF16", (rows, columns))}


def w8a8(name, rows, columns):
    return {f"{name}.weight": ("I8", (rows, columns)), f"{name}.weight_scale": ("BF16", (rows, 1))}


def w4a16(name, rows, columns, group=128):
    return {
        f"{name}.weight_packed": ("I32", (rows, columns // 8)),
        f"{name}.weight_scale": ("BF16", (rows, columns // group)),
        f"{name}.weight_shape": ("I64", (2,)),
    }


def w4a16_asymmetric(name, rows, columns, group=128):
    zeros = {f"{name}.weight_zero_point": ("I32", (rows // 8, columns // group))}
    return w4a16(name, rows, columns, group) | zeros


def fp8_blocks(name, rows, columns):
    blocks = (-(-rows // 128), -(-columns // 128))
    return {f"{name}.weight": ("F8_E4M3", (rows, columns)), f"{name}.weight_scale_inv": ("F32", blocks)}


def gptq(name, rows, columns, group=128):
    return {
        f"{name}.qweight": ("I32", (columns // 8, rows)),
        f"{name}.qzeros": ("I32", (columns // group, rows // 8)),
        f"{name}.scales": ("F16", (columns // group, rows)),
        f"{name}.g_idx": ("I32", (columns,)),
    }


def compressed(bits, group, symmetric=True):
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group,
               "strategy": "group" if group else "channel"}  # fmt: skip
    layout = "pack-quantized" if bits < 8 else "int-quantized"
    return {"quant_method": "compressed-tensors", "format": layout,
            "config_groups": {"group_0": {"format": layout, "targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head", "re:.*mlp.gate$", "re:.*shared_expert_gate$"]}  # fmt: skip


LAYOUTS = {
    "bf16": (bf16, None),
    "int8": (w8a8, compressed(8, None)),
    "int4": (w4a16, compressed(4, 128)),
    "int4-asymmetric": (w4a16_asymmetric, compressed(4, 128, symmetric=False)),
    "fp8": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128],
                         "modules_to_not_convert": ["shared_expert_gate"]}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128}),
}  # fmt: skip


def checkpoint(folder: Path, layout: str, **changes) -> tuple[Path, int]:
    """A checkpoint in a layout; returns its folder and the bytes of its tensors."""
    one, quantization = LAYOUTS[layout]
    tensors = plain_tensors()
    for i in range(LAYERS):
        for name, (rows, columns) in LINEAR.items():
            tensors |= one(f"model.layers.{i}.{name}", rows, columns)
    tensors |= changes.pop("extra", {})
    for name in changes.pop("without", ()):
        del tensors[name]
    folder.mkdir(exist_ok=True)
    config = CONFIG | changes | ({"quantization_config": quantization} if quantization else {})
    (folder / "config.json").write_text(json.dumps(config))
    return folder, write(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_sum_to_the_tensor_bytes_on_disk(tmp_path, layout):
    folder, size = checkpoint(tmp_path / "m", layout)
    a = anatomy(folder)
    assert a.source == "checkpoint"
    assert a.weight_bytes == a.stored_bytes == sum(row["bytes"] for row in a.table()) == size
    one, _ = LAYOUTS[layout]
    expert = one("e", WIDTH, HIDDEN), one("e", WIDTH, HIDDEN), one("e", HIDDEN, WIDTH)
    scratch = tmp_path / "expert.safetensors"
    assert a.kinds[0].expert_bytes == sum(write(scratch, tensors) for tensors in expert)
    assert a.components["embedding"].bytes == a.components["lm_head"].bytes == 2 * VOCAB * HIDDEN
    assert a.components["router"].bytes == LAYERS * 2 * EXPERTS * HIDDEN
    assert a.total_params == anatomy(CONFIG).total_params


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_planned_precision_weighs_what_the_checkpoint_does(tmp_path, layout):
    """The quantization config alone predicts the checkpoint's bytes, component by component."""
    folder, size = checkpoint(tmp_path / "m", layout)
    stored = anatomy(folder)
    planned = anatomy(json.loads((folder / "config.json").read_text()))
    assert planned.source == "config"
    assert {k: c.bytes for k, c in planned.components.items()} == {k: c.bytes for k, c in stored.components.items()}
    assert planned.weight_bytes == size


def test_int4_is_not_half_a_byte_per_weight(tmp_path):
    folder, _ = checkpoint(tmp_path / "m", "int4")
    expert = anatomy(folder).kinds[0]
    assert expert.expert_bytes > expert.expert_params / 2
    assert expert.expert_bytes == expert.expert_params // 2 + 2 * expert.expert_params // 128 + 3 * 16


@pytest.mark.parametrize(
    ("name", "expected"), [("int8", "int8"), ("int4", "int4")], ids=["catalogue int8", "catalogue int4"]
)
def test_precisions_of_the_catalogue_weigh_what_llmcompressor_writes(tmp_path, name, expected):
    _, size = checkpoint(tmp_path / "m", expected)
    assert anatomy(CONFIG, name).weight_bytes == size


def test_mixed_precision_and_experts_that_differ(tmp_path):
    """One expert left in bf16: totals are exact, an expert's bytes are the mean."""
    one = {n: v for p in ("gate_proj", "up_proj", "down_proj")
           for n, v in w8a8(f"model.layers.0.mlp.experts.1.{p}", *LINEAR[f"mlp.experts.1.{p}"]).items()}  # fmt: skip
    folder, size = checkpoint(tmp_path / "m", "bf16", extra=one)
    a = anatomy(folder)
    assert a.weight_bytes == size
    assert len(a.kinds) == 2 and a.kinds[0].expert_bytes < a.kinds[1].expert_bytes


def test_multi_token_prediction_layers_are_listed_apart(tmp_path):
    mtp = {
        f"model.layers.{LAYERS}.eh_proj.weight": ("BF16", (HIDDEN, 2 * HIDDEN)),
        "mtp.norm.weight": ("BF16", (HIDDEN,)),
    }
    plain, size = checkpoint(tmp_path / "plain", "bf16")
    folder, more = checkpoint(tmp_path / "mtp", "bf16", extra=mtp, num_nextn_predict_layers=1)
    a = anatomy(folder)
    assert a.unread == {"mtp": more - size}
    assert a.weight_bytes == anatomy(plain).weight_bytes == size and a.stored_bytes == more


def test_tied_head_that_is_stored_anyway_is_not_read_twice(tmp_path):
    folder, size = checkpoint(tmp_path / "m", "bf16", tie_word_embeddings=True)
    a = anatomy(folder)
    assert a.tied_embeddings and a.unread == {"lm_head (tied)": 2 * VOCAB * HIDDEN}
    assert a.stored_bytes == size and a.components["lm_head"].bytes == 0


def test_a_sharded_checkpoint_and_one_that_lacks_a_shard(tmp_path):
    folder, size = checkpoint(tmp_path / "m", "bf16")
    tensors = {t.name: (t.dtype, t.shape) for t in read_checkpoint(folder).tensors}
    (folder / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
    for i, half in enumerate(halves):
        write(folder / f"model-{i}.safetensors", half)
    places = {name: f"model-{i}.safetensors" for i, half in enumerate(halves) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert anatomy(folder).weight_bytes == size
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(MoecapError, match=r"model-1\.safetensors does not exist"):
        anatomy(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_files_are_named_and_kept(tmp_path, keep):
    folder, _ = checkpoint(tmp_path / "m", "bf16")
    file = folder / "model.safetensors"
    data = file.read_bytes()[:keep]
    file.write_bytes(data)
    with pytest.raises(MoecapError, match=r"model\.safetensors"):
        anatomy(folder)
    assert file.read_bytes() == data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": {"model.layers.0.mlp.adapter.weight": ("BF16", (8, 8))}}, "belong to no part"),
        ({"extra": {"something.weight": ("BF16", (8,))}}, "belong to no part"),
        ({"without": ("model.layers.1.mlp.experts.3.up_proj.weight",)}, r"weights of routed_experts \(layer 1\)"),
        ({"without": ("lm_head.weight",)}, "weights of lm_head"),
        ({"num_experts": 8}, "weights of rout"),
        ({"num_hidden_layers": 3}, r"layer 2"),
        ({"num_hidden_layers": 1}, "belong to no part|mtp|layer"),
        ({"moe_intermediate_size": 64}, "weights of routed_experts"),
        ({"vocab_size": 65}, "weights of"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_config(tmp_path, changes, message):
    folder, _ = checkpoint(tmp_path / "m", "bf16", **changes)
    with pytest.raises(MoecapError, match=message):
        anatomy(folder)


def test_mxfp4_blocks_and_scales(tmp_path):
    config = {"model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4,
              "num_experts_per_tok": 2, "vocab_size": 32, "sliding_window": 16, "layer_types": ["full_attention"],
              "tie_word_embeddings": False, "dtype": "bfloat16",
              "quantization_config": {"quant_method": "mxfp4",
                                      "modules_to_not_convert": ["model.layers.*.self_attn"]}}  # fmt: skip
    attention = {"q": 64, "k": 32, "v": 32, "o": 64}
    layer = "model.layers.0"
    tensors = {"model.embed_tokens.weight": ("BF16", (32, 64)), "lm_head.weight": ("BF16", (32, 64)),
               "model.norm.weight": ("BF16", (64,)), f"{layer}.input_layernorm.weight": ("BF16", (64,)),
               f"{layer}.post_attention_layernorm.weight": ("BF16", (64,)), f"{layer}.self_attn.sinks": ("BF16", (4,)),
               f"{layer}.mlp.router.weight": ("BF16", (4, 64)), f"{layer}.mlp.router.bias": ("BF16", (4,)),
               f"{layer}.mlp.experts.gate_up_proj_blocks": ("U8", (4, 128, 2, 16)),
               f"{layer}.mlp.experts.gate_up_proj_scales": ("U8", (4, 128, 2)),
               f"{layer}.mlp.experts.gate_up_proj_bias": ("BF16", (4, 128)),
               f"{layer}.mlp.experts.down_proj_blocks": ("U8", (4, 64, 2, 16)),
               f"{layer}.mlp.experts.down_proj_scales": ("U8", (4, 64, 2)),
               f"{layer}.mlp.experts.down_proj_bias": ("BF16", (4, 64))}  # fmt: skip
    for name, rows in attention.items():
        tensors[f"{layer}.self_attn.{name}_proj.weight"] = ("BF16", (rows, 64))
        tensors[f"{layer}.self_attn.{name}_proj.bias"] = ("BF16", (rows,))
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = write(tmp_path / "model.safetensors", tensors)
    stored, planned = anatomy(tmp_path), anatomy(config)
    assert stored.weight_bytes == planned.weight_bytes == size
    assert stored.precision == planned.precision == "mxfp4"
    assert stored.kinds[0].expert_bytes == 3 * 64 * 64 * 17 // 32 + 2 * 3 * 64


@given(st.integers(1, 512), st.integers(1, 512), st.sampled_from([2, 3, 4, 8]), st.sampled_from([None, 0, 32, 128]))
def test_a_recipe_never_weighs_less_than_its_bits(rows, columns, bits, group):
    for layout, with_zeros in (
        (plain("x", bits, group), plain("x", bits, group, zero_bits=bits)),
        (int_packed(bits, group), int_packed(bits, group, symmetric=False)),
    ):
        size = layout.matrix_bytes(rows, columns)
        assert size * 8 >= rows * columns * bits
        assert with_zeros.matrix_bytes(rows, columns) > size


def test_recipes_that_are_not_known():
    with pytest.raises(MoecapError, match="int4"):
        resolve_precision("int44")
    with pytest.raises(MoecapError, match="group_size"):
        resolve_precision({"weight_bits": 4, "groupsize": 64})
    with pytest.raises(MoecapError, match="weight_bits"):
        resolve_precision({"weight_bits": 0})
    with pytest.raises(MoecapError, match="hqq"):
        recipe_from_quantization_config({"quant_method": "hqq"})


def test_every_tensor_of_a_checkpoint_goes_to_one_place(tmp_path):
    folder, _ = checkpoint(tmp_path / "m", "int4")
    found = stored_sizes(folder, skeleton(folder))
    assert set(found.tensors) == {t.name for t in read_checkpoint(folder).tensors}
    assert found.tensors["model.layers.1.mlp.experts.2.down_proj.weight_scale"] == (1, "routed_experts")
    assert found.tensors["model.layers.0.self_attn.q_proj.weight_packed"] == (0, "attention")
    assert found.tensors["model.layers.0.mlp.shared_expert_gate.weight"] == (0, "shared_experts")


def test_older_names_are_read_by_transformers_own_table(tmp_path):
    """Mixtral's checkpoints say block_sparse_moe and w1, w2, w3."""
    config = {"model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2,
              "num_experts_per_tok": 1, "vocab_size": 16, "tie_word_embeddings": False}  # fmt: skip
    layer = "model.layers.0"
    tensors = {"model.embed_tokens.weight": ("BF16", (16, 32)), "lm_head.weight": ("BF16", (16, 32)),
               "model.norm.weight": ("BF16", (32,)), f"{layer}.input_layernorm.weight": ("BF16", (32,)),
               f"{layer}.post_attention_layernorm.weight": ("BF16", (32,)),
               f"{layer}.block_sparse_moe.gate.weight": ("BF16", (2, 32))}  # fmt: skip
    for name, rows in {"q": 32, "k": 16, "v": 16, "o": 32}.items():
        tensors[f"{layer}.self_attn.{name}_proj.weight"] = ("BF16", (rows, 32))
    for e in range(2):
        for name, shape in {"w1": (48, 32), "w3": (48, 32), "w2": (32, 48)}.items():
            tensors[f"{layer}.block_sparse_moe.experts.{e}.{name}.weight"] = ("BF16", shape)
    (tmp_path / "config.json").write_text(json.dumps(config))
    size = write(tmp_path / "model.safetensors", tensors)
    a = anatomy(tmp_path)
    assert a.weight_bytes == size == 2 * a.total_params
    assert a.kinds[0].expert_bytes == 2 * 3 * 48 * 32
