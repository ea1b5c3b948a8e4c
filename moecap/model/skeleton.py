"""A model's structure before anybody says how its weights are stored: its parameters, what each is, its layers' memory.

Pure data. :mod:`moecap.model.reader` reads it off a built model, :mod:`moecap.model.shapes` from shapes stated as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from moecap.errors import MoecapError
from moecap.model.layouts import Matrix
from moecap.model.structure import Cache


class Refused(MoecapError):
    """A model whose modules could not be told apart, so that a count would be a guess."""


@dataclass(frozen=True)
class Part:
    """One parameter: its name and shape, what it is, and which layer it lies in (None: outside the layers)."""

    name: str
    shape: tuple[int, ...]
    component: str
    layer: int | None
    matrices: tuple[Matrix, ...] = ()
    embedding: bool = False
    kv_params: int = 0
    replicated_params: int = 0

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def flops(self) -> int:
        """FLOPs per token if the parameter is used in a product: two per weight."""
        return 2 * sum(m.copies * m.rows * m.columns for m in self.matrices)


@dataclass(frozen=True)
class Memory:
    """What a layer keeps between tokens, and the shape of its attention; fields as in :class:`LayerKind`.

    ``blocks`` attention blocks are taken together here; their heads are added up. ``recurrent_elements`` are a linear
    attention's state, which has a dtype of its own; ``conv_elements`` those of convolutions, at the model's dtype.
    """

    attention: str = "none"
    caches: tuple[Cache, ...] = ()
    query_heads: int = 0
    qk_head_dim: int = 0
    v_head_dim: int = 0
    kv_heads: int = 0
    cross_kv_elements_per_token: int = 0
    recurrent_elements: int = 0
    conv_elements: int = 0
    blocks: int = 1

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds, before windows; compressed entries count by their share per token."""
        return round(sum(cache.elements / cache.tokens for cache in self.caches))

    @property
    def state_elements(self) -> int:
        return self.recurrent_elements + self.conv_elements


@dataclass(frozen=True)
class Layer:
    """One layer's place, experts and memory."""

    prefix: str
    stack: str
    experts: int
    top_k: int
    memory: Memory
    zero_experts: int = 0


@dataclass(frozen=True)
class Skeleton:
    """A model's structure, before anybody says how its weights are stored.

    Attributes:
        dtype: of the weights, as the config states it; ``state_dtype``: of recurrent state, None: as the weights'.
        buffers: persistent buffers that are not counted as parameters: their name → component and layer.
        renamings: transformers' table from a checkpoint's tensor names to the model's.
        extra_layers: layers of multi-token prediction, which are in no part.
        ignored: patterns of checkpoint tensors that the model does not load.
    """

    parts: tuple[Part, ...]
    layers: tuple[Layer, ...]
    tied_embeddings: bool
    hidden_size: int
    vocab_size: int
    dtype: str = "bfloat16"
    state_dtype: str | None = None
    quantization: Mapping[str, Any] | None = None
    buffers: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    renamings: Any = None
    extra_layers: int = 0
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total_params(self) -> int:
        return sum(part.numel for part in self.parts)
