"""The routing store: which experts every token of every sequence was sent to, in each MoE layer.

Routing depends on the model, its precision and the tokens, not on batch, engine or hardware, so it is kept per
model × precision and looked up by the hash of the token ids. One row per sequence; the ids are small integers in C
order (tokens, MoE layers, top-k), written in a stream of row groups, so that neither writing nor reading an hour of a
60-layer, 256-expert model (464 bytes per token) needs more memory than a row group.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moecap.engines.tokens import expert_id_dtype
from moecap.errors import MoecapError
from moecap.io import METADATA_KEY, atomic_path

COLUMNS = ("sequence_sha256", "tokens", "layers", "top_k", "n_experts", "expert_ids")
ROW_GROUP_BYTES = 16 * 2**20
CACHE_BYTES = 256 * 2**20


def schema(n_experts: int) -> pa.Schema:
    """The columns of a routing file for a model with ``n_experts`` routed experts per layer."""

    def field(name: str, dtype: pa.DataType, meaning: str) -> pa.Field:
        return pa.field(name, dtype, nullable=False, metadata={"meaning": meaning})

    return pa.schema(
        [
            field("sequence_sha256", pa.string(), "sha256 of the sequence's token ids as little-endian int32"),
            field("tokens", pa.int32(), "length of the sequence: prompt and output"),
            field(
                "layers", pa.list_(pa.field("item", pa.int16(), nullable=False)), "index in the model of each MoE layer"
            ),
            field("top_k", pa.int16(), "experts per token"),
            field("n_experts", pa.int32(), "routed experts per MoE layer"),
            # Bytes, not a list of integers: Parquet decodes those one by one, seventeen times slower.
            field(
                "expert_ids",
                pa.binary(),
                f"expert ids, {expert_id_dtype(n_experts).name} little-endian, in C order (tokens, MoE layers, top-k); "
                "row p: the experts that computed token p as input",
            ),
        ]
    )


class RoutingWriter:
    """Writes routing to ``path`` as it comes; the file takes its name when the block ends without an error.

    A sequence that was added before is left out.

    >>> import tempfile
    >>> from moecap.engines.tokens import sequence_hash
    >>> tokens = [5, 6, 7]
    >>> ids = np.zeros((3, 2, 2), dtype=np.uint8)  # tokens, MoE layers, top-k
    >>> ids[..., 1] = 4  # every token went to the experts 0 and 4
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "routing.parquet"
    ...     with RoutingWriter(path, layers=[0, 1], top_k=2, n_experts=8) as writer:
    ...         writer.add(sequence_hash(tokens), ids)
    ...     read(path).layers
    (0, 1)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        layers: Sequence[int],
        top_k: int,
        n_experts: int,
        metadata: Mapping[str, Any] | None = None,
        row_group_bytes: int = ROW_GROUP_BYTES,
    ) -> None:
        if not 0 < top_k <= n_experts <= 65536:
            raise MoecapError(
                f"Cannot write {path}: top_k {top_k} of {n_experts} experts; allowed are 1 ≤ top_k ≤ experts ≤ 65536."
            )
        if not len(layers) or list(layers) != sorted(set(layers)):
            raise MoecapError(f"Cannot write {path}: MoE layers {list(layers)}; they must be ascending, and some.")
        self.path, self.layers, self.top_k, self.n_experts = Path(path), tuple(layers), top_k, n_experts
        self._schema = schema(n_experts)
        if metadata is not None:
            text = json.dumps(metadata, sort_keys=True, default=str)
            self._schema = self._schema.with_metadata({METADATA_KEY: text.encode()})
        self._row_group_bytes = row_group_bytes
        self._hashes: list[str] = []
        self._ids: list[np.ndarray] = []
        self._pending_bytes = 0
        self._seen: set[str] = set()

    def __enter__(self) -> RoutingWriter:
        self._stack = ExitStack()
        temporary = self._stack.enter_context(atomic_path(self.path))
        # Zstd's entropy coding packs ids of E experts into about log2(E) bits, and less where routing is skewed.
        self._file = self._stack.enter_context(
            pq.ParquetWriter(
                temporary,
                self._schema,
                compression="zstd",
                compression_level=1,
                write_statistics=False,
                use_dictionary=["layers.list.element", "top_k", "n_experts"],
            )
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            if exception[0] is None:
                self._flush()
        except BaseException:
            import sys

            self._stack.__exit__(*sys.exc_info())
            raise
        self._stack.__exit__(*exception)

    def __contains__(self, sequence_sha256: str) -> bool:
        return sequence_sha256 in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, sequence_sha256: str, expert_ids: np.ndarray) -> None:
        """Add one sequence.

        Args:
            sequence_sha256: :func:`sequence_hash` of its token ids.
            expert_ids: integers of shape (tokens, MoE layers, top-k).

        Raises:
            MoecapError: the shape does not fit, or an id is no expert's.
        """
        if sequence_sha256 in self._seen:
            return
        ids = np.asarray(expert_ids)
        if ids.ndim != 3 or ids.shape[1:] != (len(self.layers), self.top_k):
            raise MoecapError(
                f"Routing for {self.path} has shape {ids.shape}; expected (tokens, {len(self.layers)} MoE layers, "
                f"top-{self.top_k}). The checkpoint that was replayed is not the model that the file is for."
            )
        if ids.size and (ids.min() < 0 or ids.max() >= self.n_experts):
            raise MoecapError(
                f"Routing for {self.path} has expert ids {ids.min()} to {ids.max()}; the model has experts 0 to "
                f"{self.n_experts - 1}."
            )
        self._seen.add(sequence_sha256)
        self._hashes.append(sequence_sha256)
        self._ids.append(np.ascontiguousarray(ids, dtype=expert_id_dtype(self.n_experts)))
        self._pending_bytes += self._ids[-1].nbytes
        if self._pending_bytes >= self._row_group_bytes:
            self._flush()

    def _flush(self) -> None:
        rows = len(self._hashes)
        if not rows:
            return
        width = len(self.layers)
        offsets = np.cumsum([0, *(ids.nbytes for ids in self._ids)])
        if offsets[-1] >= 2**31:
            raise MoecapError(f"A sequence of {len(self._ids[-1])} tokens is too long for one row of {self.path}.")
        flat = np.concatenate([ids.ravel() for ids in self._ids])
        columns = [
            pa.array(self._hashes),
            pa.array([len(ids) for ids in self._ids], pa.int32()),
            pa.ListArray.from_arrays(
                pa.array(np.arange(rows + 1, dtype=np.int32) * width),
                pa.array(np.tile(np.array(self.layers, dtype=np.int16), rows)),
                type=self._schema.field("layers").type,
            ),
            pa.array(np.full(rows, self.top_k, dtype=np.int16)),
            pa.array(np.full(rows, self.n_experts, dtype=np.int32)),
            pa.Array.from_buffers(
                pa.binary(), rows, [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(flat.view(np.uint8))]
            ),
        ]
        self._file.write_table(pa.table(columns, schema=self._schema), row_group_size=rows)
        self._hashes, self._ids, self._pending_bytes = [], [], 0


