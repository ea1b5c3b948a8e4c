"""Released models, counted from the catalogue's configs, against published figures.

Table 1 is that of the MoE-CAP paper; where its printed figure counts otherwise, the reason stands beside it.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from moecap.model.counted import anatomy
from moecap.model.parallel import per_device

# (total B, active B with the whole embedding and head, layers, MoE layers, experts, top-k, KV elements per token)
MODELS = {
    "mixtral-8x7b": (46.703, 12.88, 32, 32, 8, 2, 65_536),
    "mixtral-8x22b": (140.630, 39.16, 56, 56, 8, 2, 114_688),
    "mixtral-8x22b-v0.1": (140.621, 39.15, 56, 56, 8, 2, 114_688),
    "dbrx": (131.597, 36.47, 40, 40, 16, 4, 81_920),
    "qwen1.5-moe-a2.7b": (14.316, 2.69, 24, 24, 60, 4, 98_304),
    "qwen3-30b-a3b": (30.532, 3.35, 48, 48, 128, 8, 49_152),
    "qwen3-235b-a22b": (235.094, 22.19, 94, 94, 128, 8, 96_256),
    "qwen3-next-80b-a3b": (79.674, 3.87, 48, 48, 512, 10, 12_288),
    "deepseek-v2-lite": (15.706, 2.66, 27, 26, 64, 6, 15_552),
    "deepseek-v3": (671.026, 37.55, 61, 58, 256, 8, 35_136),
    "kimi-k2": (1026.408, 32.86, 61, 60, 384, 8, 35_136),
    "deepseekmoe-16b": (16.376, 2.83, 28, 27, 64, 6, 114_688),
    "gpt-oss-20b": (20.915, 4.19, 24, 24, 32, 4, 24_576),
    "gpt-oss-120b": (116.829, 5.71, 36, 36, 128, 4, 36_864),
    "olmoe-1b-7b": (6.919, 1.28, 16, 16, 64, 8, 65_536),
    "phi-3.5-moe": (41.873, 6.64, 32, 32, 16, 2, 65_536),
    "jamba-v0.1": (51.570, 12.11, 32, 16, 16, 2, 8_192),
    "llama-4-scout": (107.770, 17.17, 48, 48, 16, 1, 98_304),
    "llama-4-maverick": (400.712, 17.18, 48, 24, 128, 1, 98_304),
    "glm-4.5": (352.798, 33.63, 92, 89, 160, 8, 188_416),
    "glm-4.5-air": (106.852, 13.42, 46, 45, 128, 8, 94_208),
    "minimax-m2": (228.690, 11.03, 62, 62, 256, 8, 126_976),
    "grok-1": (315.685, 83.76, 64, 64, 8, 2, 131_072),
    "snowflake-arctic": (478.585, 17.32, 35, 35, 128, 2, 71_680),
    "switch-c-2048": (1571.261, 1.68, 30, 30, 2048, 1, 57_600),
}


@pytest.mark.parametrize("name", MODELS)
def test_released_models(name):
    total, active, layers, moe_layers, experts, top_k, kv = MODELS[name]
    a = anatomy(name, "bf16")
    assert a.total_params / 1e9 == pytest.approx(total, abs=0.0006)
    assert a.active_params / 1e9 == pytest.approx(active, abs=0.011)
    assert (a.layers, len(a.moe_layers), a.experts, a.top_k) == (layers, moe_layers, experts, top_k)
    assert a.kv_elements_per_token == kv
    assert sum(c.params for c in a.components.values()) == a.total_params
    assert a.components["other"].params == 0
    assert a.weight_bytes == 2 * a.total_params


# Table 1 as printed: total and active in billions, experts, top-k; and where the printed figure counts otherwise, why.
TABLE_1 = {
    "switch-c-2048": (
        1571,
        12,
        128,
        1,
        {"active": "an expert has 25.6 M", "experts": "2048"},
    ),
    "dbrx": (132, 36, 16, 4, {"active": "36.47 with embedding and head, printed without decimals"}),
    "mixtral-8x22b": (141, 39, 8, 2, {}),
    "snowflake-arctic": (480, 17, 128, 2, {"active": "17.32, printed without decimals"}),
    "grok-1": (314, 77, 8, 2, {"active": "83.8 from the shapes: two of eight experts of 604 M in 64 layers"}),
    "deepseekmoe-16b": (16.4, 2.8, 64, 6, {"active": "2.83, printed to one decimal"}),
    "qwen1.5-moe-a2.7b": (14.3, 2.7, 60, 4, {}),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1(name):
    total, active, experts, top_k, otherwise = TABLE_1[name]
    a = anatomy(name, "bf16")
    assert a.total_params / 1e9 == pytest.approx(total, rel=0.01)
    assert (a.active_params / 1e9 == pytest.approx(active, rel=0.01)) == ("active" not in otherwise)
    assert (a.experts == experts) == ("experts" not in otherwise)
    assert a.top_k == top_k


def test_qwen_shared_expert_is_four_routed_ones():
    """Table 1 prints 4 + 4: the shared expert is as wide as four routed ones."""
    kind = anatomy("qwen1.5-moe-a2.7b").kinds[0]
    assert kind.shared_params - 2048 == 4 * kind.expert_params  # less the gate


def test_deepseek_v3_has_one_shared_expert_and_three_dense_layers():
    a = anatomy("deepseek-v3")
    dense, sparse = a.kinds
    assert (dense.count, sparse.count) == (3, 58)
    assert sparse.shared_params == sparse.expert_params == 44_040_192
    assert a.kv_elements_per_token == 61 * (512 + 64)
    assert a.kv_bytes_per_token == 70_272
    assert per_device(a, tp=8).kv_bytes_per_token == a.kv_bytes_per_token


def test_figure_3_one_mixtral_layer():
    """MBU reads every expert, a step at batch 1 two of them: 3.68 times, "over 260%"."""
    kind = anatomy("mixtral-8x7b").kinds[0]
    assert (kind.attention_params, kind.expert_params) == (41_943_040, 176_160_768)
    every, chosen = (kind.attention_params + n * kind.expert_params for n in (8, 2))
    assert every / chosen == pytest.approx(3.68, abs=0.01)


def test_stored_precisions_of_released_checkpoints():
    """Sizes of the files on the hub: gpt-oss-120b 65.2 GB, gpt-oss-20b 13.8 GB (MXFP4); DeepSeek-V3 in fp8 blocks."""
    assert anatomy("gpt-oss-120b").weight_bytes / 1e9 == pytest.approx(65.25, abs=0.05)
    assert anatomy("gpt-oss-20b").weight_bytes / 1e9 == pytest.approx(13.76, abs=0.05)
    v3 = anatomy("deepseek-v3")
    assert v3.precision == "fp8" and v3.total_params < v3.weight_bytes < 1.01 * v3.total_params
    # MXFP4: 4 bits and an 8-bit exponent per 32 weights; biases in bf16.
    kind = anatomy("gpt-oss-120b").kinds[0]
    weights = 3 * 2880 * 2880
    assert kind.expert_bytes == weights * 4.25 / 8 + 2 * 3 * 2880


def test_hybrid_models_grow_only_in_their_attention_layers():
    qwen = anatomy("qwen3-next-80b-a3b")
    assert sum(k.count for k in qwen.kinds if k.kv_elements_per_token) == 12
    assert qwen.state_bytes > 0
    assert [k.kv_window for k in anatomy("gpt-oss-20b").kinds] == [128, None]
    assert {k.kv_window: k.count for k in anatomy("llama-4-scout").kinds} == {8192: 36, None: 12}


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_devices_of_mixtral(tp):
    a = anatomy("mixtral-8x7b", "bf16")
    view = per_device(a, tp=tp)
    replicated = a.components["router"].bytes + a.components["norms"].bytes
    assert view.weight_bytes == (a.weight_bytes - replicated) // tp + replicated
    assert view.kv_bytes_per_token == a.kv_bytes_per_token // tp


def test_hub_ids_find_the_catalogue_entry():
    assert anatomy("mistralai/Mixtral-8x7B-v0.1").total_params == anatomy("mixtral-8x7b").total_params
    assert anatomy("deepseek-ai/DeepSeek-R1").kv_elements_per_token == 35_136
