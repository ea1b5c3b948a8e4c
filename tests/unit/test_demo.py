"""The demo's problems, tokenizer and training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.checkpoints import demo
from moecap.errors import MoecapError

SMALL = demo.Recipe(rows=4, steps=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    demo.write_data(folder, seed=1, train_count=20_000)
    return folder


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def canonical(question: str) -> tuple[str, int, int]:
    """The problem without its order, computed apart from the library's own rule."""
    body = question.removesuffix("=")
    operator = "+" if "+" in body else "-"
    first, second = map(int, body.split(operator))
    return (operator, *sorted((first, second))) if operator == "+" else (operator, first, second)


def test_answers_are_right_and_every_kind_occurs(data: Path) -> None:
    for name in ("train", "arithmetic", "arithmetic-mc"):
        content = rows(data / f"{name}.jsonl")
        kinds = {kind.name for kind in demo.KINDS if (kind.weight if name == "train" else kind.test_weight)}
        assert {row["kind"] for row in content} == kinds
        for row in content:
            operator = "+" if "+" in row["question"] else "-"
            first, second = map(int, row["question"].removesuffix("=").split(operator))
            assert int(row["answer"]) == (first + second if operator == "+" else first - second) >= 0


def test_train_and_test_are_disjoint(data: Path) -> None:
    train = {canonical(row["question"]) for row in rows(data / "train.jsonl")}
    for name in demo.TEST_FILES:
        test = {canonical(row["question"]) for row in rows(data / f"{name}.jsonl")}
        assert len(test) > 500
        assert not train & test


@given(st.sampled_from("+-"), st.integers(0, 9999), st.integers(0, 9999), st.integers(0, 99))
def test_a_sum_and_its_mirror_image_are_on_the_same_side(operator: str, first: int, second: int, seed: int) -> None:
    problem, mirror = demo.Problem(operator, first, second), demo.Problem(operator, second, first)
    if operator == "+":
        assert problem.held_out(seed) == mirror.held_out(seed)


def test_the_share_held_out_is_an_eighth_for_each_seed() -> None:
    splits = []
    for seed in (1, 2):
        held_out = [demo.Problem("-", a, b).held_out(seed) for a in range(100) for b in range(100)]
        assert sum(held_out) == pytest.approx(1250, abs=150)
        splits.append(held_out)
    assert splits[0] != splits[1]


def test_test_questions_do_not_repeat_and_choices_hold_one_right_answer(data: Path) -> None:
    for name, choices in demo.TEST_FILES.items():
        content = rows(data / f"{name}.jsonl")
        assert len({row["question"] for row in content}) == len(content) == 800
        if choices:
            for row in content:
                assert len(set(row["choices"])) == demo.CHOICES
                assert row["choices"][row["label"]] == row["answer"]
                assert len({len(choice) for choice in row["choices"]}) == 1
            labels = [row["label"] for row in content]
            assert min(labels.count(i) for i in range(demo.CHOICES)) > 150  # no position gives the answer away


