"""The routing store: round trip, streaming, and named errors for what does not fit."""

from __future__ import annotations

import hashlib
import struct
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.engines.tokens import sequence_hash
from moecap.errors import MoecapError
from moecap.io import read_metadata, write_parquet
from moecap.routing import store as routing


def write(path, sequences, layers=(1, 3), top_k=2, n_experts=8, **options):
    with routing.RoutingWriter(path, layers=layers, top_k=top_k, n_experts=n_experts, **options) as writer:
        for name, ids in sequences.items():
            writer.add(name, ids)
    return path


def random_ids(rng, tokens, layers=2, top_k=2, n_experts=8):
    return rng.integers(0, n_experts, (tokens, layers, top_k))


def anatomy(layer_experts=(0, 8, 0, 8), top_k=2):
    kinds = tuple(SimpleNamespace(experts=e, top_k=top_k if e else 0) for e in dict.fromkeys(layer_experts))
    order = list(dict.fromkeys(layer_experts))
    return SimpleNamespace(model="toy", kinds=kinds, layer_kind=tuple(order.index(e) for e in layer_experts))


def test_sequence_hash_is_sha256_of_little_endian_int32():
    tokens = [0, 1, 151_000, -1]
    assert sequence_hash(tokens) == hashlib.sha256(struct.pack("<4i", *tokens)).hexdigest()
    assert sequence_hash(np.array(tokens, dtype=np.int64)) == sequence_hash(tokens)
    assert sequence_hash([1, 2]) != sequence_hash([2, 1])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=12),
    shape=st.sampled_from([(1, 1, 2), (2, 2, 8), (3, 4, 256), (2, 3, 257), (1, 2, 65536)]),
    row_group_bytes=st.sampled_from([1, 100, 10**6]),
)
def test_round_trip(tmp_path_factory, lengths, shape, row_group_bytes):
    layers, top_k, n_experts = shape
    rng = np.random.default_rng(len(lengths))
    sequences = {str(i): random_ids(rng, n, layers, top_k, n_experts) for i, n in enumerate(lengths)}
    path = tmp_path_factory.mktemp("routing") / "r.parquet"
    write(path, sequences, range(layers), top_k, n_experts, row_group_bytes=row_group_bytes)
    store = routing.read(path)
    assert list(store) == list(sequences)
    if sequences:
        assert (store.layers, store.top_k, store.n_experts) == (tuple(range(layers)), top_k, n_experts)
    for name in reversed(sequences):
        got = store.experts(name)
        assert got.dtype == (np.uint8 if n_experts <= 256 else np.uint16)
        np.testing.assert_array_equal(got, sequences[name])
        assert store.tokens(name) == len(sequences[name])


def test_row_groups_stream_and_are_read_when_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    sequences = {str(i): random_ids(rng, 50) for i in range(20)}  # 200 bytes each
    path = write(tmp_path / "r.parquet", sequences, row_group_bytes=1000, metadata={"seed": 1})
    assert pq.ParquetFile(path).num_row_groups == 4
    store = routing.RoutingStore([path], cache_bytes=1500)
    assert not store._cache
    store.experts("7")
    assert list(store._cache) == [(0, 1)]
    for name, ids in store.items(["19", "0", "7"]):
        np.testing.assert_array_equal(ids, sequences[name])
        assert len(store._cache) == 1
    assert [name for name, _ in store.items(["19", "0", "7"])] == ["0", "7", "19"]
    assert store.metadata == read_metadata(path) == {"seed": 1}


def test_several_files_and_repeated_sequences(tmp_path):
    rng = np.random.default_rng(0)
    a, b = random_ids(rng, 3), random_ids(rng, 4)
    one, two = write(tmp_path / "1.parquet", {"a": a}), write(tmp_path / "2.parquet", {"a": a, "b": b})
    store = routing.read([one, two])
    assert list(store) == ["a", "b"]
    np.testing.assert_array_equal(store.experts("b"), b)
    with routing.RoutingWriter(tmp_path / "3.parquet", layers=[1, 3], top_k=2, n_experts=8) as writer:
        writer.add("a", a)
        writer.add("a", a)
        assert "a" in writer and len(writer) == 1
    other = write(tmp_path / "4.parquet", {"c": random_ids(rng, 2, n_experts=4)}, n_experts=4)
    with pytest.raises(MoecapError, match=r"mixes models.*4 experts.*8 experts"):
        routing.read([one, other])


