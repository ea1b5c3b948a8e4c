"""What kept traces say of drift, placements and drafts: rows, from the files of a results folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moecap.errors import MoecapError
from moecap.io import read_json, read_parquet
from moecap.model.structure import Anatomy
from moecap.paths import Paths, fill
from moecap.routing import placement, speculation
from moecap.routing.drift import drift, pairs
from moecap.routing.store import RoutingStore, read

Row = dict[str, Any]
REQUEST_COLUMNS = ["dataset", "batch_size", "repeat", "sequence_sha256", "prompt_token_ids", "output_token_ids"]
#: Against which other precisions are held, where it is there.
BASE = "bf16"


@dataclass(frozen=True)
class Traces:
    """A results folder: which deployments it has, and their traces.

    Attributes:
        results: the folder.
        rows: of its CAP table: ``deployment``, ``model``, ``precision``, ``dataset``, ``accuracy``.
    """

    results: Path
    rows: Sequence[Row]

    @classmethod
    def of(cls, results: str | Path) -> Traces:
        """The traces of a folder.

        Raises:
            MoecapError: it has no CAP table.
        """
        cap = read_parquet(Paths(str(results)).cap, ["deployment", "model", "precision", "dataset", "accuracy"])
        return cls(Path(results), cap.to_pylist())

    @cached_property
    def deployments(self) -> dict[str, tuple[str, str]]:
        """Model and precision of every deployment whose routing was traced."""
        found = {row["deployment"]: (row["model"], row["precision"]) for row in self.rows}
        return {name: variant for name, variant in found.items() if Path(self._routing(*variant)).exists()}

    def requests(self, deployment: str) -> dict[str, list[Row]]:
        """The requests of a deployment's timed runs, by dataset."""
        table = read_parquet(fill(Paths(str(self.results)).requests, deployment=deployment), REQUEST_COLUMNS)
        found: dict[str, list[Row]] = {}
        for row in table.to_pylist():
            found.setdefault(row["dataset"], []).append(row)
        return found

    def store(self, model: str, precision: str) -> RoutingStore:
        return read(self._routing(model, precision))

    def anatomy(self, model: str, precision: str) -> Anatomy:
        path = fill(Paths(str(self.results)).anatomy, model=model, precision=precision)
        return Anatomy.from_json(read_json(path))

    def accuracy(self, model: str, precision: str, dataset: str) -> float | None:
        """The first one that the CAP table has."""
        wanted = (model, precision, dataset)
        found = (r["accuracy"] for r in self.rows if (r["model"], r["precision"], r["dataset"]) == wanted)
        return next((value for value in found if value is not None), None)

    def _routing(self, model: str, precision: str) -> str:
        return fill(Paths(str(self.results)).routing, model=model, precision=precision)

    def by_variant(self) -> dict[tuple[str, str], list[str]]:
        """Deployments of each model and precision."""
        found: dict[tuple[str, str], list[str]] = {}
        for name, variant in self.deployments.items():
            found.setdefault(variant, []).append(name)
        return found


def drift_rows(traces: Traces) -> Iterator[Row]:
    """Routing drift between the precisions of each model, per dataset, beside the accuracy that they have."""
    variants = traces.by_variant()
    for model in dict.fromkeys(m for m, _ in variants):
        precisions = [p for m, p in variants if m == model]
        base = BASE if BASE in precisions else precisions[0]
        first = _all_requests(traces, variants[model, base])
        for precision in precisions:
            second = _all_requests(traces, variants[model, precision]) if precision != base else {}
            for dataset in (d for d in first if d in second):
                stores = traces.store(model, base), traces.store(model, precision)
                found = drift(*stores, pairs(first[dataset], second[dataset]))
                if found is None:
                    continue
                yield {
                    "model": model,
                    "dataset": dataset,
                    "precision": precision,
                    "against": base,
                    "sequences": found.sequences,
                    "tokens": found.tokens,
                    "choices_changed": found.choices_changed,
                    "sets_changed": found.sets_changed,
                    "accuracy": traces.accuracy(model, precision, dataset),
                    "accuracy_against": traces.accuracy(model, base, dataset),
                }


