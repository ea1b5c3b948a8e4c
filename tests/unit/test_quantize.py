"""Recipes, their checks and the way into llmcompressor's environment; quantizing itself is in the end-to-end tests."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moecap.campaign.catalogue import PrecisionEntry
from moecap.checkpoints import quantize
from moecap.checkpoints.recipe import Recipe
from moecap.errors import MoecapError

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = yaml.safe_load((ROOT / "config/catalogue/precisions.yaml").read_text())


@pytest.mark.parametrize("name", [n for n, e in CATALOGUE.items() if PrecisionEntry(**e).recipe_model is Recipe])
def test_recipes_of_the_catalogue_are_sound(name: str) -> None:
    recipe = Recipe.from_data(CATALOGUE[name]["recipe"])
    for kept in (
        "lm_head",
        "model.layers.0.mlp.gate",
        "model.layers.1.block_sparse_moe.gate",
        "m.mlp.shared_expert_gate",
    ):
        assert recipe.ignores(kept), kept
    for quantized in ("model.layers.0.mlp.experts.0.gate_proj", "model.layers.0.self_attn.q_proj"):
        assert not recipe.ignores(quantized), quantized


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"scheme": "W4A16", "grup_size": 64}, "'group_size'"),
        ({}, "`scheme` is missing"),
        ({"scheme": "W4A16", "algorithm": "gtpq"}, "'gptq'"),
        ({"scheme": "W4A16", "algorithm": "gptq"}, "calibrate"),
        ({"scheme": "W4A16", "group_size": 0}, "`group_size`: .* greater than or equal to 1 "),
    ],
)
def test_a_wrong_recipe_is_explained(data: dict, words: str) -> None:
    with pytest.raises(MoecapError, match=words):
        Recipe.from_data(data)


def test_a_width_that_is_no_multiple_of_the_group_is_refused_by_name() -> None:
    recipe = Recipe(scheme="W4A16")
    shapes = {
        "model.embed_tokens.weight": (100, 96),
        "model.layers.0.mlp.gate.weight": (8, 96),
        "model.norm.weight": (96,),
        "model.layers.0.self_attn.q_proj.weight": (128, 128),
    }
    quantize.check_widths(shapes, recipe, 128)
    quantize.check_widths({"a.weight": (8, 96)}, recipe, None)
    with pytest.raises(MoecapError, match=r"down_proj.weight is 64 wide"):
        quantize.check_widths({**shapes, "model.layers.0.mlp.experts.0.down_proj.weight": (128, 64)}, recipe, 128)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    tokens=st.integers(1, 30),
    samples=st.integers(1, 10),
    seed=st.integers(0, 5),
)
def test_calibration_sequences_are_whole_and_come_from_the_rows(
    lengths: list[int], tokens: int, samples: int, seed: int
) -> None:
    rows = [{"text": chr(65 + i % 26) * n} for i, n in enumerate(lengths)]
    recipe = Recipe(
        scheme="W4A16", calibration_template="{text}", calibration_samples=samples, calibration_tokens=tokens
    )
    total = sum(lengths)
    if total < tokens:
        with pytest.raises(MoecapError, match="fewer than"):
            quantize.calibration_sequences(rows, lambda text: list(map(ord, text)), recipe, seed)
        return
    sequences = quantize.calibration_sequences(rows, lambda text: list(map(ord, text)), recipe, seed)
    assert len(sequences) == min(samples, total // tokens)
    assert {len(s) for s in sequences} == {tokens}
    assert sequences == quantize.calibration_sequences(rows, lambda text: list(map(ord, text)), recipe, seed)


def test_a_template_with_a_column_that_is_not_there_is_explained() -> None:
    recipe = Recipe(scheme="W4A16", calibration_template="{question}{anser}")
    with pytest.raises(MoecapError, match="'answer'"):
        quantize.calibration_sequences([{"question": "a", "answer": "b"}], list, recipe, 1)


def checkpoint(folder: Path, cut: int = 0) -> Path:
    """A folder that looks like a checkpoint with one tensor, its last ``cut`` bytes missing."""
    folder.mkdir(parents=True)
    header = json.dumps({"w.weight": {"dtype": "BF16", "shape": [4, 128], "data_offsets": [0, 1024]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(1024)
    (folder / "model.safetensors").write_bytes(data[: len(data) - cut])
    (folder / "config.json").write_text('{"model_type": "qwen2_moe"}')
    return folder


def test_shapes_are_read_from_headers(tmp_path: Path) -> None:
    assert quantize.stored_shapes(checkpoint(tmp_path / "whole")) == {"w.weight": (4, 128)}


def test_a_truncated_checkpoint_is_refused_in_one_paragraph_across_the_environments(tmp_path: Path) -> None:
    """By this interpreter, in the other's place: the check comes before llmcompressor is imported."""
    broken = checkpoint(tmp_path / "broken", cut=100)
    with pytest.raises(MoecapError, match=r"model\.safetensors") as refused:
        quantize.run(sys.executable, broken, tmp_path / "int8", {"scheme": "W8A8"})
    assert "\n" not in str(refused.value) and "Traceback" not in str(refused.value)
    assert not (tmp_path / "int8").exists()


def test_an_interpreter_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(MoecapError, match="quantize_python"):
        quantize.run("no/such/python", tmp_path, tmp_path / "int8", {"scheme": "W8A8"})


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv-quantize/bin/python").exists(), reason="no environment with llmcompressor")
@pytest.mark.parametrize("name", ["int8", "int4", "fp8", "int8-gptq-arithmetic", "int4-gptq-arithmetic"])
def test_a_model_is_quantized_whole(name: str, tmp_path: Path) -> None:
    from moecap.checkpoints import demo

    demo.write_data(tmp_path / "data", seed=1, train_count=10_000)
    demo.train(tmp_path / "bf16", tmp_path / "data", seed=1, threads=1, recipe=demo.Recipe(rows=4, steps=2))
    recipe = CATALOGUE[name]["recipe"]
    quantize.run(
        str(ROOT / ".venv-quantize/bin/python"),
        tmp_path / "bf16",
        tmp_path / name,
        recipe,
        calibration_file=tmp_path / "data" / "train.jsonl",
        threads=1,
        facts={"precision": name},
    )
    manifest = json.loads((tmp_path / name / "manifest.json").read_text())
    assert manifest["precision"] == name and manifest["source"]["recipe"]["scheme"] == recipe["scheme"]
    shapes = quantize.stored_shapes(tmp_path / name)
    experts = [k for k in shapes if ".experts." in k and k.endswith(("weight_packed", ".weight"))]
    assert len(experts) == 3 * 8 * 3  # layers × experts × projections
    assert shapes["lm_head.weight"] and shapes["model.layers.0.mlp.gate.weight"] == (8, 128)
