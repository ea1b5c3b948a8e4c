"""Predicted bytes of a decode step beside measured ones, layer by layer.

The prediction is :mod:`moecap.metrics.utilization`'s, from an :class:`~moecap.model.structure.Anatomy` and from the
experts that the step's routers chose; the measurement is :mod:`moecap.checks.measured_bytes`'s, which knows neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.checkpoints.dequantize import load_causal_lm
from moecap.checks.measured_bytes import Counted, decode_step, one_by_one
from moecap.columns.base import schema
from moecap.columns.checks import BYTES_CHECK
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.columns.performance import BYTES
from moecap.engines.transformers.replay import TransformersBackend
from moecap.errors import MoecapError
from moecap.io import read_json
from moecap.metrics.utilization import (
    complete_bytes,
    printed_activated_bytes,
    printed_kv_bytes,
    printed_model_bytes,
)
from moecap.model.reads import entries_read, per_cache
from moecap.model.structure import LAYER_COMPONENTS, Anatomy, Component

#: The total has to agree where weights are at least so many times the activations, and within this.
WEIGHTS_OVER_ACTIVATIONS = 50
TOTAL_ERROR = 0.005
WHOLE = "whole model"
#: What is measured of a checkpoint: it costs seconds for a small model.
BATCH_SIZES = (1, 4, 16, 64)
PROMPT_TOKENS = 32

SCHEMA = schema(
    "model precision layer batch_size context_tokens unique_experts mbu_bytes s_mbu_bytes s_mbu_complete_bytes "
    "measured_bytes predicted_weight_bytes measured_weight_bytes predicted_kv_bytes measured_kv_bytes "
    "predicted_activation_bytes measured_activation_bytes unfused_bytes total_error weights_over_activations "
    "mbu_overestimate",
    *(DEPLOYMENT, POINT, BYTES, BYTES_CHECK),
    about={"batch_size": {"label": "batch"}},
)


@dataclass(frozen=True)
class Step:
    """A measured decode step: what it read, and which experts its routers chose."""

    batch_size: int
    context_tokens: int
    counted: Counted
    experts: Mapping[int, np.ndarray]  # layer -> expert ids, shape (batch, top-k)


def check(
    model: Any,
    anatomy: Anatomy,
    batch_sizes: Sequence[int],
    *,
    prompt_tokens: int = 32,
    seed: int = 0,
    layers: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Measured and predicted bytes of one decode step per batch size: a row per layer, and one of the whole model.

    Args:
        model: a causal language model of Transformers; its experts are executed one by one from here on.
        anatomy: the same model, counted.
        batch_sizes: sequences of a step.
        prompt_tokens: length of the prompts: token ids drawn at random by ``seed``.
        layers: which; by default first, middle and last MoE layer.

    Raises:
        MoecapError: a model whose bytes cannot be measured, or an anatomy with other layers.
    """
    rows = []
    for step in measure(model, batch_sizes, prompt_tokens, seed):
        for layer in [*(watched_layers(anatomy) if layers is None else layers), None]:
            rows.append(compare(step, anatomy, layer))
    return rows


