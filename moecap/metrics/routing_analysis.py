"""How a model routes: how often each expert is used, how even the load is, how many experts a step touches.

Three tables, one file (:data:`ANALYSIS_SCHEMA`; the column ``table`` says which):

- ``expert``: activation frequency of each expert in each MoE layer, over the distinct sequences of a dataset;
- ``layer``: load imbalance of each MoE layer: max/mean, Gini coefficient, entropy;
- ``step``: unique experts per step against the tokens in the step, beside what uniform routing would give,
  ``E · (1 - (1 - k/E)^n)``: the difference is what the router's preferences, and correlated tokens, are worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.errors import MoecapError

if TYPE_CHECKING:
    from moecap.metrics.steps import Routing
    from moecap.model.structure import Anatomy

# Tokens per step are told apart up to here; above, bins widen by a quarter each.
EXACT_TOKENS = 64


def _field(name: str, dtype: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, dtype, metadata={"unit": unit, "meaning": meaning})


ANALYSIS_SCHEMA = pa.schema(
    [
        _field("table", pa.string(), "", "expert, layer or step"),
        _field("dataset", pa.string(), "", "dataset"),
        _field("layer", pa.int32(), "", "index in the model of the MoE layer"),
        _field("experts", pa.int32(), "1", "routed experts of the layer, E"),
        _field("top_k", pa.int32(), "1", "experts per token, k"),
        _field("tokens", pa.float64(), "1", "tokens counted (expert, layer); mean tokens per step, n (step)"),
        _field("expert", pa.int32(), "", "expert"),
        _field("activations", pa.int64(), "1", "tokens that were sent to the expert"),
        _field("frequency", pa.float64(), "1", "activations / tokens: the share of tokens that chose the expert"),
        _field("load", pa.float64(), "1", "frequency over k/E: 1 were the load even"),
        _field("load_max_over_mean", pa.float64(), "1", "busiest expert over the mean"),
        _field("load_gini", pa.float64(), "1", "Gini coefficient of the load: 0 even, towards 1 all on one expert"),
        _field("load_entropy_bits", pa.float64(), "bit", "entropy of the load; log2(E) when even"),
        _field("load_entropy_share", pa.float64(), "1", "entropy over log2(E)"),
        _field("unused_experts", pa.int32(), "1", "experts that no token was sent to"),
        _field("steps", pa.int64(), "1", "steps with about so many tokens"),
        _field("unique_experts", pa.float64(), "1", "mean distinct experts per step"),
        _field("unique_experts_uniform", pa.float64(), "1", "E · (1 - (1 - k/E)^n), mean over the same steps"),
    ]
)


def expected_unique(tokens: Any, experts: Any, top_k: Any) -> np.ndarray:
    """Distinct experts that ``tokens`` tokens touch if each picks ``top_k`` of ``experts`` uniformly,
    independently: E·(1 − (1 − k/E)^n). Numbers, or arrays that go together.

    >>> expected_unique([1, 4, 64], experts=8, top_k=2).round(3).tolist()
    [2.0, 5.469, 8.0]
    """
    if not np.all((np.asarray(top_k) > 0) & (np.asarray(top_k) <= experts)):
        raise MoecapError(f"top_k is {top_k} of {experts} experts; allowed are 1 to {experts}.")
    return experts * (1.0 - (1.0 - top_k / experts) ** np.asarray(tokens, dtype=np.float64))


def activation_counts(ids: Iterable[np.ndarray], layers: int, experts: int) -> tuple[np.ndarray, int]:
    """How often each expert was chosen.

    Args:
        ids: per sequence, expert ids of shape (tokens, layers, top-k).
        layers, experts: MoE layers, routed experts per layer.

    Returns:
        Counts of shape (layers, experts), and the number of tokens.
    """
    counts = np.zeros(layers * experts, dtype=np.int64)
    offset = np.arange(layers, dtype=np.intp)[:, None] * experts
    tokens = 0
    for sequence in ids:
        for begin in range(0, len(sequence), 4096):
            part = sequence[begin : begin + 4096]
            counts += np.bincount((part + offset).ravel(), minlength=len(counts))
        tokens += len(sequence)
    return counts.reshape(layers, experts), tokens


def load_imbalance(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Imbalance of loads along the last axis: ``max_over_mean``, ``gini``, ``entropy_bits``, ``entropy_share``.

    Args:
        counts: non-negative, shape (..., experts), not all zero along the last axis.

    >>> {k: float(v) for k, v in load_imbalance(np.array([5, 5, 5, 5])).items()}
    {'max_over_mean': 1.0, 'gini': 0.0, 'entropy_bits': 2.0, 'entropy_share': 1.0}
    >>> {k: float(v) for k, v in load_imbalance(np.array([0, 0, 0, 20])).items()}
    {'max_over_mean': 4.0, 'gini': 0.75, 'entropy_bits': 0.0, 'entropy_share': 0.0}
    """
    counts = np.asarray(counts, dtype=np.float64)
    experts, total = counts.shape[-1], counts.sum(axis=-1)
    rank = np.arange(1, experts + 1)
    gini = ((2 * rank - experts - 1) * np.sort(counts, axis=-1)).sum(axis=-1) / (experts * total)
    share = counts / total[..., None]
    entropy = -np.sum(share * np.log2(share, where=share > 0, out=np.zeros_like(share)), axis=-1) + 0.0
    return {
        "max_over_mean": counts.max(axis=-1) / (total / experts),
        "gini": gini,
        "entropy_bits": entropy,
        "entropy_share": entropy / np.log2(experts) if experts > 1 else np.ones_like(entropy),
    }


