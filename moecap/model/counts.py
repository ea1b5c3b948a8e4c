"""Structures that were read once and are kept, so that a model of the catalogue is counted without building it.

One JSON file per config in ``config/catalogue/counts/``, named by the hash of the config: another config has no file,
so it is built. Layers that are alike are kept once. ``python scripts/model_counts.py`` writes them; a test builds some
anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from moecap.model.layouts import Matrix
from moecap.model.skeleton import Layer, Memory, Part, Skeleton
from moecap.model.structure import Cache
from moecap.paths import catalogue_layers

#: Raised when what a skeleton says of a config changes, so that older files are not read.
VERSION = 1


def key_of(config: Mapping[str, Any]) -> str:
    """The hash by which a config's structure is kept."""
    text = json.dumps([VERSION, config], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept_skeleton(config: Mapping[str, Any]) -> Skeleton | None:
    """The structure that is kept of a config, None if none is."""
    for folder in reversed(catalogue_layers()):
        path = folder / "counts" / f"{key_of(config)}.json"
        if path.exists():
            return from_plain(json.loads(path.read_text(encoding="utf-8")), config)
    return None


def to_plain(found: Skeleton, model: str) -> dict[str, Any]:
    """A structure as JSON data; transformers' renamings, which only a checkpoint needs, are left out."""
    groups: dict[int | None, list[Part]] = {}
    for part in found.parts:
        groups.setdefault(part.layer, []).append(part)
    templates: list[dict[str, Any]] = []
    order: list[int] = []
    for number, layer in enumerate(found.layers):
        template = {
            "prefix": layer.prefix.rpartition(".")[0],
            "layer": _layer(layer),
            "parts": [_part(part, layer.prefix) for part in groups.get(number, [])],
        }
        if template not in templates:
            templates.append(template)
        order.append(templates.index(template))
    named = ("tied_embeddings", "hidden_size", "vocab_size", "dtype", "state_dtype", "extra_layers", "notes")
    return {
        "model": model,
        **{name: getattr(found, name) for name in named},
        "outside": [_part(part, "") for part in groups.get(None, [])],
        "templates": templates,
        "order": order,
        "numbers": [int(layer.prefix.rpartition(".")[2]) for layer in found.layers],
    }


def from_plain(data: Mapping[str, Any], config: Mapping[str, Any]) -> Skeleton:
    """The structure that :func:`to_plain` wrote; how the weights are quantized is the config's own word."""
    parts = [_to_part(part, "", None) for part in data["outside"]]
    layers: list[Layer] = []
    for number, (index, own) in enumerate(zip(data["order"], data["numbers"], strict=True)):
        template = data["templates"][index]
        prefix = f"{template['prefix']}.{own}"
        parts += [_to_part(part, prefix, number) for part in template["parts"]]
        stated = dict(template["layer"])
        memory = dict(stated.pop("memory", {}))
        caches = tuple(Cache(**cache) for cache in memory.pop("caches", ()))
        layers.append(Layer(prefix=prefix, memory=Memory(caches=caches, **memory), **stated))
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, Mapping) else None
    return Skeleton(
        parts=tuple(parts),
        layers=tuple(layers),
        tied_embeddings=data["tied_embeddings"],
        hidden_size=data["hidden_size"],
        vocab_size=data["vocab_size"],
        dtype=data["dtype"],
        state_dtype=data["state_dtype"],
        quantization=config.get("quantization_config") or nested,
        extra_layers=data["extra_layers"],
        notes=tuple(data["notes"]),
    )


def _changed(value: Any, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    return {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if field.name not in skip and getattr(value, field.name) != field.default
    }


def _layer(layer: Layer) -> dict[str, Any]:
    memory = _changed(layer.memory, ("caches",))
    if layer.memory.caches:
        memory["caches"] = [_changed(cache) for cache in layer.memory.caches]
    own = {name: value for name, value in asdict(layer).items() if name not in ("prefix", "memory")}
    return own | {"memory": memory}


def _part(part: Part, prefix: str) -> list[Any]:
    """Name below the layer, component, shape, matrices (name below the layer only where it is another), the rest."""
    name = part.name.removeprefix(f"{prefix}.") if prefix else part.name
    matrices = [[m.rows, m.columns, m.copies, m.quantizable] for m in part.matrices]
    return [name, part.component, list(part.shape), matrices, part.embedding, part.kv_params, part.replicated_params]


def _to_part(data: list[Any], prefix: str, layer: int | None) -> Part:
    own, component, shape, matrices, embedding, kv, replicated = data
    name = f"{prefix}.{own}" if prefix else own
    made = tuple(Matrix(rows, columns, name, copies, plain) for rows, columns, copies, plain in matrices)
    return Part(name, tuple(shape), component, layer, made, embedding, kv, replicated)