def test_nothing_half_written(tmp_path):
    path = tmp_path / "r.parquet"
    with pytest.raises(KeyError), routing.RoutingWriter(path, layers=[0], top_k=1, n_experts=2) as writer:
        writer.add("a", np.zeros((3, 1, 1), int))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "ids, message",
    [
        (np.zeros((3, 2), int), "shape"),
        (np.zeros((3, 1, 2), int), "shape"),
        (np.full((3, 2, 2), 8), "expert ids 8 to 8"),
        (np.full((3, 2, 2), -1), "expert ids -1"),
    ],
)
def test_writer_refuses_what_is_no_routing_of_the_model(tmp_path, ids, message):
    with pytest.raises(MoecapError, match=message):
        write(tmp_path / "r.parquet", {"a": ids})
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_impossible_shapes(tmp_path):
    with pytest.raises(MoecapError, match="top_k 9 of 8"):
        write(tmp_path / "r.parquet", {}, top_k=9)
    with pytest.raises(MoecapError, match="ascending"):
        write(tmp_path / "r.parquet", {}, layers=[3, 1])


def test_truncated_file_is_named_and_kept(tmp_path):
    path = write(tmp_path / "r.parquet", {"a": random_ids(np.random.default_rng(0), 500)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MoecapError, match=r"r\.parquet is not a complete Parquet file.*left as it is"):
        routing.read(path)
    assert path.read_bytes() == whole[: len(whole) // 2]
    with pytest.raises(MoecapError, match="does not exist"):
        routing.read(tmp_path / "none.parquet")


def test_damage_inside_a_row_group_is_an_error_on_reading_it(tmp_path):
    path = write(tmp_path / "r.parquet", {"a": random_ids(np.random.default_rng(0), 5000)})
    data = bytearray(path.read_bytes())
    offset = pq.ParquetFile(path).metadata.row_group(0).column(5).data_page_offset
    data[offset : offset + 200] = b"\xff" * 200
    path.write_bytes(data)
    store = routing.read(path)
    with pytest.raises(MoecapError, match="not a complete Parquet file"):
        store.experts("a")


def _rewrite(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(position), pa.array(values, table.schema.types[position]))
    write_parquet(table, path)


def test_ids_out_of_range_and_wrong_counts_are_errors(tmp_path):
    ids = random_ids(np.random.default_rng(0), 2)
    path = write(tmp_path / "r.parquet", {"a": ids})
    _rewrite(path, expert_ids=[bytes([8] * ids.size)])
    before = path.read_bytes()
    with pytest.raises(MoecapError, match="expert id 8; a model of 8 experts"):
        routing.read(path).experts("a")
    assert path.read_bytes() == before
    _rewrite(path, expert_ids=[bytes(ids.size - 1)])
    with pytest.raises(MoecapError, match="has 7 expert ids; 2 tokens × 2 MoE layers × top-2 make 8"):
        routing.read(path).experts("a")


def test_wrong_columns(tmp_path):
    write_parquet(pa.table({"x": [1]}), tmp_path / "r.parquet")
    with pytest.raises(MoecapError, match="no column sequence_sha256"):
        routing.read(tmp_path / "r.parquet")


def test_unknown_sequence(tmp_path):
    store = routing.read(write(tmp_path / "r.parquet", {"a": random_ids(np.random.default_rng(0), 2)}))
    assert "a" in store and "b" not in store
    with pytest.raises(MoecapError, match="has no sequence b"):
        store.experts("b")


def test_anatomy_check(tmp_path):
    path = write(tmp_path / "r.parquet", {"a": random_ids(np.random.default_rng(0), 2)})
    assert routing.read(path, anatomy()).top_k == 2
    for wrong in (anatomy((8, 8, 0, 0)), anatomy((0, 8, 0, 8), top_k=4), anatomy((0, 16, 0, 16))):
        with pytest.raises(MoecapError, match="another model"):
            routing.read(path, wrong)
    with pytest.raises(MoecapError, match="different shape"):
        routing.read(path, anatomy((0, 8, 0, 16)))
    with pytest.raises(MoecapError, match="no MoE layer"):
        routing.read(path, anatomy((0, 0)))