def check_checkpoint(
    checkpoint: str | os.PathLike[str],
    anatomy: Anatomy,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    prompt_tokens: int = PROMPT_TOKENS,
    seed: int = 0,
    threads: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """:func:`check` of a checkpoint, loaded on the CPU at the dtype that it is stored in.

    Raises:
        MoecapError: a quantized checkpoint, which Transformers would read dequantized; and as :func:`check`.
    """
    import torch

    if read_json(Path(checkpoint, "config.json")).get("quantization_config"):
        raise MoecapError(
            f"{checkpoint} is quantized, and Transformers would read dequantized weights: other bytes than an engine "
            "reads. Measure the bytes of the bf16 checkpoint."
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = load_causal_lm(checkpoint, **options)
        return check(model, anatomy, batch_sizes, prompt_tokens=prompt_tokens, seed=seed)
    finally:
        torch.set_num_threads(before)


def measure(
    model: Any,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    seed: int = 0,
    window: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Step]:
    """Measure one decode step per batch size, its routers read in that very step; ``window`` is opened around it."""
    import torch

    backend = TransformersBackend.of(one_by_one(model))
    generator = torch.Generator().manual_seed(seed)
    try:
        for batch_size in batch_sizes:
            shape = (batch_size, prompt_tokens + 1)
            tokens = torch.randint(model.config.get_text_config(decoder=True).vocab_size, shape, generator=generator)
            tokens = tokens.to(model.device)
            counted = decode_step(model, tokens[:, :-1], tokens[:, -1:], window)
            yield Step(batch_size, prompt_tokens + 1, counted, backend.latest())
    finally:
        backend.close()


def compare(step: Step, anatomy: Anatomy, layer: int | None) -> dict[str, Any]:
    """One row: what ``layer`` (None: the whole model) read, and what is predicted for it."""
    if sorted(step.experts) != list(anatomy.moe_layers):
        raise MoecapError(
            f"{anatomy.model} has MoE layers {list(anatomy.moe_layers)} by its anatomy, but experts were chosen in "
            f"layers {sorted(step.experts)}: the anatomy belongs to another model."
        )
    layers = anatomy.moe_layers if layer is None else [layer] if layer in anatomy.moe_layers else []
    unique = np.array([[len(np.unique(step.experts[i])) for i in layers]], dtype=np.float64)
    whole = layer is None
    part = anatomy if layer is None else one_layer(anatomy, layer)
    position = np.array([step.context_tokens - 1])
    context = step.batch_size * per_cache(part, lambda cache: entries_read(cache, position, 1))
    predicted = complete_bytes(
        part,
        tokens=[step.batch_size],
        requests=[step.batch_size if whole else 0],
        context_tokens=context,
        unique_experts=unique,
    )
    total = float(sum(value[0] for value in predicted.values()))
    kv, activations = float(predicted["kv"][0]), float(predicted["activations"][0])
    printed_kv = float(np.asarray(printed_kv_bytes(part, context))[0])
    where = None if whole else [layer]
    counted = step.counted
    weights, measured_kv = counted.weight_bytes(where), counted.of("kv_read", where)
    products = counted.of("products", where) + counted.of("kv_written", where)
    measured = weights + measured_kv + products
    mbu = printed_model_bytes(part) + printed_kv
    return {
        "model": anatomy.model,
        "precision": anatomy.precision,
        "layer": WHOLE if whole else str(layer),
        "batch_size": step.batch_size,
        "context_tokens": step.context_tokens,
        "unique_experts": float(unique.mean()) if unique.size else 0.0,
        "mbu_bytes": float(mbu),
        "s_mbu_bytes": float(np.asarray(printed_activated_bytes(part, unique))[0]) + printed_kv,
        "s_mbu_complete_bytes": total,
        "measured_bytes": float(measured),
        "predicted_weight_bytes": total - kv - activations,
        "measured_weight_bytes": float(weights),
        "predicted_kv_bytes": kv,
        "measured_kv_bytes": float(measured_kv),
        "predicted_activation_bytes": activations,
        "measured_activation_bytes": float(products),
        "unfused_bytes": float(counted.of("between", where)),
        "total_error": total / measured - 1,
        "weights_over_activations": weights / products,
        "mbu_overestimate": mbu / measured - 1,
    }


def watched_layers(anatomy: Anatomy) -> list[int]:
    """First, middle and last MoE layer."""
    moe = anatomy.moe_layers
    if not moe:
        raise MoecapError(f"{anatomy.model} has no MoE layer.")
    return sorted({moe[0], moe[len(moe) // 2], moe[-1]})


def one_layer(anatomy: Anatomy, layer: int) -> Anatomy:
    """The anatomy of a model that is nothing but ``layer``: no embedding, no head."""
    kind = replace(anatomy.layer_kinds[layer], count=1)
    components = {
        name: Component(kind.component_params(name), kind.component_bytes(name))
        if name in LAYER_COMPONENTS
        else Component()
        for name in anatomy.components
    }
    return replace(
        anatomy,
        components=components,
        kinds=(kind,),
        layer_kind=(0,),
        total_params=kind.params,
        active_params=kind.active_params,
        embedding_row_bytes=0,
        vocab_size=0,
        unread={},
    )


def disagreements(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the comparison does not hold: weights and KV differ, or the total where activations are small."""
    found = []
    for row in rows:
        where = f"{row['model']}, layer {row['layer']}, batch size {row['batch_size']}"
        for name in ("weight", "kv"):
            predicted, measured = row[f"predicted_{name}_bytes"], row[f"measured_{name}_bytes"]
            if predicted != measured:
                found.append(f"{where}: {name} bytes {predicted:,.0f} predicted, {measured:,.0f} measured")
        counts = row["weights_over_activations"] >= WEIGHTS_OVER_ACTIVATIONS
        if counts and abs(row["total_error"]) > TOTAL_ERROR:
            found.append(f"{where}: total {100 * row['total_error']:+.2f}% off")
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The rows as a table with units and meanings in its fields."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)