def unique_against_tokens(tokens: np.ndarray, unique: np.ndarray, experts: int, top_k: int) -> dict[str, np.ndarray]:
    """Unique experts against the tokens in a step, in bins of equal or (above 64) similar token numbers.

    Args:
        tokens: per step, shape (steps,).
        unique: distinct experts per step and layer, shape (steps, layers).
        experts, top_k: E and k of the closed form.

    Returns:
        ``tokens`` (mean of the bin), ``steps``, ``unique_experts_uniform``: shape (bins,); ``unique_experts``: shape
        (bins, layers).
    """
    bins = np.where(
        tokens <= EXACT_TOKENS,
        tokens,
        EXACT_TOKENS + np.ceil(np.log(np.maximum(tokens, 1) / EXACT_TOKENS) / np.log(1.25)),
    ).astype(np.int64)
    _, index, steps = np.unique(bins, return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")
    starts = np.concatenate(([0], np.cumsum(steps)[:-1]))

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.add.reduceat(values[order], starts, axis=0, dtype=np.float64)
        return total / (steps if values.ndim == 1 else steps[:, None])

    return {
        "tokens": mean(tokens),
        "steps": steps,
        "unique_experts_uniform": mean(expected_unique(tokens, experts, top_k)),
        "unique_experts": mean(unique),
    }


def analysis_table(
    routing: Routing | None, requests: pa.Table, steps: Iterable[pa.Table], anatomy: Anatomy
) -> pa.Table:
    """The routing analysis of a deployment.

    Args:
        routing: expert ids by sequence; None for a dense model.
        requests: says which sequences belong to which dataset; each distinct sequence is counted once.
        steps: the step table, in parts.
        anatomy: the model.

    Returns:
        A table of ``ANALYSIS_SCHEMA``; no rows for a dense model.
    """
    rows: list[dict[str, Any]] = []
    if anatomy.moe_layers and routing is not None:
        rows += _loads(routing, requests, anatomy)
        rows += _steps(steps, anatomy)
    return pa.Table.from_pylist(rows, schema=ANALYSIS_SCHEMA)


def _loads(routing: Routing, requests: pa.Table, anatomy: Anatomy) -> Iterable[dict[str, Any]]:
    names: dict[str, dict[str, None]] = {}
    columns = (requests.column(c).to_pylist() for c in ("dataset", "sequence_sha256"))
    for dataset, name in zip(*columns, strict=True):
        names.setdefault(dataset, {})[name] = None
    for dataset, sequences in names.items():
        # A real store gives sequences in the order of its file, so that each row group is read once.
        items = getattr(routing, "items", None)
        arrays = (ids for _, ids in items(sequences)) if items else (routing.experts(name) for name in sequences)
        counts, tokens = activation_counts(arrays, len(anatomy.moe_layers), anatomy.experts)
        if not tokens:
            continue
        for index, layer in enumerate(anatomy.moe_layers):
            kind = anatomy.layer_kinds[layer]
            load = counts[index, : kind.experts]
            base = {
                "dataset": dataset,
                "layer": layer,
                "experts": kind.experts,
                "top_k": kind.top_k,
                "tokens": float(tokens),
            }
            imbalance = {f"load_{name}": float(value) for name, value in load_imbalance(load).items()}
            yield {"table": "layer", **base, **imbalance, "unused_experts": int((load == 0).sum())}
            even = tokens * kind.top_k / kind.experts
            for expert, count in enumerate(load.tolist()):
                chosen = {"activations": count, "frequency": count / tokens, "load": count / even}
                yield {"table": "expert", **base, "expert": expert, **chosen}


def _steps(steps: Iterable[pa.Table], anatomy: Anatomy) -> Iterable[dict[str, Any]]:
    layers = len(anatomy.moe_layers)
    gathered: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for part in steps:
        for dataset in part.column("dataset").unique().to_pylist():
            mask = pc.equal(part.column("dataset"), dataset)
            own = part if pc.all(mask).as_py() else part.filter(mask)
            unique = own.column("unique_experts").combine_chunks().flatten().to_numpy().reshape(-1, layers)
            gathered.setdefault(dataset, []).append((own.column("routed_tokens").to_numpy(), unique))
    for dataset, parts in gathered.items():
        tokens = np.concatenate([t for t, _ in parts])
        unique = np.concatenate([u for _, u in parts])
        by_shape: Mapping[tuple[int, int], dict[str, np.ndarray]] = {
            shape: unique_against_tokens(tokens, unique, *shape)
            for shape in {(anatomy.layer_kinds[i].experts, anatomy.layer_kinds[i].top_k) for i in anatomy.moe_layers}
        }
        for index, layer in enumerate(anatomy.moe_layers):
            kind = anatomy.layer_kinds[layer]
            found = by_shape[kind.experts, kind.top_k]
            for row in range(len(found["steps"])):
                yield {
                    "table": "step",
                    "dataset": dataset,
                    "layer": layer,
                    "experts": kind.experts,
                    "top_k": kind.top_k,
                    "tokens": float(found["tokens"][row]),
                    "steps": int(found["steps"][row]),
                    "unique_experts": float(found["unique_experts"][row, index]),
                    "unique_experts_uniform": float(found["unique_experts_uniform"][row]),
                }
