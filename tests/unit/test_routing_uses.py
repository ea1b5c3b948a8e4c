"""Drift, placements and drafts from traces: what holds whatever the routing, and a small case by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap import anatomy
from moecap.cli import main
from moecap.engines.tokens import sequence_hash
from moecap.errors import MoecapError
from moecap.io import write_json, write_parquet
from moecap.routing.drift import changed, drift, pairs
from moecap.routing.placement import Placement, busiest, expert_counts, linear, replicated
from moecap.routing.speculation import depths, mean_unions, tokens_per_step, unions
from moecap.routing.store import RoutingWriter


@st.composite
def routing(draw: st.DrawFn, tokens: int = 12) -> tuple[np.ndarray, int]:
    """Expert ids (tokens, layers, top-k), distinct within a token, and the number of experts."""
    experts = draw(st.integers(2, 9))
    top_k = draw(st.integers(1, experts))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    length = draw(st.integers(1, tokens))
    return rng.permuted(np.tile(np.arange(experts), (length, 2, 1)), axis=-1)[..., :top_k], experts


class Store:
    layers = (0, 1)

    def __init__(self, **ids: np.ndarray) -> None:
        self.ids = ids

    def experts(self, name: str) -> np.ndarray:
        return self.ids[name]


@given(routing(), st.randoms())
def test_drift_is_a_distance_of_sets(one, random) -> None:
    ids, experts = one
    order = list(range(ids.shape[-1]))
    random.shuffle(order)
    assert (changed(ids, ids[..., order]) == 0).all()
    other = (ids + 1) % experts
    there, back = changed(ids, other), changed(other, ids)
    assert np.allclose(there, back) and ((there >= 0) & (there <= 1)).all()
    sets = [[len(set(a) - set(b)) / len(a) for a, b in zip(x, y, strict=True)] for x, y in zip(ids, other, strict=True)]
    assert np.allclose(there, sets)


def test_only_tokens_of_the_same_context_are_compared() -> None:
    def request(name, prompt, output):
        return {"sequence_sha256": name, "prompt_token_ids": prompt, "output_token_ids": output}

    first = [request("a", [1, 2], [3, 4]), request("again", [1, 2], [3, 4]), request("b", [7], [7])]
    second = [request("c", [1, 2], [3, 9]), request("d", [8], [8])]
    common = list(pairs(first, second))
    assert common == [("a", "c", 3)]
    ids = np.zeros((4, 2, 1), dtype=np.uint8)
    other = ids.copy()
    other[2, 0] = 5
    other[3] = 5  # behind the first token that differs: not the precision's doing
    found = drift(Store(a=ids), Store(c=other), common)
    assert (found.tokens, found.sequences, found.choices, found.sets) == (3, 1, (1 / 3, 0.0), (1 / 3, 0.0))
    assert drift(Store(), Store(), []) is None


@settings(max_examples=60)
@given(st.integers(1, 12), st.data())
def test_a_placement_loses_no_token_and_the_busiest_is_no_less_than_the_mean(experts: int, data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, experts))
    counts = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 9), min_size=experts, max_size=experts), min_size=1, max_size=5))
    )
    redundant = data.draw(st.integers(0, experts * (ranks - 1)))
    balanced = replicated(counts.sum(axis=0), ranks, redundant)
    assert sum(map(len, balanced.ranks)) == experts + redundant
    for placed in (linear(experts, ranks), balanced):
        tokens, read = placed.per_rank(counts)
        assert (tokens.sum(axis=1) == counts.sum(axis=1)).all()
        assert (read.sum(axis=1) >= (counts > 0).sum(axis=1)).all()
        found = busiest(placed, counts)
        assert found.tokens >= found.tokens_even and found.experts >= found.experts_even and 0 <= found.waiting < 1
    everywhere = replicated(counts.sum(axis=0), ranks, experts * (ranks - 1))
    assert all(len(rank) == experts for rank in everywhere.ranks)


def test_a_copy_of_the_busiest_expert_halves_it() -> None:
    counts = np.array([[6, 2, 2, 2]])
    assert busiest(linear(4, 2), counts).tokens == 8
    assert busiest(replicated([6, 2, 2, 2], 2, 1), counts).tokens == 7  # 3 + 4 on one rank, 3 + 2 on the other
    assert busiest(Placement(((0, 1), (0, 2, 3)), 4), counts).tokens == 7
    for ranks, said in (
        (((0, 1),), "expert 2"),
        (((0, 1, 2, 3), (3, 9)), "no expert 9"),
        (((0, 0, 1, 2, 3),), "twice"),
    ):
        with pytest.raises(MoecapError, match=said):
            Placement(ranks, 4)
    with pytest.raises(MoecapError, match="1 to 4 ranks"):
        linear(4, 5)


def test_tokens_per_expert_and_step() -> None:
    ids = np.array([[[0, 2], [2, 1]], [[0, 1], [-1, -1]]])
    assert expert_counts(ids, 3).tolist() == [[1, 1, 2], [1, 1, 0]]


@given(routing(), st.floats(0, 1))
def test_a_deeper_draft_reads_no_less_a_step_and_no_more_than_all(one, acceptance) -> None:
    ids, experts = one
    top_k = ids.shape[-1]
    for window in range(1, len(ids) + 1):
        brute = [
            [len(set(ids[i : i + window, layer].ravel())) for layer in range(2)] for i in range(len(ids) - window + 1)
        ]
        assert unions(ids, window).tolist() == brute
    assert unions(ids, len(ids) + 1).shape == (0, 2)
    # Of one sequence the windows of two depths are not the same tokens: bounds hold, order only of nested windows.
    found = mean_unions([ids], range(len(ids) + 2))
    assert found[0] == (top_k, top_k) and set(found) == set(range(len(ids)))
    assert all(top_k <= n <= min(experts, top_k * (d + 1)) for d, by_layer in found.items() for n in by_layer)
    best = depths(found, [10.0, 20.0], 100.0, acceptance)
    assert [b.bytes_per_token for b in best] == sorted(b.bytes_per_token for b in best)
    plain = next(b for b in best if b.depth == 0)
    assert plain.bytes_per_token == 100 + 30 * top_k and plain.tokens == 1
    assert best[0].bytes_per_token <= plain.bytes_per_token
    assert all(1 <= tokens_per_step(acceptance, d) <= d + 1 for d in range(5))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two precisions of Mixtral, whose second output token differs in one of two requests."""
    model = anatomy("mixtral-8x7b")
    rng = np.random.default_rng(1)
    for precision, last in (("bf16", 4), ("int4", 9)):
        sequences = [([1, 2], [3, 4, 5]), ([7], [8, last, 5])]
        write_json(model.to_json(), tmp_path / f"anatomy/m/{precision}.json")
        path = tmp_path / f"routing/m/{precision}.parquet"
        with RoutingWriter(path, layers=model.moe_layers, top_k=2, n_experts=8) as writer:
            for prompt, output in sequences:
                ids = rng.permuted(np.tile(np.arange(8), (len(prompt + output), 32, 1)), axis=-1)[..., :2]
                writer.add(sequence_hash(prompt + output), ids)
        rows = [
            {"dataset": "d", "batch_size": 2, "repeat": 0, "sequence_sha256": sequence_hash(p + o),
             "prompt_token_ids": p, "output_token_ids": o}
            for p, o in sequences
        ]  # fmt: skip
        write_parquet(pa.Table.from_pylist(rows), tmp_path / f"performance/m-{precision}/requests.parquet")
    cap = [
        {"deployment": f"m-{p}", "model": "m", "precision": p, "dataset": "d", "accuracy": a}
        for p, a in (("bf16", 0.9), ("int4", 0.8), ("fp8", None))
    ]
    write_parquet(pa.Table.from_pylist(cap), tmp_path / "cap.parquet")
    return tmp_path


