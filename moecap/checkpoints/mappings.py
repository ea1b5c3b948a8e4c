"""Where scales may move between activations and weights: found in the model's own computation, not in its name.

AWQ and SmoothQuant divide the outputs of one layer by a scale per channel and multiply the weights that read them by
it. That is allowed where nothing else reads those outputs. Two questions of the running model answer where that is:

* *Who reads whom?* While a short text runs through the model, the tensor that a normalization gives is followed by the
  memory it lies in: every matrix that is fed from it, experts and routers too, is a reader. Inside a block, a matrix
  without such a source may be fed by a neighbour with as many outputs as it has inputs (values before the output
  projection, up before down).
* *Is it so?* Scales that are powers of two are exact in floating point: with them moved, the model must give the very
  same logits, and with one side of them alone it must not. What fails this is left out (post-norms, whose outputs go on
  into the residual; norms that add one to their weight; gate projections, which pass a non-linearity).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Mapping:
    """The outputs of ``source`` are read by ``readers`` alone; names as in ``named_modules``."""

    source: str
    readers: tuple[str, ...]
    norm: bool


def find(model: torch.nn.Module, run: Callable[[], torch.Tensor]) -> list[Mapping]:
    """Every mapping of the model, each shown to leave its outputs as they are.

    Args:
        run: a forward pass over a short text, every expert on every token; gives the logits.
    """
    # Of mappings that are alike (the same roles, in each layer), the one that comes first is tried.
    alike: dict[tuple[Any, ...], list[Mapping]] = defaultdict(list)
    for mapping in candidates(model, run):
        alike[role(mapping.source), frozenset(map(role, mapping.readers))].append(mapping)
    before = run()
    found = []
    for group in alike.values():
        first = [m for m in group if _layer(m.source) == _layer(group[0].source)]
        if _holds(model, first, run, before):
            found += group
    return found


def candidates(model: torch.nn.Module, run: Callable[[], torch.Tensor]) -> list[Mapping]:
    """What reads what, as far as the tensors of one pass show it; nothing is proven yet."""
    readers, unfed = _readers(model, run)
    found = [Mapping(source, tuple(names), True) for source, names in readers.items() if names]
    modules = dict(model.named_modules())
    for name in unfed:
        parent = name.rpartition(".")[0]
        for neighbour, module in modules[parent].named_children():
            other = f"{parent}.{neighbour}"
            if other != name and _is_linear(module) and module.weight.shape[0] == modules[name].weight.shape[1]:
                found.append(Mapping(other, (name,), False))
    return found


def role(name: str) -> str:
    """A module's name without the numbers of layers and experts.

    >>> role("model.layers.3.mlp.experts.17.up_proj")
    'model.layers.*.mlp.experts.*.up_proj'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def pattern(name: str) -> str:
    """A regular expression for all experts of a module's layer, as llmcompressor reads it.

    >>> pattern("model.layers.3.mlp.experts.17.up_proj")
    're:model\\\\.layers\\\\.3\\\\.mlp\\\\.experts\\\\.\\\\d+\\\\.up_proj$'
    """
    head, number, tail = _split(name)
    return "re:" + re.escape(head + number) + re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", re.escape(tail)) + "$"


def by_layer(mappings: Iterable[Mapping]) -> list[tuple[str, list[str]]]:
    """(source, readers) as patterns, a line for all experts of a layer."""
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    for mapping in mappings:
        found[pattern(mapping.source), tuple(dict.fromkeys(map(pattern, mapping.readers)))] = None
    return [(source, list(readers)) for source, readers in found]


def _split(name: str) -> tuple[str, str, str]:
    match = re.match(r"(.*?\.)(\d+)(\..*)$", name)
    return (match[1], match[2], match[3]) if match else (name, "", "")


def _layer(name: str) -> tuple[str, str]:
    return _split(name)[:2]


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def _own_weight(module: torch.nn.Module) -> torch.Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None


def _readers(model: torch.nn.Module, run: Callable[[], torch.Tensor]) -> tuple[dict[str, list[str]], list[str]]:
    """Norm -> matrices (with routers) that read its output; linear layers that read no norm's."""
    source_at: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # memory that is in use is not given to another tensor
    readers: dict[str, list[str]] = {}
    unfed: list[str] = []

    def gives(name: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                kept.append(output)
                source_at[output.data_ptr()] = name
                readers.setdefault(name, [])

        return hook

    def reads(name: str, linear: bool) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor) and a.is_floating_point()]
            source = source_at.get(tensors[0].data_ptr()) if tensors else None
            if source is not None and name not in readers[source]:
                readers[source].append(name)
            elif source is None and linear and name not in unfed:
                unfed.append(name)

        return hook

    handles = []
    for name, module in model.named_modules():
        weight = _own_weight(module)
        if weight is None or isinstance(module, torch.nn.Embedding):
            continue
        if weight.ndim == 1:
            handles.append(module.register_forward_hook(gives(name)))
        elif weight.ndim == 2:
            handles.append(module.register_forward_pre_hook(reads(name, _is_linear(module)), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return readers, unfed


def _holds(
    model: torch.nn.Module, mappings: Sequence[Mapping], run: Callable[[], torch.Tensor], before: torch.Tensor
) -> bool:
    """Whether moved scales change nothing, and scales that are not made up for do."""
    with _scaled(model, mappings, readers=True):
        moved = run()
    if not torch.equal(moved, before):
        return False
    with _scaled(model, mappings, readers=False):
        return not torch.equal(run(), before)


@contextmanager
def _scaled(model: torch.nn.Module, mappings: Sequence[Mapping], readers: bool) -> Iterator[None]:
    """The sources' outputs divided by powers of two; with ``readers``, their weights multiplied by them."""
    modules = dict(model.named_modules())
    sources = [modules[m.source] for m in mappings]
    fed = [modules[name] for m in mappings for name in m.readers] if readers else []
    saved = [(p, p.detach().clone()) for m in (*sources, *fed) for p in m.parameters(recurse=False)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mapping, source in zip(mappings, sources, strict=True):
            weight: torch.Tensor = source.weight
            powers = torch.randint(0, 2, (weight.shape[0],), generator=generator).to(weight.device)
            scales = (2.0**powers).to(weight.dtype)
            for own in source.parameters(recurse=False):
                own.div_(scales if own.ndim == 1 else scales[:, None])
            for name in mapping.readers if readers else ():
                modules[name].weight.mul_(scales[None, :])
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)
