"""Whether an engine computed the model that it was given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from moecap.campaign.campaign import Campaign
from moecap.campaign.catalogue import Catalogue
from moecap.engines import equality
from moecap.errors import MoecapError, PermanentError


def model(norm_topk_prob: bool) -> Qwen2MoeForCausalLM:
    torch.manual_seed(7)
    config = Qwen2MoeConfig(
        vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, initializer_range=0.5,
        shared_expert_intermediate_size=32, norm_topk_prob=norm_topk_prob, max_position_embeddings=64,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config).eval()


@pytest.fixture(scope="module")
def served() -> tuple[Qwen2MoeForCausalLM, list[list[int]], list[list[int]]]:
    right = model(False)
    prompts = [[1, 5, 9], [7, 3], [40, 2, 8, 6]]
    outputs = []
    for prompt in prompts:
        out = right.generate(
            torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0
        )
        outputs.append(out[0, len(prompt) :].tolist())
    return right, prompts, outputs


def test_the_same_model_gives_the_same_tokens(served) -> None:
    found = equality.compare(*served)
    assert (found.equal, found.tokens) == (36, 36) and found.first is None and found.worst is None


def test_a_model_that_normalizes_otherwise_is_another(served, tmp_path: Path) -> None:
    """The very mismatch that an engine was caught at: the same weights, and one word of the config ignored."""
    right, prompts, outputs = served
    right.save_pretrained(tmp_path / "right")
    assert equality.check("x", tmp_path / "right", prompts, outputs, 0.01).equal == 36
    wrong = model(True)
    wrong.load_state_dict(right.state_dict())
    wrong.save_pretrained(tmp_path / "wrong")
    with pytest.raises(PermanentError, match=r"Engine x computes another model than .*wrong: of 36 greedy tokens \d+"):
        equality.check("x", tmp_path / "wrong", prompts, outputs, 0.5)


@given(st.integers(0, 35), st.integers(1, 95))
def test_any_token_that_is_not_the_best_is_found_where_it_is(served, at: int, other: int) -> None:
    right, prompts, outputs = served
    row, place = divmod(at, 12)
    changed = [list(output) for output in outputs]
    changed[row][place] = (changed[row][place] + other) % 96
    found = equality.compare(right, prompts, changed)
    assert found.first is not None
    assert (found.first.sequence, found.first.position) == (row, place) and found.first.best == outputs[row][place]


KNOWN = [(name, wrong) for name, entry in Catalogue().engines.items() for wrong in entry.capabilities.wrong]


@pytest.mark.parametrize(("engine", "wrong"), KNOWN, ids=[name for name, _ in KNOWN])
def test_what_is_known_to_be_another_model_is_refused_before_anything_runs(engine, wrong, tmp_path, monkeypatch):
    """Of every engine of the catalogue, every mismatch that its entry lists, and the same model without it."""
    entry = Catalogue().engines[engine]
    precision = next(n for n, p in Catalogue().precisions.items() if p.scheme in entry.capabilities.precisions)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catalogue").mkdir()
    models = {"m": {"source": {"path": str(tmp_path / "m")}}}
    (tmp_path / "catalogue/models.yaml").write_text(json.dumps(models), encoding="utf-8")
    (tmp_path / "table.csv").write_text(
        "deployment,model,precision,engine,hardware,devices,datasets,batch_sizes\n"
        f"d,m,{precision},{engine},this-machine,1,arithmetic,1\n",
        encoding="utf-8",
    )
    (tmp_path / "m").mkdir()
    settings = {"deployments": "table.csv", "catalogue": "catalogue", "cost": {"usd_per_kwh": 0.1}}
    (tmp_path / "m/config.json").write_text(json.dumps(wrong.config), encoding="utf-8")
    with pytest.raises(MoecapError, match=rf"line 2.*engine {engine} would compute another model than 'm'"):
        Campaign(settings)
    for key in wrong.config:
        other = {k: v for k, v in wrong.config.items() if k != key}
        (tmp_path / "m/config.json").write_text(json.dumps(other), encoding="utf-8")
        try:
            Campaign(settings)
        except MoecapError as error:
            assert "another model" not in str(error)
