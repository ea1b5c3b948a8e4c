"""Recipes, their checks and the way into llmcompressor's environment; quantizing itself is in the end-to-end tests."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moecap.campaign.catalogue import PrecisionEntry
from moecap.checkpoints import mappings, perplexity, quantize
from moecap.checkpoints.recipe import Recipe
from moecap.errors import MoecapError
from moecap.model.counted import anatomy
from moecap.model.names import Module
from moecap.model.recipes import QUANTIZED, SCHEMES, _recipe

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


@given(
    components=st.lists(st.sampled_from(QUANTIZED), min_size=1, unique=True),
    scheme=st.sampled_from(sorted(SCHEMES)),
    other=st.sampled_from(sorted(SCHEMES)),
)
def test_a_component_is_stored_by_its_own_scheme_or_left_as_it_is(
    components: list[str], scheme: str, other: str
) -> None:
    """Bytes of a recipe for some components are those of each of them alone."""
    first = components[0]
    data = {"scheme": scheme, "components": components, "component_schemes": {first: other}}
    made = _recipe("x", SCHEMES[scheme].layout(), data)
    module = Module(("model.layers.0.x.y_proj",), 128, 128)
    for component in QUANTIZED:
        expected = SCHEMES[other if component == first else scheme].layout() if component in components else None
        assert made.layout_of(module, component) == expected


def test_what_needs_text_says_so() -> None:
    for data in ({"transform": "awq"}, {"algorithm": "gptq"}, {"component_schemes": {"attention": "NVFP4"}}):
        with pytest.raises(MoecapError, match="calibrate"):
            Recipe.from_data({"scheme": "W4A16", **data})
    for data in ({"components": ["atention"]}, {"component_schemes": {"atention": "W8A8"}}):
        with pytest.raises(MoecapError, match="'attention'"):
            Recipe.from_data({"scheme": "W4A16", **data})


class Block(torch.nn.Module):
    """A norm, a gated MLP that reads it, and (``leak``) what else reads the norm."""

    def __init__(self, leak: str = "") -> None:
        super().__init__()
        self.leak = leak
        self.norm = torch.nn.RMSNorm(16)
        self.gate_proj = torch.nn.Linear(16, 32, bias=False)
        self.up_proj = torch.nn.Linear(16, 32)
        self.down_proj = torch.nn.Linear(32, 16)
        self.hidden_reader = torch.nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        rest = {"residual": normed, "parameter": normed @ self.hidden_reader, "": 0 * x}[self.leak]
        return x + rest + self.down_proj(torch.nn.functional.silu(self.gate_proj(normed)) * self.up_proj(normed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("leak", ["", "residual", "parameter"])
def test_scales_move_only_where_nothing_else_reads(leak: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Block(leak) for _ in range(3))).to(dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    text = torch.randn(5, 16, dtype=dtype)
    found = mappings.find(model, lambda: model(text).detach())
    up = [mappings.Mapping(f"{i}.up_proj", (f"{i}.down_proj",), False) for i in range(3)]
    norms = [mappings.Mapping(f"{i}.norm", (f"{i}.gate_proj", f"{i}.up_proj"), True) for i in range(3)]
    assert set(found) == {*up, *(norms if not leak else [])}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_experts_that_no_module_shows_are_not_forgotten() -> None:
    """Fused experts read the norm without a linear layer of their own: the norm must not be scaled."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    experts = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=64, intermediate_size=32, **sizes, **experts)).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found = mappings.find(model, lambda: model(input_ids=ids, use_cache=False).logits)
    sources = {mappings.role(m.source).rpartition(".")[2] for m in found}
    assert sources == {"input_layernorm", "v_proj", "up_proj", "norm"}  # up of the shared expert; norm of the head


def test_perplexity_is_that_of_lm_eval() -> None:
    """By lm-eval's own rolling log-likelihoods and weights (its `wikitext` task) over one text; long ones are cut."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2MoeConfig, Qwen2MoeForCausalLM

    vocabulary = {c: i for i, c in enumerate(["<end>", *"abcdefgh i\n=+é"])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<end>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    config = Qwen2MoeConfig(vocab_size=32, intermediate_size=32, initializer_range=0.5, **sizes, **experts)
    model = Qwen2MoeForCausalLM(config).eval()
    texts = ["a b=c\n", "é", "abc def " * 5 + "gh", "a  b" * 4, "hi" * 16]
    judge = HFLM(pretrained=model, tokenizer=tokenizer, max_length=16, batch_size=1)
    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    theirs = judge.loglikelihood_rolling(asked, disable_tqdm=True)
    ours = perplexity.of_model(model, tokenizer, texts, window=16)
    words = [len(re.split(r"\s+", text)) for text in texts]
    sizes_bytes = [len(text.encode()) for text in texts]
    assert ours.nll == pytest.approx(-sum(theirs), rel=1e-5) and ours.documents == len(texts)
    assert ours.per_word == pytest.approx(weighted_perplexity(list(zip(theirs, words, strict=True))), rel=1e-4)
    assert ours.bits_per_byte == pytest.approx(bits_per_byte(list(zip(theirs, sizes_bytes, strict=True))), rel=1e-5)


@given(count=st.integers(0, 60), window=st.integers(1, 20))
def test_every_token_is_scored_once_with_all_the_text_that_fits(count: int, window: int) -> None:
    scored = []
    for first, begin, end in perplexity.windows(count, window):
        scored += range(begin, end)
        assert -1 <= first < begin or first == begin - 1
        assert end - 1 - first <= window
    assert scored == list(range(count))


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv-quantize/bin/python").exists(), reason="no environment with llmcompressor")
@pytest.mark.parametrize(
    "name",
    [
        n
        for n, e in CATALOGUE.items()
        if PrecisionEntry(**e).recipe_model is Recipe and not e["recipe"].get("calibration_hub")
    ],
)
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
        heldout={"dataset": "arithmetic", "documents": 8},
        heldout_file=tmp_path / "data" / "arithmetic.jsonl",
    )
    manifest = json.loads((tmp_path / name / "manifest.json").read_text())
    assert manifest["precision"] == name and manifest["source"]["recipe"]["scheme"] == recipe["scheme"]
    shapes = quantize.stored_shapes(tmp_path / name)
    stored, planned = anatomy(tmp_path / name), anatomy(_config(tmp_path / "bf16"), precision=name)
    assert {k: c.bytes for k, c in stored.components.items()} == {k: c.bytes for k, c in planned.components.items()}
    assert manifest["source"]["quantize_s"] > 0
    bits = 8 * sum(c.bytes for c in stored.components.values()) / stored.total_params
    assert manifest["bits_per_weight"] == pytest.approx(bits)
    quality, calibration = manifest["quality"], manifest["source"]["calibration"]
    assert quality["perplexity"]["tokens"] == quality["perplexity_of_base"]["tokens"] > 0
    assert (calibration is None) == (Recipe.from_data(recipe).needs_text is None)
    if calibration:
        assert sum(calibration["expert_tokens"].values()) == 3 * 2 * calibration["tokens"]  # layers × top-k
    experts = [k for k in shapes if ".experts." in k and k.endswith(("weight_packed", ".weight"))]
    assert len(experts) == 3 * 8 * 3  # layers × experts × projections
    assert shapes["lm_head.weight"] and shapes["model.layers.0.mlp.gate.weight"] == (8, 128)


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
