"""Accelerate's offload: the same tokens as in memory, every byte of weights in one place and counted as it is read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen2MoeConfig

from moecap.engines.accelerate.engine import device_map, offloaded_modules
from moecap.engines.base import EngineSpec, Request, load
from moecap.errors import PermanentError
from moecap.model.offload import PARAMETER_WORDS

CONFIG = Qwen2MoeConfig(
    vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
    num_key_value_heads=1, moe_intermediate_size=8, shared_expert_intermediate_size=8, num_experts=4,
    num_experts_per_tok=2, mlp_only_layers=[1], pad_token_id=0,
)  # fmt: skip
EXPERTS = {"offload_group_size": 2, "offload_num_in_group": 1, "offload_params": ["experts"]}
LAYERS = {"offload_group_size": 2, "offload_num_in_group": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG)


def serve(checkpoint, tmp_path, offload="none", engine_args=None):
    options = {"dtype": "float32", **({"engine_args": engine_args} if engine_args else {})}
    spec = EngineSpec("a", "accelerate", "cpu", str(checkpoint), options=options, offload=offload, max_num_seqs=4,
                      threads=1, log_path=str(tmp_path / "log"))  # fmt: skip
    requests = [Request(tuple(range(1 + i, 8 + i)), 12) for i in range(4)]
    with load(spec) as engine:
        found = engine.run(requests)
        there = list(tmp_path.glob("offload-*"))
    assert not list(tmp_path.glob("offload-*"))  # nothing is left
    return [r.output_token_ids for r in found.requests], engine, bool(there)


@pytest.mark.parametrize("engine_args", [EXPERTS, LAYERS])
def test_offloaded_weights_serve_the_same_tokens_and_are_counted_where_they_are_read(checkpoint, tmp_path, engine_args):
    plain, engine, _ = serve(checkpoint, tmp_path)
    total = engine.weights_by_tier["device"]
    assert set(engine.weights_by_tier) == {"device"} and engine.moved_per_step is None
    for offload in ("dram", "ssd"):
        tokens, engine, files = serve(checkpoint, tmp_path, offload, engine_args)
        assert tokens == plain
        assert set(engine.weights_by_tier) == {"device", offload} and sum(engine.weights_by_tier.values()) == total
        # Twice over: by the shapes of what is not resident, and by what a pass really read.
        assert sum(engine.moved_per_step.values()) == engine.weights_by_tier[offload] > 0
        assert files == (offload == "ssd")
    # What Transformers fused is in the offload folder; a layer's other weights are read from the checkpoint again.
    sources = {"offload folder"} if engine_args is EXPERTS else {"offload folder", "checkpoint"}
    assert set(engine.moved_per_step) == sources


@settings(max_examples=40, deadline=None)
@given(
    group=st.integers(1, 5),
    last=st.integers(1, 5),
    words=st.sets(st.sampled_from(sorted(PARAMETER_WORDS))),
)
def test_every_weight_has_one_place(model, group, last, words):
    arguments = {"offload_group_size": group, "offload_num_in_group": last, "offload_params": sorted(words)}
    try:
        away = offloaded_modules(model, arguments, "a")
    except PermanentError:
        return
    placed = device_map(model, away, "disk", "cpu")
    for name, _ in model.named_parameters():
        owners = [key for key in placed if name == key or name.startswith(f"{key}.")]
        assert len(owners) == 1, name
        inside = any(name.startswith(f"{module}.") for module in away)
        assert placed[owners[0]] == ("disk" if inside else "cpu"), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "does not say how many"),
        ({"cpu_offload_gb": 1}, "by layers"),
        ({"offload_group_size": 9}, "no module"),
        ({"offload_group_size": 1, "offload_params": ["shared_experts"]}, "no module"),
        ({"offload_group_size": 1, "offload_params": ["exprets"]}, "experts"),
    ],
)
def test_what_cannot_be_followed_is_refused(model, arguments, message):
    with pytest.raises(PermanentError, match=message):
        offloaded_modules(model, arguments, "a")