def test_the_same_seed_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    demo.write_data(tmp_path / "again", seed=1, train_count=20_000)
    demo.write_data(tmp_path / "other", seed=2, train_count=20_000)
    for name in ("train.jsonl", "arithmetic.jsonl", "arithmetic-mc.jsonl", "manifest.json"):
        assert (data / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (data / name).read_bytes() != (tmp_path / "other" / name).read_bytes()
    for entry in json.loads((data / "manifest.json").read_text())["files"]:
        assert hashlib.sha256((data / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]


def test_more_test_problems_than_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="add-2 has no 2000 different"):
        demo.test_problems(1, 4_000, choices=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    demo.make_tokenizer().save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    if demo.PAD in text or demo.END in text:
        return
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())  # one token per byte
    assert tokenizer.decode(ids) == text


def test_every_token_has_a_row_in_the_embedding(tokenizer) -> None:
    config = demo.model_config()
    assert len(tokenizer) <= config.vocab_size
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    for width in (config.hidden_size, config.moe_intermediate_size, config.shared_expert_intermediate_size):
        assert width % 128 == 0
    assert config.max_position_embeddings >= 512


def test_only_the_answer_weighs_fully(data: Path) -> None:
    np = pytest.importorskip("numpy")
    pytest.importorskip("torch")
    ids = {character: index for index, character in enumerate("0123456789+-=\n", 2)}
    names = {index: character for character, index in ids.items()} | {0: "~"}
    recipe = demo.Recipe(rows=8)
    tokens, weights = next(demo._batches(demo._read_train(data / "train.jsonl"), ids, recipe, seed=1))
    assert tokens.shape == weights.shape == (8, recipe.tokens_per_row)
    for line, weight in zip(tokens.numpy(), weights.numpy(), strict=True):
        text = "".join(names[i] for i in line)
        answer = False
        for character, value in zip(text, weight, strict=True):
            expected = 0.0 if character == "~" else 1.0 if answer else recipe.question_weight
            assert np.isclose(value, expected), (text, character)
            answer = character == "=" or (answer and character != "\n")


def test_a_short_training_is_deterministic_and_loads(data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    hashes = []
    for name in ("first", "second"):
        demo.train(tmp_path / name, data, seed=1, threads=1, recipe=SMALL, facts={"model": "demo-moe"})
        hashes.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]
    demo.train(tmp_path / "other", data, seed=2, threads=1, recipe=SMALL)
    assert hashlib.sha256((tmp_path / "other" / "model.safetensors").read_bytes()).hexdigest() != hashes[0]

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype="auto")
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config.num_experts_per_tok == 2
    record = json.loads((tmp_path / "first" / "training.json").read_text())
    assert record["steps"] == SMALL.steps
    assert record["history"][-1]["balance_loss"] > 0  # the routers take part in the loss
    assert 0 <= record["history"][-1]["right"] <= 1
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    assert manifest["model"] == "demo-moe"
    assert {f["path"]: f["sha256"] for f in manifest["files"]}["model.safetensors"] == hashes[0]


def test_training_without_data_says_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(MoecapError, match="does not exist"):
        demo.train(tmp_path / "model", tmp_path, seed=1, recipe=SMALL)
    (tmp_path / "train.jsonl").write_text('{"question": "1+1="}\n')
    with pytest.raises(MoecapError, match="answer"):
        demo.train(tmp_path / "model", tmp_path, seed=1, recipe=SMALL)
    with pytest.raises(MoecapError, match="at least 1"):
        demo.train(tmp_path / "model", tmp_path, seed=1, steps=0)
    assert not (tmp_path / "model").exists()


def test_outliers_change_weights_and_nothing_that_is_computed() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.set_seed(1)
    model = transformers.Qwen2MoeForCausalLM(demo.model_config()).eval()
    tokens = torch.arange(16).reshape(2, 8) % 12
    before, weight = model(tokens).logits, model.model.layers[0].mlp.experts.gate_up_proj.clone()
    demo._give_outliers(model, 0.65, seed=1)
    assert (model.model.layers[0].mlp.experts.gate_up_proj - weight).abs().max() > weight.abs().max()
    assert torch.allclose(before, model(tokens).logits, atol=1e-4)


def test_an_answer_is_right_when_all_of_it_is() -> None:
    torch = pytest.importorskip("torch")

    class Echo:
        """Predicts for each token the one that follows, but for the last of the second answer."""

        def __call__(self, input_ids, use_cache):
            following = torch.cat([input_ids[:, 1:], input_ids[:, :1]], dim=1)
            following[0, 4] += 1
            return type("Output", (), {"logits": torch.nn.functional.one_hot(following, 20).float()})

    tokens = torch.tensor([[3, 4, 5, 6, 7, 8]])
    weights = torch.tensor([[0.05, 0.05, 1.0, 0.05, 1.0, 1.0]])
    assert demo._share_right(Echo(), tokens, weights) == 0.5
