"""Predicted bytes against bytes that were counted op by op, and proof that the comparison can fail."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from moecap.checks import byte_check, measured_bytes  # noqa: E402
from moecap.errors import MoecapError  # noqa: E402
from moecap.model.structure import Anatomy, Component  # noqa: E402
from moecap.provenance import modules_of  # noqa: E402

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("validate_bytes", ROOT / "scripts/validate_bytes.py")
validate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(validate)

PREDICTOR = {"moecap.metrics.utilization", "moecap.model.reads", "moecap.model.structure"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are slower on more threads, and crawl beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=validate.SMALL)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Anatomy]:
    return (request.param, *validate.small(request.param, tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Anatomy]:
    return validate.small("Mixtral type", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def steps(mixtral: tuple[Any, Anatomy]) -> list[byte_check.Step]:
    return list(byte_check.measure(mixtral[0], [1, 4], prompt_tokens=5))


def rows_of(steps: list[byte_check.Step], anatomy: Anatomy) -> list[dict[str, Any]]:
    return [byte_check.compare(step, anatomy, layer) for step in steps for layer in (*anatomy.moe_layers, None)]


# ---------------------------------------------------------------- agreement


def test_weights_and_kv_agree_to_the_byte_and_totals_within_half_a_percent(architecture) -> None:
    name, model, anatomy = architecture
    rows = byte_check.check(model, anatomy, validate.BATCH_SIZES, prompt_tokens=validate.SMALL[name][2])
    first, middle, last = (
        anatomy.moe_layers[0],
        anatomy.moe_layers[len(anatomy.moe_layers) // 2],
        anatomy.moe_layers[-1],
    )
    assert first < middle < last
    assert {row["layer"] for row in rows} == {str(first), str(middle), str(last), byte_check.WHOLE}
    assert [row["batch_size"] for row in rows if row["layer"] == byte_check.WHOLE] == [1, 2, 4, 8, 16, 32, 64]
    assert byte_check.disagreements(rows) == []
    counts = [r for r in rows if r["weights_over_activations"] >= byte_check.WEIGHTS_OVER_ACTIVATIONS]
    assert {row["batch_size"] for row in counts} >= {1, 2, 4}  # the criterion is about something
    assert min(row["unique_experts"] for row in rows) == anatomy.top_k
    assert max(row["unique_experts"] for row in rows) == anatomy.experts


def test_a_long_context_agrees_too(architecture) -> None:
    _, model, anatomy = architecture
    rows = byte_check.check(model, anatomy, [3], prompt_tokens=150)
    assert all(row["predicted_weight_bytes"] == row["measured_weight_bytes"] for row in rows)
    assert all(row["predicted_kv_bytes"] == row["measured_kv_bytes"] for row in rows)
    whole = rows[-1]
    assert whole["measured_kv_bytes"] == 3 * 151 * anatomy.kv_bytes_per_token


@pytest.mark.slow
def test_a_mixtral_layer_of_real_dimensions() -> None:
    rows = validate.real_rows()
    layer = [row for row in rows if row["layer"] == "0"]
    assert byte_check.disagreements(rows) == []
    assert all(r["weights_over_activations"] >= byte_check.WEIGHTS_OVER_ACTIVATIONS for r in layer)
    free = {row["batch_size"]: row for row in layer if row["model"] == validate.REAL}
    assert list(free) == [1, 2, 4, 8, 16, 32, 64]
    assert free[1]["unique_experts"] == 2
    assert free[1]["mbu_overestimate"] == pytest.approx(2.68, abs=0.005)
    forced = [row for row in layer if row["model"] == validate.FORCED]
    assert [row["unique_experts"] for row in forced] == list(range(1, 9))
    expert = 3 * 4096 * 14336 * 2
    assert np.diff([row["measured_weight_bytes"] for row in forced]).tolist() == [expert] * 7


def test_forced_routing_reads_what_it_names(mixtral: tuple[Any, Anatomy]) -> None:
    model, anatomy = mixtral
    for unique in range(1, 9):
        with validate.forced_routing(model, unique):
            rows = byte_check.check(model, anatomy, [4], prompt_tokens=3)
        assert {row["unique_experts"] for row in rows} == {unique}
        assert byte_check.disagreements(rows) == []


# ---------------------------------------------------------------- it can disagree


def expert_of_another_size(anatomy: Anatomy) -> Anatomy:
    kinds = tuple(replace(kind, expert_bytes=kind.expert_bytes * 1.001) for kind in anatomy.kinds)
    return replace(anatomy, kinds=kinds)


def without(component: str, fields: dict[str, int]):
    def drop(anatomy: Anatomy) -> Anatomy:
        components = {**anatomy.components, component: Component(anatomy.components[component].params, 0)}
        return replace(anatomy, components=components, kinds=tuple(replace(k, **fields) for k in anatomy.kinds))

    return drop


WRONG = {
    "an expert of another size": expert_of_another_size,
    "no router": without("router", {"router_bytes": 0}),
    "no attention": without("attention", {"attention_bytes": 0}),
    "no norms": without("norms", {"norm_bytes": 0}),
    "no head": without("lm_head", {}),
    "no embedding": lambda anatomy: replace(anatomy, embedding_row_bytes=0),
    "a KV cache of another dtype": lambda anatomy: anatomy.with_kv_dtype_bytes(1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_anatomy_is_found(wrong: str, steps: list[byte_check.Step], mixtral: tuple[Any, Anatomy]) -> None:
    assert byte_check.disagreements(rows_of(steps, mixtral[1])) == []
    found = byte_check.disagreements(rows_of(steps, WRONG[wrong](mixtral[1])))
    assert found
    assert any(("kv" if "KV" in wrong else "weight") in line for line in found)


@pytest.mark.parametrize("top_k", [1, 3])
def test_a_wrong_top_k_is_found(top_k: int, steps: list[byte_check.Step], mixtral: tuple[Any, Anatomy]) -> None:
    """A trace that kept too few experts per token, or one more than the routers chose."""

    def wrong(ids: np.ndarray) -> np.ndarray:
        more = np.array([[next(e for e in range(8) if e not in row)] for row in ids])
        return np.concatenate([ids, more], axis=1)[:, :top_k]

    mutated = [replace(s, experts={layer: wrong(ids) for layer, ids in s.experts.items()}) for s in steps]
    found = byte_check.disagreements(rows_of(mutated, mixtral[1]))
    alone = [line for line in found if "batch size 1:" in line and "weight" in line]
    assert len(alone) == len(mixtral[1].moe_layers) + 1  # every layer, and the model


def test_no_shared_experts_is_found(tmp_path: Path) -> None:
    model, anatomy = validate.small("Qwen2-MoE type", tmp_path)
    rows = byte_check.check(model, without("shared_experts", {"shared_bytes": 0})(anatomy), [1], prompt_tokens=3)
    assert len([line for line in byte_check.disagreements(rows) if "weight bytes" in line]) == 4


def test_an_anatomy_of_another_model_is_refused(steps: list[byte_check.Step], tmp_path: Path) -> None:
    _, other = validate.small("DeepSeek-V3 type", tmp_path)
    with pytest.raises(MoecapError, match="belongs to another model"):
        byte_check.compare(steps[0], other, None)


def test_the_counter_sees_experts_that_no_token_was_sent_to_where_they_are_read(mixtral: tuple[Any, Anatomy]) -> None:
    """Executed in one grouped product, all experts are operands; one by one, those that were chosen."""
    model, anatomy = mixtral
    tokens = torch.zeros(1, 4, dtype=torch.long)
    alone = measured_bytes.decode_step(measured_bytes.one_by_one(model), tokens, tokens[:, :1])
    try:
        model.set_experts_implementation("grouped_mm")
        grouped = measured_bytes.decode_step(model, tokens, tokens[:, :1])
    finally:
        model.set_experts_implementation("eager")
    idle = (anatomy.experts - anatomy.top_k) * anatomy.kinds[0].expert_bytes
    assert grouped.weight_bytes([0]) - alone.weight_bytes([0]) == idle


def test_a_quantized_checkpoint_is_refused(mixtral: tuple[Any, Anatomy], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(MoecapError, match="dequantized"):
        byte_check.check_checkpoint(tmp_path, mixtral[1])


# ---------------------------------------------------------------- the counter itself


def test_the_counter_shares_no_code_with_the_predictor() -> None:
    """Of this library the counter imports how to raise an error; the comparison does reach the predictor."""
    counter, comparison = ROOT / "moecap/checks/measured_bytes.py", ROOT / "moecap/checks/byte_check.py"
    assert modules_of(counter) == ["moecap.checks.measured_bytes"]  # and moecap.errors, which no result depends on
    assert {*modules_of(comparison)} >= {"moecap.checks.measured_bytes", *PREDICTOR}
    imported: set[str] = set()
    for node in ast.walk(ast.parse(counter.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert {name for name in imported if name.split(".")[0] == "moecap"} == {"moecap.errors"}


class Toy(torch.nn.Module):
    """A model of one layer whose bytes are known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 6, bias=True)])
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.register_buffer("offset", torch.ones(6))
        self.head = torch.nn.Parameter(torch.ones(10, 6))

    def get_decoder(self) -> torch.nn.Module:
        return self


