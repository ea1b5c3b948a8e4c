"""Counting models from their config: structure, sums, KV, and configs that cannot be counted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import moecap  # noqa: E402
from moecap.cli import main  # noqa: E402
from moecap.errors import MoecapError  # noqa: E402
from moecap.model.built import build, load_config  # noqa: E402
from moecap.model.counted import anatomy  # noqa: E402
from moecap.model.parallel import per_device, split_layers  # noqa: E402
from moecap.model.reader import skeleton  # noqa: E402
from moecap.model.skeleton import Refused  # noqa: E402
from moecap.model.structure import COMPONENTS, Anatomy  # noqa: E402


def mixtral(**changes):
    return {
        "model_type": "mixtral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 64,
        "sliding_window": None,
        "tie_word_embeddings": False,
    } | changes


def deepseek(**changes):
    return {
        "model_type": "deepseek_v3",
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 12,
        "kv_lora_rank": 10,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "vocab_size": 64,
    } | changes


def qwen2_moe(**changes):
    return {
        "model_type": "qwen2_moe",
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "vocab_size": 64,
    } | changes


def test_every_figure_of_a_small_mixtral_by_hand():
    a = anatomy(mixtral(), "bf16")
    (kind,) = a.kinds
    assert (kind.count, a.layers, a.moe_layers, a.experts, a.top_k) == (2, 2, (0, 1), 4, 2)
    assert kind.attention_params == 2 * 32 * 32 + 2 * 16 * 32
    assert kind.router_params == 4 * 32
    assert kind.expert_params == 3 * 48 * 32
    assert kind.norm_params == 2 * 32
    assert kind.shared_params == kind.dense_mlp_params == kind.other_params == 0
    assert kind.kv_elements_per_token == 2 * 2 * 8
    assert kind.score_flops_per_pair == 2 * 4 * (8 + 8)
    assert kind.expert_flops == 2 * kind.expert_params
    assert kind.attention_flops == 2 * kind.attention_params
    assert a.components["embedding"].params == a.components["lm_head"].params == 64 * 32
    assert a.components["norms"].params == 2 * 2 * 32 + 32
    assert a.active_params == a.total_params - 2 * 2 * kind.expert_params
    assert kind.active_params == kind.attention_params + kind.router_params + 2 * kind.expert_params + kind.norm_params
    assert kind.flops_per_token == 2 * (kind.active_params - kind.norm_params)
    assert a.weight_bytes == 2 * a.total_params
    assert a.embedding_row_bytes == 2 * 32
    assert a.kv_bytes_per_token == 2 * a.kv_elements_per_token == 2 * 2 * 32
    assert a.with_kv_dtype_bytes(1).kv_bytes_per_token == a.kv_elements_per_token


def test_latent_attention_shared_experts_and_dense_layers():
    a = anatomy(deepseek(), "bf16")
    dense, sparse = a.kinds
    assert (dense.count, sparse.count, a.layer_kind, a.moe_layers) == (1, 2, (0, 1, 1), (1, 2))
    assert dense.dense_mlp_params == 3 * 48 * 32 and dense.experts == dense.top_k == dense.router_params == 0
    assert sparse.shared_params == 3 * 16 * 32 and sparse.expert_params == 3 * 16 * 32
    assert {dense.attention, sparse.attention} == {"latent"}
    # The latent and the rotary key are what the cache keeps, whatever the number of heads.
    assert sparse.kv_elements_per_token == 10 + 4
    assert a.kv_elements_per_token == 3 * 14
    assert (sparse.query_heads, sparse.qk_head_dim, sparse.v_head_dim) == (4, 12, 6)


def test_shared_expert_and_its_gate_are_shared_not_routed():
    kind = anatomy(qwen2_moe()).kinds[0]
    assert kind.shared_params == 3 * 24 * 32 + 32
    assert kind.router_params == 6 * 32
    assert kind.attention_params == 2 * 32 * 32 + 2 * 16 * 32 + (32 + 16 + 16)  # with biases


def test_a_dense_model_is_the_special_case():
    a = anatomy({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64})  # fmt: skip
    assert a.active_params == a.total_params
    assert (a.experts, a.top_k, a.moe_layers) == (0, 0, ())
    assert a.components["routed_experts"].params == a.components["router"].params == 0
    assert a.kinds[0].dense_mlp_params == 3 * 48 * 32


def test_windows_and_the_layers_without():
    config = {"model_type": "gpt_oss", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4,
              "num_experts_per_tok": 2, "vocab_size": 64, "sliding_window": 16,
              "layer_types": ["sliding_attention", "full_attention"] * 2}  # fmt: skip
    a = anatomy(config, "bf16")
    assert [(k.attention, k.kv_window, k.count) for k in a.kinds] == [("sliding", 16, 2), ("full", None, 2)]
    assert a.kinds[0].expert_params == 3 * 32 * 32 + 3 * 32  # with biases
    assert a.kinds[0].expert_flops == 2 * 3 * 32 * 32  # which are added, not multiplied


def test_linear_attention_keeps_a_constant_state_and_no_kv():
    config = {"model_type": "qwen3_next", "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
              "shared_expert_intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64,
              "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
              "layer_types": ["linear_attention"] * 3 + ["full_attention"]}  # fmt: skip
    a = anatomy(config, "bf16")
    linear, full = a.kinds
    assert (linear.count, linear.kv_elements_per_token, linear.attention) == (3, 0, "linear")
    assert linear.state_bytes == 2 * (4 * 8 * 8 + 4 * (2 * 2 * 8 + 4 * 8))  # recurrent, and the convolution's
    assert a.kv_elements_per_token == full.kv_elements_per_token == 2 * 2 * 8


def test_encoder_decoder_counts_both_and_grows_only_in_the_decoder():
    config = {"model_type": "switch_transformers", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4,
              "num_layers": 2, "num_decoder_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
              "num_experts": 4, "vocab_size": 64}  # fmt: skip
    a = anatomy(config)
    assert a.layers == 4 and len(a.moe_layers) == 2 and (a.experts, a.top_k) == (4, 1)
    encoder = [k for k in a.kinds if k.stack == "encoder"]
    assert all(k.kv_elements_per_token == 0 for k in encoder)
    assert a.kv_elements_per_token == 2 * 2 * 32
    assert all(k.cross_kv_elements_per_token == 2 * 32 for k in a.kinds if k.stack == "decoder")


def test_tied_embeddings_count_once_but_the_head_reads_them():
    untied, tied = anatomy(mixtral()), anatomy(mixtral(tie_word_embeddings=True))
    assert untied.total_params - tied.total_params == 64 * 32
    assert tied.components["lm_head"].params == 0 and tied.tied_embeddings
    assert tied.head_read_bytes == untied.head_read_bytes
    assert tied.flops_per_token == untied.flops_per_token


sizes = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([16, 32, 48]),
        "intermediate_size": st.integers(1, 6).map(lambda n: 8 * n),
        "num_hidden_layers": st.integers(1, 3),
        "num_local_experts": st.integers(2, 9),
        "num_key_value_heads": st.sampled_from([1, 2, 4]),
        "vocab_size": st.integers(8, 80),
        "tie_word_embeddings": st.booleans(),
    }
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes, st.data())
def test_parts_sum_to_the_whole_and_active_never_exceeds_it(changes, data):
    top_k = data.draw(st.integers(1, changes["num_local_experts"]))
    config = mixtral(**changes, num_experts_per_tok=top_k)
    a = anatomy(config, "bf16")
    assert a.total_params == sum(p.numel() for p in build(load_config(config)).parameters())
    assert sum(c.params for c in a.components.values()) == a.total_params
    assert sum(row["params"] for row in a.table()) == a.total_params
    assert sum(row["bytes"] for row in a.table()) == a.weight_bytes == 2 * a.total_params
    assert sum(row["flops_per_token"] for row in a.table()) == a.flops_per_token
    assert a.active_params <= a.total_params
    assert (a.active_params == a.total_params) == (top_k == changes["num_local_experts"])
    assert Anatomy.from_json(json.loads(json.dumps(a.to_json()))) == a


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(2, 6), st.integers(1, 2), st.sampled_from([4, 8]), st.booleans())
def test_kv_of_latent_attention_is_what_a_real_cache_keeps(rank, rope, experts, query_rank):
    config = deepseek(kv_lora_rank=2 * rank, qk_rope_head_dim=2 * rope, n_routed_experts=experts,
                      q_lora_rank=8 if query_rank else None)  # fmt: skip
    assert anatomy(config).kv_elements_per_token == 3 * (2 * rank + 2 * rope)


@pytest.mark.parametrize("config", [mixtral(), deepseek(), qwen2_moe()], ids=["mixtral", "deepseek_v3", "qwen2_moe"])
def test_kv_and_routing_against_the_running_model(config):
    """A real forward pass: the cache holds what was predicted, and a token's experts are top_k."""
    from moecap.model.running import measure

    a = anatomy(config)
    measured = measure(load_config(config))
    assert measured.kv_elements_per_token == a.kv_elements_per_token
    assert measured.top_k == a.top_k
    assert measured.state_elements == 0


