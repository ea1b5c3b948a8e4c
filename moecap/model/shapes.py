"""A structure from shapes that a catalogue entry states layer by layer, for models that transformers does not ship."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from moecap.errors import MoecapError
from moecap.model.layouts import Matrix
from moecap.model.skeleton import Layer, Memory, Part, Skeleton
from moecap.model.structure import Cache


def from_shapes(shapes: Mapping[str, Any]) -> Skeleton:
    """A structure from the shapes that a catalogue entry states.

    ``{hidden_size, vocab_size, tied_embeddings, norms, layers: [{count, stack, experts, top_k, attention, router,
    expert, shared, dense_mlp, norms, memory}]}``; every component is a list of matrices ``[out, in]`` or
    vectors ``[n]``, ``expert`` is one routed expert.

    Raises:
        MoecapError: a key is missing, or top-k exceeds the number of experts.
    """
    try:
        hidden, vocab = int(shapes["hidden_size"]), int(shapes["vocab_size"])
        parts = [Part("embedding", (vocab, hidden), "embedding", None, (), True)]
        if not shapes["tied_embeddings"]:
            parts.append(Part("lm_head", (vocab, hidden), "lm_head", None, (Matrix(vocab, hidden, "lm_head"),)))
        parts += [Part(f"norm.{i}", tuple(s), "norms", None) for i, s in enumerate(shapes.get("norms", ()))]
        layers: list[Layer] = []
        names = {"expert": "routed_experts", "shared": "shared_experts", "attention_kv": "attention"}
        for group in shapes["layers"]:
            experts, top_k = int(group.get("experts", 0)), int(group.get("top_k", 0))
            if top_k > experts or (experts and not top_k):
                raise MoecapError(f"A layer with {experts} experts cannot use {top_k} of them per token.")
            memory = _memory(group.get("memory", {}))
            for _ in range(int(group["count"])):
                number = len(layers)
                stack = group.get("stack", "decoder")
                layers.append(Layer(f"layers.{number}", stack, experts, top_k, memory))
                for key in ("attention", "attention_kv", "router", "expert", "shared", "dense_mlp", "norms", "other"):
                    for i, shape in enumerate(group.get(key, ())):
                        component = names.get(key, key)
                        copies = experts if key == "expert" else 1
                        name = f"layers.{number}.{key}.{i}"
                        matrix: tuple[Matrix, ...] = ()
                        if len(shape) == 2:
                            plain = component not in {"router", "norms"}
                            matrix = (Matrix(shape[0], shape[1], name, copies, plain),)
                        full = (copies, *shape) if key == "expert" else tuple(shape)
                        kv = prod(full) if key == "attention_kv" else 0
                        parts.append(Part(name, full, component, number, matrix, kv_params=kv))
    except KeyError as error:
        raise MoecapError(f"Shapes given as data need the key {error}.") from error
    return Skeleton(tuple(parts), tuple(layers), bool(shapes["tied_embeddings"]), hidden, vocab)


def _memory(stated: Mapping[str, Any]) -> Memory:
    """A layer's memory from an entry's flat keys: those of a :class:`~moecap.model.structure.LayerKind`."""
    own = dict(stated)
    elements, window = own.pop("kv_elements_per_token", 0), own.pop("kv_window", None)
    attention, heads = own.get("attention", "none"), own.get("kv_heads", 0)
    score = 2 * own.get("query_heads", 0) * (own.get("qk_head_dim", 0) + own.get("v_head_dim", 0))
    cache = Cache(
        elements,
        window=window,
        chunked=attention == "chunked",
        heads=1 if attention == "latent" else heads,
        flops_per_pair=score,
    )
    return Memory(**own, caches=(cache,) if elements else ())