class Nothing:
    storages: frozenset[int] = frozenset()


def counted(run) -> measured_bytes.Counted:
    toy = Toy()
    counter = measured_bytes.ByteCounter(toy, Nothing())
    with torch.inference_mode(), counter.counting() as result:
        run(toy)
    return result


def test_operands_by_hand() -> None:
    x = torch.ones(2, 4)

    def run(toy: Toy) -> None:
        hidden = toy.layers[0](x)  # 24 + 6 weights; in 8, out 12
        hidden = hidden + toy.offset  # 6 weights; in 12, out 12
        torch.nn.functional.linear(hidden, toy.head[2:5])  # 18 of 60 weights, at an offset; in 12, out 6
        _ = hidden * toy.scratch[:1]  # no weight: 1; in 12, out 12

    got = counted(run)
    assert dict(got.weights[0]) == {"layers.0.weight": 96, "layers.0.bias": 24}
    assert dict(got.weights[None]) == {"offset": 24, "head": 72}
    assert got.regions["head"] == {(2 * 6 * 4, 72)}
    assert (got.products[0], got.products[None]) == (4 * 20, 4 * 18)
    assert got.between[None] == 4 * (24 + 25)
    assert got.weight_bytes() == 96 + 24 + 24 + 72
    assert got.weight_bytes([0]) == 120