# -- what cannot be counted


def test_top_k_over_the_number_of_experts():
    with pytest.raises(MoecapError, match=r"5 of 4 experts"):
        anatomy(mixtral(num_experts_per_tok=5))
    with pytest.raises(MoecapError, match=r"0 of 4 experts"):
        anatomy(mixtral(num_experts_per_tok=0))


def test_query_heads_that_do_not_divide_among_kv_heads():
    with pytest.raises(Refused, match=r"4 query heads.* 3 KV heads"):
        anatomy(mixtral(num_key_value_heads=3))


@pytest.mark.parametrize("size", [0, -1])
def test_a_kv_element_takes_space(size):
    with pytest.raises(MoecapError, match="kv_dtype_bytes is"):
        anatomy(mixtral(), kv_dtype_bytes=size)


def test_unknown_model_type_names_the_nearest():
    with pytest.raises(MoecapError, match="mixtral"):
        anatomy(mixtral(model_type="mixtrall"))


def test_unknown_model_type_with_a_known_architecture_is_read_by_that():
    config = deepseek(model_type="kimi_k2", architectures=["DeepseekV3ForCausalLM"])
    assert anatomy(config).total_params == anatomy(deepseek()).total_params


def test_an_impossible_config_is_one_paragraph():
    with pytest.raises(MoecapError) as caught:
        anatomy(mixtral(hidden_size="wide"))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_config(tmp_path):
    broken = tmp_path / "config.json"
    broken.write_text('{"model_type": "mix')
    with pytest.raises(MoecapError, match="not valid JSON"):
        anatomy(broken)
    broken.write_text("[]")
    with pytest.raises(MoecapError, match="not a JSON object"):
        anatomy(broken)
    with pytest.raises(MoecapError, match="no model"):
        anatomy("no-such-model-anywhere")


