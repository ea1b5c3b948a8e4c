"""What vLLM refuses when it loads a model: our rules against vLLM's own code, and sizes read in two ways."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from moecap.engines.vllm.limits import (
    Scales,
    Sizes,
    Split,
    refusals,
    scales_of_config,
    sizes_of_anatomy,
    sizes_of_config,
)
from moecap.errors import MoecapError
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "config/catalogue/model_configs").glob("*.json"))
BLOCK = Scales(block=(128, 128))


def config(name: str) -> dict:
    return json.loads((ROOT / f"config/catalogue/model_configs/{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_sizes_of_a_config_are_those_of_the_model_that_is_built_from_it(path: Path) -> None:
    pytest.importorskip("torch")
    from moecap import anatomy

    read = sizes_of_config(json.loads(path.read_text(encoding="utf-8")))
    built = sizes_of_anatomy(anatomy(str(path)))
    assert read.hidden == built.hidden and read.vocabulary == built.vocabulary and read.heads == built.heads
    assert read.layers == built.layers and read.experts == built.experts
    assert built.expert_width in (None, read.expert_width)  # None: stored the other way round (DBRX)


@pytest.mark.parametrize(
    ("name", "split", "scales", "said"),
    [
        ("qwen3-235b-a22b", Split(8), BLOCK, "a rank has 192 of the 1536 columns of a routed expert"),
        ("qwen3-235b-a22b", Split(8, expert_parallel=8), BLOCK, None),
        ("qwen3-235b-a22b", Split(8), None, None),
        ("qwen3-235b-a22b", Split(4), BLOCK, None),
        ("qwen3-235b-a22b", Split(8, expert_parallel=4), None, "1 or 8"),
        ("deepseek-v3", Split(8), BLOCK, None),
        ("deepseek-v3", Split(32), BLOCK, "a rank has 64"),
        ("glm-4.5", Split(8), BLOCK, "a rank has 192"),
        ("llama-4-scout", Split(16), None, "does not divide the 40 attention heads"),
        ("mixtral-8x22b", Split(3), None, "neither divides the other"),
        ("mixtral-8x7b", Split(5), None, "does not divide the 32 attention heads"),
        ("qwen3-next-80b-a3b", Split(16), Scales(group=64), "64 weights share a scale"),
        ("mixtral-8x7b", Split(16), Scales(group=128), None),
        ("mixtral-8x7b", Split(pipeline_parallel=64), None, "has 32 layers"),
        ("qwen1.5-moe-a2.7b", Split(8), BLOCK, "a rank has 704 of the 5632 columns of a shared expert"),
        ("grok-1", Split(5), None, "48 attention heads"),
    ],
)
def test_what_is_refused_and_what_is_not(name: str, split: Split, scales: Scales | None, said: str | None) -> None:
    found = refusals(sizes_of_config(config(name)), split, scales)
    assert (said in " ".join(found)) if said else found == [], found


def test_what_is_not_known_is_not_objected_to() -> None:
    assert refusals(Sizes(), Split(7, 5, 1, 1), BLOCK) == []


def test_no_experts_is_told_from_experts_that_are_not_understood() -> None:
    assert sizes_of_config({}).experts is None
    assert sizes_of_config({"hidden_size": 64, "enable_moe_block": False, "top_k_experts": None}).experts == 0
    assert sizes_of_config({"hidden_size": 64, "expert_count_of_a_new_family": 8}).experts is None


def test_heads_of_two_attention_blocks_of_a_layer_are_shared_out_apart() -> None:
    from moecap import anatomy
    from moecap.model.parallel import per_device

    counted = anatomy("longcat-flash")
    assert {kind.query_heads for kind in counted.kinds} == {2 * 64}
    assert "does not divide the 64 attention heads" in " ".join(refusals(sizes_of_anatomy(counted), Split(128)))
    with pytest.raises(MoecapError, match="does not divide the 64 attention heads"):
        per_device(counted, tp=128)


def test_blocks_are_those_of_the_checkpoint() -> None:
    assert scales_of_config(config("deepseek-v3")).block == (128, 128)
    assert scales_of_config({}) == Scales() == scales_of_config({"quantization_config": {"quant_method": "awq"}})


def test_rules_are_those_of_vllms_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths, blocks, KV heads and vocabularies are given to the functions that vLLM itself calls when it loads."""
    pytest.importorskip("vllm")
    import vllm.distributed
    from vllm.distributed.utils import divide
    from vllm.model_executor.layers.quantization.utils.fp8_utils import validate_fp8_block_shape_moe
    from vllm.model_executor.layers.vocab_parallel_embedding import pad_vocab_size

    def refused(function: object, *arguments: object) -> bool:
        try:
            function(*arguments)  # type: ignore[operator]
        except (ValueError, AssertionError):
            return True
        return False

    for tensor in (1, 2, 3, 4, 6, 8, 16):
        monkeypatch.setattr(vllm.distributed, "get_tensor_model_parallel_world_size", lambda n=tensor: n)
        for width in (768, 1408, 1536, 2048, 2112, 2880, 14336):
            theirs = width % tensor != 0 or refused(validate_fp8_block_shape_moe, width // tensor, [128, 128])
            assert bool(refusals(Sizes(experts=8, expert_width=width), Split(tensor), BLOCK)) == theirs, (width, tensor)
        for heads in (1, 2, 4, 6, 8, 48):
            big, small = max(heads, tensor), min(heads, tensor)
            query = 48 * heads * tensor
            theirs = refused(divide, big, small)
            assert bool(refusals(Sizes(heads=((query, heads),)), Split(tensor))) == theirs, (heads, tensor)
        for vocabulary in (32000, 32064, 50304, 151936, 201088):
            theirs = refused(divide, pad_vocab_size(vocabulary, 64), tensor)
            assert bool(refusals(Sizes(vocabulary=vocabulary), Split(tensor))) == theirs, (vocabulary, tensor)


def test_a_refusal_names_its_column() -> None:
    for tensor, expert in product((3, 5), (1, 2)):
        for text in refusals(sizes_of_config(config("mixtral-8x7b")), Split(tensor, expert_parallel=expert)):
            assert "`tensor_parallel`" in text or "`expert_parallel`" in text or "ranks" in text
