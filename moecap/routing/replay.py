"""Routing by replay: one teacher-forced pass over recorded sequences that reads the router of every MoE layer.

The timed engine is never touched. Afterwards the same checkpoint sees each sequence (prompt and output) once, as a
prompt, and the ids of the experts that each token was sent to are read where the model itself applies them:

``vllm``
    vLLM in eager mode, many sequences in one step (:mod:`moecap.engines.vllm.replay`).
``vllm-routed-experts``
    vLLM's own ``enable_return_routed_experts``; it needs model runner V2, hence Triton, hence a GPU. Never run here.
``transformers``
    Forward hooks (:mod:`moecap.engines.transformers.replay`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moecap.engines.catalogue import SERVED
from moecap.engines.tokens import sequence_hash
from moecap.engines.transformers.replay import TransformersBackend
from moecap.engines.vllm.replay import OWN_ARGUMENTS, VllmBackend, VllmRoutedExpertsBackend
from moecap.errors import MoecapError, nearest
from moecap.io import read_parquet
from moecap.routing.store import RoutingStore, RoutingWriter, anatomy_shape

log = logging.getLogger(__name__)

# One file of the cache holds about this many tokens, so that a replay that is stopped loses no more than that.
PART_TOKENS = 2**21


class Backend(Protocol):
    """A loaded model whose routers can be read. ``routing`` yields (index of a sequence, expert ids), in any order."""

    name: str
    version: str
    layers: tuple[int, ...]
    top_k: int
    n_experts: int

    def routing(self, sequences: Sequence[Sequence[int] | np.ndarray]) -> Iterator[tuple[int, np.ndarray]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ReplayReport:
    """What a replay did. ``load_s`` and ``replay_s`` are wall time; null if nothing was left to replay."""

    sequences: int
    replayed: int
    tokens: int
    load_s: float | None = None
    replay_s: float | None = None
    backend: str | None = None
    version: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(
    checkpoint: str | os.PathLike[str],
    sequences: Iterable[Sequence[int] | np.ndarray],
    backend: str,
    writer: Callable[..., RoutingWriter],
    already: RoutingStore | None = None,
    *,
    part_tokens: int = PART_TOKENS,
    **options: Any,
) -> ReplayReport:
    """Replay the sequences that ``already`` lacks, each once, and write their routing.

    Args:
        checkpoint: the model's folder (or hub id).
        sequences: token ids, prompt and output, of each sequence.
        backend: "vllm", "vllm-routed-experts" or "transformers".
        writer: called as ``writer(layers=…, top_k=…, n_experts=…)`` for each part of about ``part_tokens`` tokens; a
            part is written atomically, so that a replay which is stopped goes on from there.
        already: routing that need not be made again.
        options: for the backend (:class:`VllmBackend`, :class:`TransformersBackend`).

    Raises:
        MoecapError: unknown backend, no router found, or a sequence whose routing could not be read.
    """
    if backend not in BACKENDS:
        raise MoecapError(f"Unknown replay backend {backend!r}. {nearest(backend, BACKENDS)}")
    unique = {sequence_hash(tokens): tokens for tokens in sequences}
    todo = {name: tokens for name, tokens in unique.items() if len(tokens) and (already is None or name not in already)}
    total = sum(map(len, todo.values()))
    log.info("%d sequences, %d to replay (%d tokens) with %s", len(unique), len(todo), total, backend)
    if not todo:
        return ReplayReport(len(unique), 0, 0)
    started = time.perf_counter()
    longest = max(map(len, todo.values()))
    with closing(BACKENDS[backend](checkpoint, max_tokens=longest, **options)) as model:
        load_s = time.perf_counter() - started
        started, done = time.perf_counter(), 0
        shape = {"layers": model.layers, "top_k": model.top_k, "n_experts": model.n_experts}
        if already is not None and not already.empty:
            already.check(model.layers, model.n_experts, model.top_k)
        for names in _parts(todo, part_tokens):
            with writer(**shape) as out:
                missing = set(names)
                for index, ids in model.routing([todo[name] for name in names]):
                    if len(ids) != len(todo[names[index]]):
                        raise MoecapError(
                            f"Replaying {checkpoint} with {model.name} gave {len(ids)} rows for a sequence of "
                            f"{len(todo[names[index]])} tokens."
                        )
                    out.add(names[index], ids)
                    missing.discard(names[index])
                    done += len(ids)
                if missing:
                    raise MoecapError(
                        f"Replaying {checkpoint} with {model.name}: {len(missing)} of {len(names)} sequences were not "
                        "seen whole by the model. Replay with the `transformers` backend instead."
                    )
            log.info("%d of %d tokens replayed, %.0f s", done, total, time.perf_counter() - started)
        replay_s = time.perf_counter() - started
        return ReplayReport(len(unique), len(todo), total, load_s, replay_s, model.name, model.version)


def _parts(todo: Mapping[str, Sequence[int] | np.ndarray], part_tokens: int) -> Iterator[list[str]]:
    """Names in parts of about ``part_tokens`` tokens, longest sequences first: padding then costs least."""
    part: list[str] = []
    tokens = 0
    for name in sorted(todo, key=lambda name: -len(todo[name])):
        part.append(name)
        tokens += len(todo[name])
        if tokens >= part_tokens:
            yield part
            part, tokens = [], 0
    if part:
        yield part


BACKENDS: dict[str, Callable[..., Backend]] = {
    "vllm": VllmBackend,
    "vllm-routed-experts": VllmRoutedExpertsBackend,
    "transformers": TransformersBackend,
}


# --- what the workflow asks for --------------------------------------------------------------------------------------


def backend_of(kind: str, device: str) -> str:
    """The backend that replays what an engine of this kind served; what is no vLLM is replayed with Transformers."""
    if kind == "vllm":
        return "vllm" if device == "cpu" else "vllm-routed-experts"
    return "transformers"


def run_job(
    replay_params: Mapping[str, Any],
    *,
    checkpoint: str | os.PathLike[str],
    requests: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    threads: int | None = None,
    anatomy: Any = None,
) -> ReplayReport:
    """Replay all sequences of some timed runs, keep what was replayed in ``cache``, and write those asked for.

    Args:
        replay_params: ``engine`` (catalogue entry: ``kind``, ``device``, ``options``), ``engine_version``, and
            optionally ``backend``, ``tensor_parallel``, ``pipeline_parallel``, ``trust_remote_code``.
        checkpoint: the folder.
        requests: ``requests.parquet`` of every deployment with this model and precision.
        output: the routing file.
        cache: folder that outlives the job; its parts hold what earlier replays of this very checkpoint found.
        anatomy: if given, what the routing must fit; without an MoE layer nothing is replayed.
    """
    engine = replay_params["engine"]
    # What a server is started with, or where an endpoint lies, is nothing that loads a model in this process.
    options = {} if engine["kind"] in SERVED else dict(engine.get("options") or {})
    os.environ.update({key: str(value) for key, value in (options.get("env") or {}).items()})
    if threads and engine.get("device") == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(threads)
    backend = replay_params.get("backend") or backend_of(engine["kind"], engine.get("device", "cpu"))
    sequences = read_sequences(requests)
    if anatomy is not None and not anatomy.moe_layers:
        with RoutingWriter(output, layers=[0], top_k=1, n_experts=1, metadata={"replay": None, "dense": True}):
            return ReplayReport(len(sequences), 0, 0)
    arguments: dict[str, Any] = {"trust_remote_code": bool(replay_params.get("trust_remote_code", False))}
    if backend == "transformers":
        arguments |= {k: v for k, v in options.items() if k not in ("env", "engine_args") and v is not None}
    else:
        arguments |= {k: v for k, v in (options.get("engine_args") or {}).items() if k not in OWN_ARGUMENTS}
        for key in ("tensor_parallel", "pipeline_parallel"):
            arguments[f"{key}_size"] = int(replay_params.get(key, 1))
    folder = Path(cache) / checkpoint_key(checkpoint, backend, replay_params.get("engine_version"))
    metadata = {"backend": backend, "engine_version": replay_params.get("engine_version")}

    def part(**shape: Any) -> RoutingWriter:
        return RoutingWriter(next_part(folder), metadata=metadata, **shape)

    report = replay(checkpoint, sequences.values(), backend, part, cached(folder), **arguments)
    store = cached(folder)
    if store is None:
        raise MoecapError(f"{', '.join(map(str, requests))}: no sequence to replay.")
    if anatomy is not None:
        store.check(*anatomy_shape(anatomy))
    gather(store, sequences, output, {**metadata, "replay": report.to_dict()})
    return report


def read_sequences(requests: Sequence[str | os.PathLike[str]]) -> dict[str, np.ndarray]:
    """The distinct sequences (hash → token ids, prompt and output) of some ``requests.parquet``.

    Raises:
        MoecapError: a file is broken, or a sequence is not the one that its hash names.
    """
    found: dict[str, np.ndarray] = {}
    for path in requests:
        table = read_parquet(path, ["sequence_sha256", "prompt_token_ids", "output_token_ids"])
        for batch in table.to_batches(max_chunksize=1024):
            names, prompts, outputs = (batch.column(i) for i in range(3))
            for row, name in enumerate(names.to_pylist()):
                if name in found:
                    continue
                tokens = np.concatenate([_row(prompts, row), _row(outputs, row)]).astype(np.int32)
                if sequence_hash(tokens) != name:
                    raise MoecapError(
                        f"{path}, row {row}: sequence_sha256 is {name}, but its token ids hash to "
                        f"{sequence_hash(tokens)}. The file was changed after the run; delete it to have the run "
                        "assembled again."
                    )
                found[name] = tokens
    return found


def _row(lists: Any, row: int) -> np.ndarray:
    return lists[row].values.to_numpy(zero_copy_only=False)


# --- the cache -------------------------------------------------------------------------------------------------------


def checkpoint_key(checkpoint: str | os.PathLike[str], *more: object) -> str:
    """What routing depends on, as a short hash: the checkpoint's files, and ``more`` (backend and its version).

    The manifest's checksums are taken where there is one (``manifest.json``: files → sha256); else names, sizes and
    modification times.
    """
    import hashlib
    import json

    folder = Path(checkpoint)
    manifest = folder / "manifest.json"
    if manifest.is_file():
        known: Any = json.loads(manifest.read_text()).get("files", manifest.read_text())
    elif folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".bin"))
        known = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    else:
        known = str(checkpoint)
    text = json.dumps([known, [str(item) for item in more]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(folder: str | os.PathLike[str]) -> RoutingStore | None:
    """Routing that earlier replays left in a folder, or None. A part that cannot be read is left out and named."""
    parts = []
    for path in sorted(Path(folder).glob("part-*.parquet")):
        try:
            for _ in RoutingStore([path]).items():  # reads every row group: damage shows now, not when it is too late
                pass
            parts.append(path)
        except MoecapError as error:
            log.warning("%s Its sequences are replayed again.", error)
    return RoutingStore(parts) if parts else None


def next_part(folder: str | os.PathLike[str]) -> Path:
    """The path of the next part of a cache."""
    numbers = [int(path.stem.split("-")[1]) for path in Path(folder).glob("part-*.parquet")]
    return Path(folder) / f"part-{max(numbers, default=-1) + 1:05d}.parquet"


def gather(store: RoutingStore, names: Iterable[str], path: str | os.PathLike[str], metadata: Any) -> None:
    """Write the routing of ``names`` from ``store`` into one file, in a stream, in the order of their storage."""
    with RoutingWriter(
        path, layers=store.layers, top_k=store.top_k, n_experts=store.n_experts, metadata=metadata
    ) as out:
        for name, ids in store.items(names):
            out.add(name, ids)