def test_a_folder_of_results_says_what_its_traces_hold(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*arguments: str) -> pd.DataFrame:
        assert main(["routing", arguments[0], str(results), "--json", *arguments[1:]]) == 0
        return pd.DataFrame(json.loads(capsys.readouterr().out))

    (drifted,) = rows("drift").to_dict("records")
    assert (drifted["precision"], drifted["against"], drifted["tokens"], drifted["sequences"]) == ("int4", "bf16", 7, 2)
    assert 0 < drifted["choices_changed"] <= drifted["sets_changed"] <= 1
    assert (drifted["accuracy"], drifted["accuracy_against"]) == (0.8, 0.9)

    mine = results / "mine.json"
    write_json([[0, 1, 2, 3], [4, 5, 6, 7]], mine)
    ranks = rows("ranks", "--placement", str(mine), "--redundant", "1").set_index(["deployment", "placement"])
    linear_, own = ranks.loc[("m-bf16", "linear")], ranks.loc[("m-bf16", "own")]
    assert linear_.to_dict() == own.to_dict() and linear_["steps"] == 2 and linear_["tokens_even"] == 2.0
    assert set(ranks.index.get_level_values(1)) == {"linear", "balanced", "own"}
    kind = anatomy("mixtral-8x7b").kinds[0]
    assert linear_["bytes_busiest"] * 2 % kind.expert_bytes == 0 and linear_["bytes_busiest"] >= linear_["bytes_even"]

    drafts = rows("drafts", "--acceptance", "1").set_index(["deployment", "depth"]).loc["m-bf16"]
    assert list(drafts.index) == [0, 1] and drafts["tokens_per_step"].tolist() == [1, 2]
    model = anatomy("mixtral-8x7b")
    whole = model.weight_bytes - model.components["embedding"].bytes
    assert drafts["weight_bytes_per_token"][0] == whole - 32 * 6 * kind.expert_bytes

    assert main(["routing", "ranks", str(results), "--ranks", "9"]) == 1
    assert "1 to 8 ranks" in capsys.readouterr().err
    assert main(["routing", "drafts", str(results), "--acceptance", "2"]) == 1
    mine.write_text("[[0], 1]", encoding="utf-8")
    assert main(["routing", "ranks", str(results), "--placement", str(mine)]) == 1
    assert "each rank" in capsys.readouterr().err
