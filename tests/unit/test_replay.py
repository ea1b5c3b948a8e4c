"""Replay: every sequence once, rows that are known exactly, and two backends that agree."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.engines.tokens import groups, sequence_hash
from moecap.engines.transformers.replay import TransformersBackend, pad
from moecap.engines.transformers.routers import find_routers
from moecap.engines.vllm import replay as vllm_replay
from moecap.errors import MoecapError
from moecap.io import read_metadata, write_parquet
from moecap.routing import replay
from moecap.routing import store as routing
from moecap.routing.store import RoutingWriter

LAYERS, TOP_K, EXPERTS = (1, 2), 2, 8


def expected_ids(tokens):
    """What the fake model routes to: any function of the token and its position that is easy to recompute."""
    tokens = np.asarray(tokens)
    position = np.arange(len(tokens))
    first = (tokens + position) % EXPERTS
    return np.stack([np.stack([first, (first + layer) % EXPERTS], axis=-1) for layer in LAYERS], axis=1)


class FakeBackend:
    """Routes by a formula; remembers what it was asked for."""

    name, version, layers, top_k, n_experts = "fake", "1", LAYERS, TOP_K, EXPERTS
    loads: ClassVar[list[dict]] = []
    seen: ClassVar[list[list[int]]] = []
    fail_after: int | None = None
    drop = False

    def __init__(self, checkpoint, max_tokens, **options):
        type(self).loads.append({"checkpoint": str(checkpoint), "max_tokens": max_tokens, **options})

    def routing(self, sequences):
        for index in reversed(range(len(sequences))):
            if self.fail_after is not None and len(self.seen) >= self.fail_after:
                raise KeyboardInterrupt
            if self.drop and index == 0:
                continue
            type(self).seen.append(list(sequences[index]))
            yield index, expected_ids(sequences[index])

    def close(self):
        type(self).loads[-1]["closed"] = True


@pytest.fixture
def fake(monkeypatch):
    class Fresh(FakeBackend):
        loads, seen, fail_after, drop = [], [], None, False

    monkeypatch.setitem(replay.BACKENDS, "fake", Fresh)
    return Fresh


def some_sequences(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 100, n).tolist() for n in rng.integers(1, 30, count)]


# --- the replay itself -----------------------------------------------------------------------------------------------


def test_each_sequence_is_replayed_once(tmp_path, fake):
    sequences = some_sequences(10)
    report = replay.replay("model", sequences * 3, "fake", partial(RoutingWriter, tmp_path / "r.parquet"))
    assert (report.sequences, report.replayed, report.tokens) == (10, 10, sum(map(len, sequences)))
    assert sorted(fake.seen) == sorted(sequences)
    assert fake.loads[0]["max_tokens"] == max(map(len, sequences)) and fake.loads[0]["closed"]
    store = routing.read(tmp_path / "r.parquet")
    for tokens in sequences:
        np.testing.assert_array_equal(store.experts(sequence_hash(tokens)), expected_ids(tokens))


def test_what_is_in_the_store_is_not_replayed_again_and_nothing_is_loaded_for_nothing(tmp_path, fake):
    old, new = some_sequences(5), some_sequences(4, seed=1)
    replay.replay("model", old, "fake", partial(RoutingWriter, tmp_path / "1.parquet"))
    store = routing.read(tmp_path / "1.parquet")
    fake.seen.clear()
    report = replay.replay("model", old + new, "fake", partial(RoutingWriter, tmp_path / "2.parquet"), store)
    assert report.replayed == 4 and sorted(fake.seen) == sorted(new)
    fake.loads.clear()
    both = routing.read([tmp_path / "1.parquet", tmp_path / "2.parquet"])
    report = replay.replay("model", old + new, "fake", partial(RoutingWriter, tmp_path / "3.parquet"), both)
    assert (report.replayed, report.load_s, fake.loads) == (0, None, [])
    assert not (tmp_path / "3.parquet").exists()


def test_a_sequence_that_was_not_seen_is_an_error_and_leaves_nothing(tmp_path, fake):
    fake.drop = True
    with pytest.raises(MoecapError, match="1 of 3 sequences were not seen whole"):
        replay.replay("model", some_sequences(3), "fake", partial(RoutingWriter, tmp_path / "r.parquet"))
    assert list(tmp_path.iterdir()) == [] and fake.loads[0]["closed"]


def test_a_store_of_another_model_is_refused(tmp_path, fake):
    with RoutingWriter(tmp_path / "1.parquet", layers=[0], top_k=1, n_experts=4) as writer:
        writer.add("x", np.zeros((1, 1, 1), int))
    with pytest.raises(MoecapError, match="another model"):
        replay.replay("m", [[1]], "fake", partial(RoutingWriter, tmp_path / "2"), routing.read(tmp_path / "1.parquet"))


def test_unknown_backend():
    with pytest.raises(MoecapError, match="Did you mean 'transformers'"):
        replay.replay("m", [[1]], "transformer", RoutingWriter)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 100))
def test_parts_and_groups_cover_everything_once(lengths, limit):
    todo = {str(i): [0] * n for i, n in enumerate(lengths)}
    parts = list(replay._parts(todo, limit))
    assert sorted(name for part in parts for name in part) == sorted(todo)
    assert all(sum(len(todo[n]) for n in part) >= limit for part in parts[:-1])
    found = list(groups(lengths, limit))
    assert [i for group in found for i in group] == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[i] for i in group) <= limit for group in found)


# --- vLLM's rows -----------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=6))
def test_rows_of_a_packed_step_are_taken_apart_by_position(sequences):
    ids = {
        layer: np.concatenate([expected_ids(tokens)[:, i] for tokens in sequences]) for i, layer in enumerate(LAYERS)
    }
    step = vllm_replay.Captured(
        np.concatenate([np.array(tokens) for tokens in sequences]),
        np.concatenate([np.arange(len(tokens)) for tokens in sequences]),
        ids,
    )
    found = list(vllm_replay.whole_sequences(step, LAYERS))
    assert [name for name, _ in found] == [sequence_hash(tokens) for tokens in sequences]
    for (_, got), tokens in zip(found, sequences, strict=True):
        np.testing.assert_array_equal(got, expected_ids(tokens))


def test_rows_are_labelled_whatever_order_the_engine_keeps():
    sequences = [[5, 6, 7, 8], [5, 9, 7], [1, 2, 3, 4, 5]]
    # Request 1 decodes its third token, request 0 its second, request 2 has a chunk of two from position 1.
    step = vllm_replay.Captured(np.array([2, 3, 6, 7]), np.array([1, 2, 1, 2]))
    schedule = ([0, 1, 2], [1, 2, 1], [1, 1, 2])
    assert vllm_replay.label_rows(step, *schedule, sequences).tolist() == [2, 2, 0, 1]
    with pytest.raises(MoecapError, match="not in its schedule"):
        vllm_replay.label_rows(step, *schedule, [[5, 6, 7, 8], [5, 9, 8], [1, 2, 3, 4, 5]])
    with pytest.raises(MoecapError, match=r"computes requests \[1\]"):
        vllm_replay.label_rows(vllm_replay.Captured(step.token_ids[:3], step.positions[:3]), *schedule, sequences)


def test_capture_keeps_the_models_own_rows_and_drops_padding():
    import torch

    capture = vllm_replay.VllmCapture(n_experts=300)
    capture.add(1, torch.tensor([[0, 1]]))  # before any step: a warm-up
    capture.begin(None, (), {"input_ids": torch.tensor([7, 8]), "positions": torch.tensor([[0, 1]] * 3)})
    capture.add(1, torch.tensor([[299, 1], [2, 3], [0, 0]]))
    (step,) = capture.take()
    assert step.positions.tolist() == [0, 1] and step.experts[1].tolist() == [[299, 1], [2, 3]]
    assert step.experts[1].dtype == np.uint16 and capture.take() == []
    with pytest.raises(MoecapError, match="without token ids"):
        capture.begin(None, (), {"input_ids": None, "positions": torch.tensor([0])})


# --- Transformers' routers -------------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NARROW = {"moe_intermediate_size": 16}
SHARED = {**NARROW, "shared_expert_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
GROUPED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, **NARROW}
FAMILIES = {
    "mixtral": ({"num_local_experts": 8, "num_experts_per_tok": 2}, (0, 1, 2), "arguments"),
    "qwen2_moe": ({"num_experts": 6, "num_experts_per_tok": 3, **SHARED}, (0, 1, 2), "arguments"),
    "qwen3_moe": ({"num_experts": 8, "num_experts_per_tok": 4, "head_dim": 8, **NARROW}, (0, 1, 2), "arguments"),
    "olmoe": ({"num_experts": 8, "num_experts_per_tok": 2}, (0, 1, 2), "arguments"),
    "deepseek_v3": ({"num_experts_per_tok": 2, **GROUPED, **LATENT}, (1, 2), "arguments"),
    "gpt_oss": ({"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8}, (0, 1, 2), "arguments"),
    "llama4_text": (
        {"num_local_experts": 8, "num_experts_per_tok": 1, "intermediate_size_mlp": 16, "head_dim": 8},
        (0, 1, 2),
        "scores",
    ),
}


def tiny(family, dtype="float32", **more):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES.get(family, ({},))[0], **more})
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:  # spread the routers' choices: at its initial scale everything is nearly a tie
                parameter.normal_(std=0.15)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_routers_are_found_by_structure_and_padding_is_left_out(family):
    settings, layers, how = FAMILIES[family]
    model = tiny(family)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(3, 128, n).tolist() for n in (5, 17, 9, 1)]
    results = {}
    for label, options in {
        "alone": {"batch_tokens": 1},
        "right": {"padding": "right"},
        "left": {"padding": "left"},
    }.items():
        backend = TransformersBackend.of(model, **options)
        results[label] = dict(backend.routing(sequences))
        backend.close()
    assert backend.layers == layers and {site.how for site in backend.sites} == {how}
    assert backend.top_k == settings["num_experts_per_tok"]
    assert backend.n_experts == next(
        settings[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in settings
    )
    for index, tokens in enumerate(sequences):
        alone = results["alone"][index]
        assert alone.shape == (len(tokens), len(layers), backend.top_k)
        for side in ("right", "left"):
            np.testing.assert_array_equal(np.sort(results[side][index]), np.sort(alone))
    assert len(np.unique(np.concatenate([results["alone"][i].ravel() for i in range(4)]))) > 2


def test_ids_are_the_top_k_of_the_routers_own_logits():
    import torch

    model = tiny("mixtral")
    tokens = list(range(3, 40))
    backend = TransformersBackend.of(model)
    ids = dict(backend.routing([tokens]))[0]
    backend.close()
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]), output_router_logits=True).router_logits
    expected = torch.stack([layer.topk(2).indices for layer in logits], dim=1).numpy()
    np.testing.assert_array_equal(np.sort(ids), np.sort(expected))


def test_a_dense_model_has_no_routing():
    with pytest.raises(MoecapError, match="a dense model has no routing"):
        find_routers(tiny("llama").model)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=5))
def test_padding_round_trip(sequences):
    for side in ("left", "right"):
        token_ids, mask = pad(sequences, side)
        assert [token_ids[i][mask[i]].tolist() for i in range(len(sequences))] == sequences
        assert (mask[:, -1] if side == "left" else mask[:, 0]).all()


# --- the job ---------------------------------------------------------------------------------------------------------


def write_requests(path, sequences):
    rows = [(tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]) for tokens in sequences]
    write_parquet(
        pa.table(
            {
                "request": pa.array(range(len(rows)), pa.int32()),
                "sequence_sha256": [sequence_hash(tokens) for tokens in sequences],
                "prompt_token_ids": pa.array([prompt for prompt, _ in rows], pa.list_(pa.int32())),
                "output_token_ids": pa.array([output for _, output in rows], pa.list_(pa.int32())),
            }
        ),
        path,
    )
    return path


def job(tmp_path, sequences, fake, **more):
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "manifest.json").write_text(json.dumps({"files": {"a": more.pop("sha", "1")}}))
    return replay.run_job(
        {"engine": {"kind": "vllm", "device": "cpu"}, "backend": "fake", "engine_version": "1"},
        checkpoint=tmp_path / "model",
        requests=[write_requests(tmp_path / "requests.parquet", sequences)],
        output=tmp_path / "out" / "r.parquet",
        cache=tmp_path / "cache",
        **more,
    )


def test_job_writes_exactly_what_was_asked_for_and_remembers_the_rest(tmp_path, fake):
    first, second = some_sequences(6), some_sequences(3, seed=1)
    assert job(tmp_path, first, fake).replayed == 6
    report = job(tmp_path, second, fake)
    assert report.replayed == 3
    store = routing.read(tmp_path / "out" / "r.parquet")
    assert set(store) == set(map(sequence_hash, second))
    assert read_metadata(tmp_path / "out" / "r.parquet")["replay"]["replayed"] == 3
    (tmp_path / "out" / "r.parquet").unlink()
    fake.loads.clear()
    assert job(tmp_path, first + second, fake).replayed == 0 and fake.loads == []
    for tokens in first + second:
        np.testing.assert_array_equal(
            routing.read(tmp_path / "out" / "r.parquet").experts(sequence_hash(tokens)), expected_ids(tokens)
        )


def test_job_that_was_stopped_goes_on_from_its_last_part(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(replay, "replay", partial(replay.replay, part_tokens=1))  # one sequence per part
    sequences = some_sequences(8)
    fake.fail_after = 5
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, sequences, fake)
    assert not (tmp_path / "out").exists()
    fake.fail_after = None
    fake.seen.clear()
    assert job(tmp_path, sequences, fake).replayed == 3
    assert len(fake.seen) == 3


def test_job_replays_again_after_the_checkpoint_changed(tmp_path, fake):
    sequences = some_sequences(4)
    job(tmp_path, sequences, fake, sha="1")
    assert job(tmp_path, sequences, fake, sha="2").replayed == 4


def test_job_replaces_a_broken_part_of_its_cache(tmp_path, fake, caplog):
    sequences = some_sequences(4)
    job(tmp_path, sequences, fake)
    (part,) = (tmp_path / "cache").rglob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    assert job(tmp_path, sequences, fake).replayed == 4
    assert "replayed again" in caplog.text and part.exists()


def test_job_of_a_dense_model_replays_nothing(tmp_path, fake):
    class Dense:
        moe_layers = ()

    assert job(tmp_path, some_sequences(2), fake, anatomy=Dense()).replayed == 0
    assert fake.loads == [] and routing.read(tmp_path / "out" / "r.parquet").empty


def test_a_hash_that_names_another_sequence_is_an_error(tmp_path):
    path = write_requests(tmp_path / "r.parquet", [[1, 2, 3]])
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    position = table.schema.get_field_index("sequence_sha256")
    write_parquet(table.set_column(position, "sequence_sha256", pa.array(["0" * 64])), path)
    with pytest.raises(MoecapError, match=r"row 0: sequence_sha256 is 0000.*delete it"):
        replay.read_sequences([path])


@pytest.mark.parametrize(
    "kind, device, expected",
    [("vllm", "cpu", "vllm"), ("vllm", "cuda", "vllm-routed-experts"), ("transformers", "cpu", "transformers")],
)
def test_backend_of_an_engine(kind, device, expected):
    assert replay.backend_of(kind, device) == expected


# --- two backends, the same ids --------------------------------------------------------------------------------------

ARCHITECTURES = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 8, "num_experts_per_tok": 2, **SHARED},
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4, "head_dim": 32, **NARROW},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
}
WIDE = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128}


def router_logits(model, tokens):
    """(tokens, layers, experts), float32."""
    import torch

    with torch.inference_mode():
        output = model(torch.tensor([tokens]), output_router_logits=True)
    return torch.stack(output.router_logits, dim=1).float().numpy()


def unexplained(exact, rounded, sequences, ours, theirs):
    """Differences between two replays in bfloat16 that are neither a near tie nor follow from an earlier one.

    A near tie: in float32 (``exact``), the lowest chosen logit and the highest left-out one are no further apart than
    twice what bfloat16 (``rounded``) moves logits by, at most, in that layer. After a first difference the hidden
    states of this token, and of later ones through attention, differ in all layers above.

    Returns (differences, those unexplained).
    """
    logits = [router_logits(exact, tokens) for tokens in sequences]
    moved = [np.abs(router_logits(rounded, t) - values) for t, values in zip(sequences, logits, strict=True)]
    tolerance = 2 * np.max([m.max(axis=(0, 2)) for m in moved], axis=0)  # (layers,)
    differences = not_explained = 0
    for index, values in enumerate(logits):
        unequal = (np.sort(ours[index]) != np.sort(theirs[index])).any(axis=-1)  # (tokens, layers)
        ordered = -np.sort(-values, axis=-1)
        top_k = ours[index].shape[-1]
        near_tie = ordered[..., top_k - 1] - ordered[..., top_k] <= tolerance
        for token, layer in np.argwhere(unequal):
            differences += 1
            not_explained += not near_tie[token, layer] and not unequal[: token + 1, :layer].any()
    return differences, not_explained


@pytest.mark.engine
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_vllm_and_transformers_send_the_same_tokens_to_the_same_experts(family, tmp_path, monkeypatch):
    """Equal in float32, every id; in bfloat16, wherever the routers' logits are further apart than it rounds them."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    model = tiny(family, "bfloat16", **{**WIDE, **ARCHITECTURES[family]})
    model.save_pretrained(tmp_path)
    exact = copy.deepcopy(model).float()
    rng = np.random.default_rng(1)
    sequences = [rng.integers(3, 128, n).tolist() for n in [*rng.integers(1, 60, 30), 1, 200]]
    results = {}
    for name in ("transformers", "vllm"):
        for dtype in ("float32", "bfloat16"):
            backend = replay.BACKENDS[name](tmp_path, max_tokens=200, batch_tokens=512, dtype=dtype)
            assert backend.layers == (0, 1, 2)
            results[name, dtype] = dict(backend.routing(sequences))
            backend.close()
    for index in range(len(sequences)):
        np.testing.assert_array_equal(
            np.sort(results["vllm", "float32"][index]), np.sort(results["transformers", "float32"][index])
        )
    ours, theirs = results["vllm", "bfloat16"], results["transformers", "bfloat16"]
    differences, not_explained = unexplained(exact, model, sequences, ours, theirs)
    total = sum(map(len, sequences)) * 3
    print(f"{family}: {differences} of {total} token-layers differ in bfloat16, {not_explained} unexplained")
    assert not_explained == 0
    assert differences < 0.1 * total


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["vllm-cpu", "transformers"])
def test_job_with_the_catalogues_engine_options(engine, tmp_path, monkeypatch):
    """What a timed engine is loaded with must not collide with what the replay sets."""
    from moecap.documents import read_yaml

    entry = read_yaml("config/catalogue/engines.yaml")[engine]
    for key in entry["options"].get("env") or {}:
        monkeypatch.setenv(key, "")  # restored afterwards
    folder = tmp_path / "model"
    tiny("mixtral", "bfloat16", **{**WIDE, **ARCHITECTURES["mixtral"]}).save_pretrained(folder)
    (folder / "manifest.json").write_text(json.dumps({"files": {}}))
    sequences = some_sequences(6)
    report = replay.run_job(
        {"engine": entry, "engine_version": "1"},
        checkpoint=folder,
        requests=[write_requests(tmp_path / "requests.parquet", sequences)],
        output=tmp_path / "r.parquet",
        cache=tmp_path / "cache",
        threads=1,
    )
    assert report.replayed == 6
    store = routing.read(tmp_path / "r.parquet")
    assert (store.layers, store.top_k, store.n_experts) == ((0, 1, 2), 2, 8)
    assert {name: store.tokens(name) for name in store} == {sequence_hash(tokens): len(tokens) for tokens in sequences}