class RoutingStore:
    """Routing read from one or several files of the same model and precision; row groups are loaded when asked for.

    Attributes:
        layers: index in the model of each MoE layer, ascending.
        top_k: experts per token.
        n_experts: routed experts per MoE layer.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], cache_bytes: int = CACHE_BYTES) -> None:
        if not paths:
            raise MoecapError("No routing file was given.")
        self.paths = tuple(Path(p) for p in paths)
        self._cache_limit = cache_bytes
        self._cache: OrderedDict[tuple[int, int], list[np.ndarray]] = OrderedDict()
        self._cached_bytes = 0
        self._where: dict[str, tuple[int, int, int]] = {}
        self._tokens: dict[str, int] = {}
        self._files: list[pq.ParquetFile] = []
        shape: tuple[tuple[int, ...], int, int] | None = None
        for number, path in enumerate(self.paths):
            file = _open(path)
            self._files.append(file)
            for group in range(file.num_row_groups):
                table = _read_group(file, path, group, list(COLUMNS[:-1]))
                shapes = table.select(["layers", "top_k", "n_experts"])
                for found in {
                    (tuple(row["layers"]), row["top_k"], row["n_experts"]) for row in _distinct(shapes).to_pylist()
                }:
                    if shape is not None and found != shape:
                        raise MoecapError(
                            f"{path} mixes models: {_describe(found)} beside {_describe(shape)}. It was left as it is; "
                            "delete it to have it made again."
                        )
                    shape = found
                names = table.column("sequence_sha256").to_pylist()
                for row, (name, tokens) in enumerate(zip(names, table.column("tokens").to_pylist(), strict=True)):
                    self._where.setdefault(name, (number, group, row))
                    self._tokens.setdefault(name, tokens)
        self.empty = shape is None
        self.layers, self.top_k, self.n_experts = shape if shape is not None else ((), 0, 0)

    def __contains__(self, sequence_sha256: object) -> bool:
        return sequence_sha256 in self._where

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[str]:
        """The hashes of the sequences, in the order in which they are stored."""
        return iter(self._where)

    @property
    def metadata(self) -> dict[str, Any]:
        """Provenance of the first file."""
        raw = (self._files[0].schema_arrow.metadata or {}).get(METADATA_KEY)
        return json.loads(raw) if raw else {}

    def tokens(self, sequence_sha256: str) -> int:
        """The length of a sequence, in tokens."""
        self._locate(sequence_sha256)
        return self._tokens[sequence_sha256]

    def experts(self, sequence_sha256: str) -> np.ndarray:
        """The expert ids of a sequence: (tokens, MoE layers, top-k), uint8 or uint16, read-only.

        Raises:
            MoecapError: the sequence was never replayed, or its row group cannot be read or does not fit the model.
        """
        number, group, row = self._locate(sequence_sha256)
        return self._group(number, group)[row]

    def items(self, hashes: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """(hash, expert ids) of ``hashes`` (default: all), in storage order, so that each row group is read once."""
        wanted = self._where if hashes is None else dict.fromkeys(hashes)
        for name in sorted(wanted, key=self._locate):
            yield name, self.experts(name)

    def check(self, layers: Sequence[int], n_experts: int, top_k: int) -> None:
        """Raise a :class:`MoecapError` unless the store is that of a model with these MoE layers, experts and top-k."""
        expected = (tuple(int(layer) for layer in layers), int(top_k), int(n_experts))
        found = (self.layers, self.top_k, self.n_experts)
        if not self.empty and found != expected:
            raise MoecapError(
                f"{self.paths[0]} holds the routing of another model: it has {_describe(found)}, the model's anatomy "
                f"has {_describe(expected)}. It was left as it is; delete it to have the sequences replayed."
            )

    def _locate(self, sequence_sha256: str) -> tuple[int, int, int]:
        try:
            return self._where[sequence_sha256]
        except KeyError:
            raise MoecapError(
                f"{self.paths[0]} has no sequence {sequence_sha256}; it has {len(self)} others. The timed run was "
                "repeated after the replay: run the replay again."
            ) from None

    def _group(self, number: int, group: int) -> list[np.ndarray]:
        key = (number, group)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        path = self.paths[number]
        table = _read_group(self._files[number], path, group, ["tokens", "expert_ids"]).combine_chunks()
        column = table.column("expert_ids").chunk(0)
        item = expert_id_dtype(self.n_experts)
        _, ends, data = column.buffers()
        offsets = np.frombuffer(ends, np.int32)[column.offset : column.offset + len(column) + 1] // item.itemsize
        flat = np.frombuffer(data, item, offsets[-1]) if offsets[-1] else np.empty(0, item)
        if flat.size and int(flat.max()) >= self.n_experts:
            raise MoecapError(
                f"{path} has expert id {int(flat.max())}; a model of {self.n_experts} experts has ids 0 to "
                f"{self.n_experts - 1}. It was left as it is; delete it to have the sequences replayed."
            )
        arrays = []
        for row, tokens in enumerate(table.column("tokens").to_numpy()):
            ids = flat[offsets[row] : offsets[row + 1]]
            if ids.size != tokens * len(self.layers) * self.top_k:
                raise MoecapError(
                    f"{path}, row group {group}, row {row} has {ids.size} expert ids; {tokens} tokens × "
                    f"{len(self.layers)} MoE layers × top-{self.top_k} make {tokens * len(self.layers) * self.top_k}. "
                    "It was left as it is; delete it to have the sequences replayed."
                )
            arrays.append(ids.reshape(tokens, len(self.layers), self.top_k))
        self._cache[key] = arrays
        self._cached_bytes += flat.nbytes
        while self._cached_bytes > self._cache_limit and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= sum(ids.nbytes for ids in dropped)
        return arrays


def read(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], anatomy_check: Any = None) -> RoutingStore:
    """Open a routing file (or several of the same model and precision).

    Args:
        path: the file, or files.
        anatomy_check: a :class:`moecap.model.structure.Anatomy` that the file must fit (MoE layers, experts, top-k).

    Raises:
        MoecapError: missing or truncated file, wrong columns, or routing that does not fit the anatomy; the file is
            kept. Expert ids are checked against the number of experts when their row group is loaded.
    """
    store = RoutingStore([path] if isinstance(path, (str, os.PathLike)) else list(path))
    if anatomy_check is not None:
        store.check(*anatomy_shape(anatomy_check))
    return store


def anatomy_shape(anatomy: Any) -> tuple[tuple[int, ...], int, int]:
    """(MoE layer indices, experts, top-k) of a :class:`moecap.model.structure.Anatomy`.

    Raises:
        MoecapError: its MoE layers differ in experts or top-k, which this store does not represent.
    """
    layers = tuple(index for index, kind in enumerate(anatomy.layer_kind) if anatomy.kinds[kind].experts > 0)
    shapes = {
        (anatomy.kinds[anatomy.layer_kind[i]].experts, anatomy.kinds[anatomy.layer_kind[i]].top_k) for i in layers
    }
    if len(shapes) != 1:
        raise MoecapError(
            f"{anatomy.model} has "
            + (f"MoE layers of different shape {sorted(shapes)} (experts, top-k)" if shapes else "no MoE layer")
            + "; a routing file holds one number of experts and one top-k."
        )
    experts, top_k = shapes.pop()
    return layers, experts, top_k


def _distinct(table: pa.Table) -> pa.Table:
    """The first row and every row that differs from the one before: the distinct shapes, cheaply."""
    keep = [0] if table.num_rows else []
    lists = table.column("layers").combine_chunks()
    flat, offsets = np.asarray(lists.values), np.asarray(lists.offsets)
    top_k, experts = table.column("top_k").to_numpy(), table.column("n_experts").to_numpy()
    widths = np.diff(offsets)
    if len(set(widths.tolist())) > 1:
        return table
    grid = flat[offsets[0] :].reshape(table.num_rows, -1) if table.num_rows else np.empty((0, 0))
    changed = (grid[1:] != grid[:-1]).any(axis=1) | (top_k[1:] != top_k[:-1]) | (experts[1:] != experts[:-1])
    return table.take(keep + (np.flatnonzero(changed) + 1).tolist())


def _describe(shape: tuple[tuple[int, ...], int, int]) -> str:
    layers, top_k, n_experts = shape
    return f"{len(layers)} MoE layers ({_ranges(layers)}), {n_experts} experts, top-{top_k}"


def _ranges(numbers: Sequence[int]) -> str:
    """``(0, 1, 2, 5)`` → ``0-2, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise MoecapError(f"{path} does not exist: no sequence was replayed for this model and precision.") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MoecapError(_broken(path, error)) from error
    missing = [c for c in COLUMNS if c not in file.schema_arrow.names]
    if missing:
        raise MoecapError(
            f"{path} is no routing file: it has no column {', '.join(missing)}; it has "
            f"{', '.join(file.schema_arrow.names)}. It was left as it is."
        )
    found = file.schema_arrow.field("expert_ids").type
    if found != pa.binary():
        raise MoecapError(
            f"{path}: the column expert_ids is {found}, not bytes; another version wrote it. It was left as it is; "
            "delete it to have the sequences replayed."
        )
    return file


def _read_group(file: pq.ParquetFile, path: Path, group: int, columns: list[str]) -> pa.Table:
    try:
        return file.read_row_group(group, columns=columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MoecapError(_broken(path, error)) from error


def _broken(path: Path, error: Exception) -> str:
    return (
        f"{path} is not a complete Parquet file ({str(error).splitlines()[0]}). It was left as it is; delete it to "
        "have the sequences replayed."
    )
