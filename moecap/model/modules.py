"""Small questions about PyTorch modules, parameters and configs, asked by the readers of a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moecap.model.words import CACHE_ARGUMENTS

if TYPE_CHECKING:
    import torch


@dataclass
class Parameter:
    """A parameter (or buffer), the module that owns it, and its path within the layer or the model."""

    path: tuple[str, ...]
    owner: torch.nn.Module
    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


def parameters(module: torch.nn.Module) -> Iterator[Parameter]:
    """Every parameter below a module, shared ones as often as they occur."""
    for name, owner in module.named_modules():
        prefix = tuple(name.split(".")) if name else ()
        for own, tensor in owner.named_parameters(recurse=False):
            yield Parameter((*prefix, own), owner, tensor)


def buffers(module: torch.nn.Module) -> Iterator[Parameter]:
    """Every buffer below a module that a checkpoint stores."""
    for name, owner in module.named_modules():
        prefix = tuple(name.split(".")) if name else ()
        for own, tensor in owner.named_buffers(recurse=False):
            if tensor is not None and own not in owner._non_persistent_buffers_set:
                yield Parameter((*prefix, own), owner, tensor)


@lru_cache(maxsize=4096)
def _arguments(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(inspect.unwrap(cls.forward)).parameters)  # type: ignore[attr-defined]


def takes_cache(module: torch.nn.Module) -> bool:
    """Whether a module keeps state between tokens: attention of some kind."""
    cls: type = type(module)
    return bool(_arguments(cls) & CACHE_ARGUMENTS)


def is_norm(module: torch.nn.Module) -> bool:
    """Whether a module is a normalization."""
    return "norm" in type(module).__name__.lower() and not takes_cache(module)


def is_linear(parameter: Parameter) -> bool:
    """Whether a parameter is a plain linear layer's."""
    import torch

    return isinstance(parameter.owner, torch.nn.Linear)


def is_embedding(parameter: Parameter) -> bool:
    """Whether a parameter is a table of embeddings."""
    import torch

    return isinstance(parameter.owner, torch.nn.Embedding)


def is_convolution(module: torch.nn.Module) -> bool:
    """Whether a module is a convolution."""
    import torch

    return isinstance(module, torch.nn.modules.conv._ConvNd)


def attribute(holders: Iterable[Any], words: Iterable[str]) -> int | None:
    """The first whole number that one of the holders has under one of the words; words go first."""
    holders = tuple(holders)
    for word in words:
        for holder in holders:
            try:
                value = getattr(holder, word, None)
            except Exception:  # a config whose layers differ refuses to answer for all of them
                continue
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def first(modules: Mapping[str, Any], words: Iterable[str]) -> Any:
    """The first module that is called by one of the words."""
    return next((modules[word] for word in words if word in modules), None)


def out_features(linear: Any) -> int:
    """Rows of a projection."""
    return int(linear.weight.shape[0])


def path_of(model: torch.nn.Module, body: torch.nn.Module) -> tuple[str, ...]:
    """Where a module lies in a model."""
    return next(tuple(n.split(".")) if n else () for n, m in model.named_modules() if m is body)