def test_two_sets_of_experts_are_refused_by_name():
    config = {"model_type": "jetmoe", "hidden_size": 32, "num_hidden_layers": 1, "kv_channels": 8,
              "intermediate_size": 32, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
              "vocab_size": 64}  # fmt: skip
    with pytest.raises(Refused, match="more than one set of routed experts"):
        anatomy(config)


def test_a_config_that_speaks_of_experts_that_no_layer_has():
    with pytest.raises(Refused, match="no layer has"):
        skeleton({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                  "num_attention_heads": 4, "vocab_size": 64, "num_experts": 8, "num_experts_per_tok": 2})  # fmt: skip


def test_an_anatomy_whose_parts_do_not_sum_is_refused():
    a = anatomy(mixtral())
    with pytest.raises(MoecapError, match="components hold"):
        replace(a, total_params=a.total_params + 1)
    with pytest.raises(MoecapError, match="schema_version"):
        Anatomy.from_json({"schema_version": 0})


# -- devices


def test_tensor_parallelism_replicates_kv_heads_that_are_too_few():
    a = anatomy(mixtral(num_attention_heads=8, head_dim=4), "bf16")
    two, eight = per_device(a, tp=2), per_device(a, tp=8)
    assert two.kv_bytes_per_token == a.kv_bytes_per_token // 2
    assert eight.kv_bytes_per_token == a.kv_bytes_per_token // 2  # 2 heads over 8 ranks: one each, four times over
    q_and_o, k_and_v = 2 * 2 * 32 * 32, 2 * 2 * 8 * 32
    assert eight.kinds[0].attention_bytes == q_and_o // 8 + k_and_v // 2
    assert eight.components["routed_experts"] == a.components["routed_experts"].bytes // 8
    assert eight.components["router"] == a.components["router"].bytes
    with pytest.raises(MoecapError, match="attention heads"):
        per_device(a, tp=3)


def test_a_compressed_kv_is_on_every_rank():
    a = anatomy(deepseek(), "bf16")
    view = per_device(a, tp=4)
    assert view.kv_bytes_per_token == a.kv_bytes_per_token
    kept = 2 * (12 * 32 + (10 + 4) * 32)  # q_a and kv_a projections stay whole
    assert view.kinds[0].attention_bytes == kept + (a.kinds[0].attention_bytes - kept) // 4


