"""What a config states and what is built of it: a key that lands nowhere is named, never replaced by a default."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from moecap.errors import MoecapError
from moecap.model.counted import built_skeleton
from moecap.model.keys import config_keys
from moecap.model.skeleton import Skeleton

CONFIGS = Path(__file__).resolve().parents[2] / "config" / "catalogue" / "model_configs"
SMALL = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "intermediate_size": 96,
    "vocab_size": 128,
}


def released(name: str) -> dict:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("num_experts", "num_expert"), ("moe_intermediate_size", "moe_intermediate_sizes"), ("head_dim", "heads_dim"),
     ("num_hidden_layers", "num_hiden_layers"), ("vocab_size", "vocabsize")],
)  # fmt: skip
def test_a_misspelt_key_is_named_with_the_one_that_was_meant(key: str, wrong: str) -> None:
    config = dict(SMALL)
    config[wrong] = config.pop(key)
    with pytest.raises(MoecapError, match=rf"{wrong} \(\d+\) is read by nobody.*Did you mean .*{key}"):
        built_skeleton(config)


def test_a_key_that_speaks_of_shapes_and_is_read_by_nobody_is_an_error_and_a_harmless_one_is_not() -> None:
    with pytest.raises(MoecapError, match="moe_latent_size"):
        built_skeleton(SMALL | {"moe_latent_size": 16})
    found = built_skeleton(SMALL | {"max_position_embeddings": 99, "eos_token_id": 3, "my_remark": 7})
    assert any("my_remark" in note for note in found.notes)
    assert any("intermediate_size (96)" in note for note in found.notes)


def test_the_other_word_for_a_fact_lands_too() -> None:
    other = {"num_experts": "n_routed_experts", "num_experts_per_tok": "moe_topk"}
    named = {other.get(key, key): value for key, value in SMALL.items()}
    assert built_skeleton(named).total_params == built_skeleton(SMALL).total_params


def test_text_keys_at_the_top_of_a_multimodal_config_are_its_text_model() -> None:
    flat = released("qwen3.5-35b-a3b") | {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }
    text = built_skeleton(flat)
    whole = built_skeleton(flat | {"model_type": "qwen3_5_moe"})
    assert whole.total_params == text.total_params
    assert len(whole.layers) == 4 and whole.vocab_size == flat["vocab_size"]


def figures(found: Skeleton) -> tuple:
    return (found.parts, found.layers, found.tied_embeddings, found.hidden_size, found.vocab_size, found.state_dtype,
            found.extra_layers)  # fmt: skip


def structural(config: dict) -> list[str]:
    """The keys of a config that state a shape as a whole number."""
    keys = config_keys()
    return sorted(
        key
        for key, value in config.items()
        if isinstance(value, int) and not isinstance(value, bool) and value and not keys.is_harmless(key)
    )


#: Released configs of different kinds: grouped-query, latent, sparse, compressed, recurrent, dense, flat multimodal.
KINDS = ("qwen3-30b-a3b", "deepseek-v3.2", "deepseek-v4-flash", "nemotron-3-nano-30b-a3b", "qwen3.5-35b-a3b", "kimi-k3",
         "gpt-oss-20b", "step-3.7-flash", "minimax-m3", "mimo-v2-flash", "glm-5.2", "gemma-4-26b-a4b")  # fmt: skip


#: Keys that shape nothing, whatever they say: how positions are encoded, and in how many parts one block is thought of.
NO_SHAPE = {("deepseek-v4-flash", "qk_rope_head_dim"), ("nemotron-3-nano-30b-a3b", "n_shared_experts")}


def changes_or_is_told(name: str, key: str) -> None:
    config = released(name)
    level = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    before = built_skeleton(config)
    changed = deepcopy(config)
    own = changed["text_config"] if isinstance(changed.get("text_config"), dict) else changed
    own[key] = level[key] * 3
    try:
        after = built_skeleton(changed)
    except MoecapError:
        return
    if (name, key) in NO_SHAPE:
        return
    told = any(key in note for note in after.notes)
    assert figures(after) != figures(before) or told, f"{name}: {key} {level[key]} -> {own[key]} changed nothing"


SAMPLE = random.Random(13).sample(
    [
        (name, key)
        for name in KINDS
        for config in [released(name)]
        for key in structural(config["text_config"] if isinstance(config.get("text_config"), dict) else config)
    ],
    4,
)


@pytest.mark.parametrize(("name", "key"), SAMPLE)
def test_another_value_of_a_structural_key_changes_the_count_or_is_refused(name: str, key: str) -> None:
    changes_or_is_told(name, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_another_value_of_every_structural_key_changes_the_count_or_is_refused(name: str) -> None:
    config = released(name)
    for key in structural(config["text_config"] if isinstance(config.get("text_config"), dict) else config):
        changes_or_is_told(name, key)