def _all_requests(traces: Traces, deployments: Sequence[str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for name in deployments:
        for dataset, rows in traces.requests(name).items():
            found.setdefault(dataset, []).extend(rows)
    return found


def rank_rows(
    traces: Traces, ranks: int, redundant: int = 0, own: Sequence[Sequence[int]] | None = None
) -> Iterator[Row]:
    """The busiest rank of a decode step under each placement, mean over MoE layers.

    Requests of a batch are taken to decode in lockstep, as a batch that is submitted together does. The balanced
    placement is made from the loads of the same traces: the best that a balancer could know.

    Args:
        own: experts of each rank, the same in every layer, beside the two that are made here.
    """
    for deployment, (model, precision) in traces.deployments.items():
        store, anatomy = traces.store(model, precision), traces.anatomy(model, precision)
        sizes = _expert_bytes(anatomy)
        for dataset, batch_size, counts in _steps(traces, deployment, store):
            load = counts.sum(axis=0)  # (layers, experts)
            layers = range(len(store.layers))
            placements = {
                "linear": [placement.linear(store.n_experts, ranks) for _ in layers],
                "balanced": [placement.replicated(load[i], ranks, redundant) for i in layers],
            }
            if own is not None:
                given = placement.Placement(tuple(map(tuple, own)), store.n_experts)
                placements["own"] = [given for _ in layers]
            for name, placed in placements.items():
                found = [placement.busiest(placed[i], counts[:, i]) for i in layers]
                read = sum(f.experts * size for f, size in zip(found, sizes, strict=True))
                even = sum(f.experts_even * size for f, size in zip(found, sizes, strict=True))
                yield {
                    "deployment": deployment,
                    "dataset": dataset,
                    "batch_size": batch_size,
                    "ranks": ranks if name != "own" else len(own or ()),
                    "placement": name,
                    "steps": len(counts),
                    "tokens_busiest": float(np.mean([f.tokens for f in found])),
                    "tokens_even": float(np.mean([f.tokens_even for f in found])),
                    "bytes_busiest": read,
                    "bytes_even": even,
                    "waiting": 1 - even / read if read else 0.0,
                }


def _steps(traces: Traces, deployment: str, store: RoutingStore) -> Iterator[tuple[str, int, np.ndarray]]:
    """Per dataset and batch size: tokens per expert, of shape (decode steps, layers, experts)."""
    for dataset, rows in traces.requests(deployment).items():
        batches: dict[tuple[int, int], list[np.ndarray]] = {}
        for row in rows:
            ids = store.experts(row["sequence_sha256"])[len(row["prompt_token_ids"]) : -1]
            batches.setdefault((row["batch_size"], row["repeat"]), []).append(ids)
        by_size: dict[int, list[np.ndarray]] = {}
        for (size, _), decoded in batches.items():
            for begin in range(0, len(decoded), size):  # waves of a repeat follow each other
                if counts := _lockstep(decoded[begin : begin + size], store.n_experts):
                    by_size.setdefault(size, []).append(np.stack(counts, axis=1))
        for size, parts in sorted(by_size.items()):
            yield dataset, size, np.concatenate(parts)


def _lockstep(decoded: Sequence[np.ndarray], experts: int) -> list[np.ndarray]:
    """Tokens per expert and step for each layer, of sequences that decode side by side; none where nothing decodes."""
    longest = max((len(ids) for ids in decoded), default=0)
    if not longest:
        return []
    layers, top_k = decoded[0].shape[1:]
    laid = np.full((longest, layers, len(decoded), top_k), -1, dtype=np.int64)
    for number, ids in enumerate(decoded):
        laid[: len(ids), :, number] = ids
    return [placement.expert_counts(laid[:, i], experts) for i in range(layers)]


def draft_rows(traces: Traces, acceptance: float, deepest: int = 7) -> Iterator[Row]:
    """Bytes of weights per yielded token with drafts of each depth, at batch size 1, the drafter not counted."""
    if not 0 <= acceptance <= 1:
        raise MoecapError(f"acceptance is {acceptance}; a probability is from 0 to 1.")
    for deployment, (model, precision) in traces.deployments.items():
        store, anatomy = traces.store(model, precision), traces.anatomy(model, precision)
        sizes = _expert_bytes(anatomy)
        fixed = _fixed_bytes(anatomy)
        for dataset, rows in traces.requests(deployment).items():
            lengths: Mapping[str, int] = {r["sequence_sha256"]: len(r["prompt_token_ids"]) for r in rows}
            decoded = (store.experts(name)[length:-1] for name, length in lengths.items())
            union = speculation.mean_unions(decoded, range(deepest + 1))
            found = speculation.depths(union, sizes, fixed, acceptance)
            for depth in sorted(found, key=lambda d: d.depth):
                yield {
                    "deployment": deployment,
                    "dataset": dataset,
                    "depth": depth.depth,
                    "experts_per_step": depth.experts,
                    "tokens_per_step": depth.tokens,
                    "weight_bytes_per_token": depth.bytes_per_token,
                    "best": depth == found[0],
                }


def _expert_bytes(anatomy: Anatomy) -> list[float]:
    return [float(anatomy.layer_kinds[i].expert_bytes) for i in anatomy.moe_layers]


def _fixed_bytes(anatomy: Anatomy) -> float:
    """What a step reads of the weights whatever the routing: all but routed experts and the rows of the embedding."""
    read = anatomy.weight_bytes - anatomy.components["routed_experts"].bytes
    return float(read if anatomy.tied_embeddings else read - anatomy.components["embedding"].bytes)