def test_rows_that_are_gathered_count_and_the_table_does_not() -> None:
    got = counted(lambda toy: torch.nn.functional.embedding(torch.tensor([3, 3, 7]), toy.head))
    assert dict(got.weights[None]) == {"head": 3 * 6 * 4}


def test_views_move_nothing_and_conversions_are_read_once() -> None:
    got = counted(lambda toy: toy.head.view(-1)[3:].reshape(-1).t().to(torch.float32))
    assert not got.weight_bytes() and not got.ops
    got = counted(lambda toy: torch.nn.functional.linear(torch.ones(1, 6).double(), toy.head.to(torch.float64)))
    assert got.weight_bytes() == 240  # as stored, once: what it was converted to is a copy, not a weight
    assert got.products.total() == 8 * (6 + 10)
    assert got.between.total() >= 2 * 480  # written, and read again


def test_a_broadcast_operand_is_read_once() -> None:
    got = counted(lambda toy: torch.ones(2, 10, 6) @ toy.head.t().expand(2, 6, 10))
    assert got.weight_bytes() == 240


def test_a_write_into_a_weight_is_no_inference() -> None:
    with pytest.raises(MoecapError, match="writes into the weight head"):
        counted(lambda toy: toy.head.copy_(torch.zeros(10, 6)))


def test_what_is_kept_beside_full_attention_is_refused() -> None:
    config = transformers.AutoConfig.for_model("gpt_oss", num_hidden_layers=2)
    with pytest.raises(MoecapError, match="DynamicSlidingWindowLayer"):
        measured_bytes.AppendingCache(config, 8)


def test_the_appending_cache_gives_what_the_dynamic_one_gives(architecture) -> None:
    _, model, _ = architecture
    tokens = torch.arange(24).view(2, 12)
    logits = {}
    for name, cache in {
        "appending": measured_bytes.AppendingCache(model.config, 13),
        "dynamic": transformers.DynamicCache(config=model.config),
    }.items():
        with torch.inference_mode():
            model(input_ids=tokens, past_key_values=cache)
            logits[name] = model(input_ids=tokens[:, :1], past_key_values=cache).logits
    torch.testing.assert_close(logits["appending"], logits["dynamic"])
    with torch.inference_mode(), pytest.raises(MoecapError, match="do not fit"):
        cache = measured_bytes.AppendingCache(model.config, 11)
        model(input_ids=tokens, past_key_values=cache)


def test_the_table_has_units_and_the_page_says_what_holds(steps: list[byte_check.Step], mixtral) -> None:
    rows = rows_of(steps, mixtral[1])
    table = byte_check.table(rows)
    assert table.num_rows == len(rows) and all(field.metadata[b"meaning"] for field in table.schema)
    said = "\n".join(validate.verdicts(rows))
    assert f"at {len(rows)} of {len(rows)} points" in said
    wrong = "\n".join(validate.verdicts(rows_of(steps, expert_of_another_size(mixtral[1]))))
    assert f"Weights: predicted equals measured, to the byte, at 0 of {len(rows)} points" in wrong