def save_int8(folder):
    """A tiny Qwen2-MoE in compressed-tensors' W8A8, made by hand: int8 weights and a scale per row."""
    import torch
    from safetensors.torch import load_file, save_file

    tiny("qwen2_moe", "bfloat16", **{**WIDE, **ARCHITECTURES["qwen2_moe"], "moe_intermediate_size": 128,
                                     "shared_expert_intermediate_size": 128}).save_pretrained(folder)  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {
        "targets": ["Linear"],
        "format": "int-quantized",
        "weights": weights,
        "input_activations": {**weights, "strategy": "token", "dynamic": True},
    }
    gates = [f"model.layers.{i}.mlp.{gate}" for i in range(3) for gate in ("gate", "shared_expert_gate")]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", *gates],
    }
    (folder / "config.json").write_text(json.dumps(config))
    stored = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if not module.endswith("_proj") or name == module:
            stored[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
        stored[name] = (tensor.float() / scale).round().to(torch.int8)
        stored[f"{name}_scale"] = scale.to(torch.bfloat16)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return stored


def test_an_int8_checkpoint_is_dequantized_to_what_it_stores(tmp_path):
    import torch

    from moecap.checkpoints.dequantize import load_causal_lm

    stored = save_int8(tmp_path)
    model = load_causal_lm(tmp_path, dtype=torch.float32)

    def expected(name):
        return stored[name].float() * stored[f"{name}_scale"].float()

    layer = model.model.layers[1]
    torch.testing.assert_close(
        layer.self_attn.o_proj.weight, expected("model.layers.1.self_attn.o_proj.weight"), rtol=0.01, atol=0.005
    )
    torch.testing.assert_close(
        layer.mlp.experts.down_proj[5], expected("model.layers.1.mlp.experts.5.down_proj.weight"), rtol=0.01, atol=0.005
    )


@pytest.mark.engine
def test_a_second_model_in_the_process_does_not_compute_with_the_weights_of_the_first(tmp_path, monkeypatch):
    """ZenDNN keeps packed int8 weights by address, beyond the life of the model."""
    pytest.importorskip("zentorch", reason="the cache is zentorch's")
    if "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("zentorch has no kernel for int8 experts on a CPU without AVX-512")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    save_int8(tmp_path)
    sequences = [[t + 3 for t in tokens] for tokens in some_sequences(12)]
    results = []
    for _ in range(3):
        backend = vllm_replay.VllmBackend(tmp_path, max_tokens=64, dtype="bfloat16", kv_cache_memory_bytes=2**28)
        results.append(dict(backend.routing(sequences)))
        backend.close()
    for later in results[1:]:
        for index in range(len(sequences)):
            np.testing.assert_array_equal(np.sort(later[index]), np.sort(results[0][index]))


def test_what_starts_a_server_is_not_handed_to_what_replays_it(tmp_path, fake):
    options = {"command": ["serve", "{port}"], "env": {"OMP_NUM_THREADS": "{threads}"}, "api": {"body": {}}}
    engine = {"kind": "server", "device": "cpu", "options": options}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text(json.dumps({"files": {"a": "1"}}))
    replay.run_job(
        {"engine": engine, "backend": "fake", "engine_version": "1"},
        checkpoint=tmp_path / "model",
        requests=[write_requests(tmp_path / "requests.parquet", some_sequences(2))],
        output=tmp_path / "r.parquet",
        cache=tmp_path / "cache",
    )
    assert not {"command", "env", "api"} & set(fake.loads[-1])
    assert replay.backend_of("server", "cpu") == replay.backend_of("remote", "remote") == "transformers"