def test_expert_parallelism_places_whole_experts():
    a = anatomy(deepseek(n_routed_experts=6), "bf16")
    view = per_device(a, ep=4)
    sparse = view.kinds[1]
    assert (view.devices, view.experts) == (4, 2)  # 6 experts over 4 ranks: somebody has two
    assert sparse.expert_bytes == a.kinds[1].expert_bytes
    assert view.components["routed_experts"] == 2 * 2 * a.kinds[1].expert_bytes
    assert view.components["attention"] == a.components["attention"].bytes
    with pytest.raises(MoecapError, match="idle"):
        per_device(a, ep=16)


def test_data_parallel_ranks_split_the_experts_and_repeat_the_rest():
    a = anatomy(deepseek(), "bf16")
    view = per_device(a, tp=2, dp=2)
    assert view.devices == 4
    assert view.components["routed_experts"] == a.components["routed_experts"].bytes // 4
    assert view.components["attention"] == per_device(a, tp=2).components["attention"]
    assert view.kv_bytes_per_token == a.kv_bytes_per_token


def test_shared_experts_split_or_replicate():
    a = anatomy(deepseek(), "bf16")
    whole = a.components["shared_experts"].bytes
    assert per_device(a, tp=2).components["shared_experts"] == whole // 2
    assert per_device(a, tp=2, shared="replicate").components["shared_experts"] == whole


@given(st.integers(1, 40), st.integers(1, 40))
def test_pipeline_stages_cover_every_layer_once(layers, stages):
    if stages > layers:
        return
    runs = split_layers(layers, stages)
    assert [i for first, last in runs for i in range(first, last)] == list(range(layers))
    assert max(b - a for a, b in runs) - min(b - a for a, b in runs) <= 1


def test_pipeline_stages_sum_to_the_model():
    a = anatomy(mixtral(num_hidden_layers=3), "bf16")
    view = per_device(a, pp=2)
    assert sum(s.weight_bytes for s in view.stages) == a.weight_bytes
    assert sum(s.kv_bytes_per_token for s in view.stages) == a.kv_bytes_per_token
    assert sum(s.flops_per_token for s in view.stages) == a.flops_per_token


@pytest.mark.parametrize("degrees", [{"tp": 0}, {"pp": 9}, {"tp": 2, "ep": 3}, {"dp": -1}])
def test_degrees_that_cannot_be(degrees):
    with pytest.raises(MoecapError):
        per_device(anatomy(mixtral()), **degrees)


# -- the command


def test_json_of_the_command(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(mixtral()))
    assert main(["anatomy", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["components"]) == set(COMPONENTS)
    assert {"total_params", "active_params", "layers", "moe_layers", "experts", "top_k", "kv_elements_per_token",
            "kv_bytes_per_token", "weight_bytes", "components", "layer_kinds"} <= set(data)  # fmt: skip
    assert {"count", "attention_params", "router_params", "expert_params", "shared_params"} <= set(
        data["layer_kinds"][0]
    )
    assert main(["anatomy", str(path), "--json", "--tp", "2"]) == 0
    halves = json.loads(capsys.readouterr().out)
    assert halves["total_params"] == data["total_params"] and halves["weight_bytes"] < 0.6 * data["weight_bytes"]
    layers = sum(kind["count"] * kind["flops_per_token"] for kind in halves["layer_kinds"])
    assert layers + 2 * 64 * 32 / 2 == halves["flops_per_token"] < 0.6 * data["flops_per_token"]
    assert halves["layer_kinds"][0]["score_flops_per_pair"] * 2 == data["layer_kinds"][0]["score_flops_per_pair"]
    assert main(["anatomy", str(path), "--tp", "2", "--pp", "2"]) == 0
    assert "per device" in capsys.readouterr().out


def test_errors_of_the_command_are_one_paragraph_and_exit_1(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(mixtral(num_experts_per_tok=9)))
    assert main(["anatomy", str(path), "--json"]) == 1
    out = capsys.readouterr()
    assert out.out == "" and "9 of 4 experts" in out.err and "Traceback" not in out.err


def test_exported_function():
    assert moecap.anatomy is anatomy


def test_the_example_of_the_readme_runs_as_printed(capsys, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    (code,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    exec(code, {})
    # 32 layers of attention and two experts, in bf16, in 20 ms of 3.35 TB/s.
    by_hand = 32 * (41_943_040 + 2 * 176_160_768) * 2 / 0.020 / 3.35e12
    assert float(capsys.readouterr().out) == pytest.approx(by_hand)
