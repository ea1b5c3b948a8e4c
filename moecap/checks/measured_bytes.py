"""Bytes that a forward pass really reads, counted op by op while Transformers runs it.

The other half of every byte count in this project: :mod:`moecap.metrics.utilization` predicts, this module looks. It
shares no code with the prediction: it knows no sizes of models, no components and no experts, only tensors. A
``TorchDispatchMode`` sees every operation that PyTorch executes; an input that lies in the storage of a parameter is a
read of that region of that parameter, one that lies in the KV cache is a read of the KV cache, and everything else is
activations. Views move nothing.

Experts are executed one by one (``experts_implementation="eager"`` of Transformers), so that what no token was sent to
is never an operand. The KV cache appends in place, as engines do; the cache that Transformers makes by itself is copied
whole at every step.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from moecap.errors import MoecapError

#: Operations that read as many elements of their first operand as they return.
GATHER = {"embedding", "index", "index_select", "gather", "take_along_dim"}
#: In-place operations that write as many elements as their last operand has, and do not read what was there.
OVERWRITE = {"copy_", "scatter_", "index_copy_", "index_put_"}
#: In-place operations that add their last operand to as many elements of their first.
ACCUMULATE = {"index_add_", "scatter_add_"}
#: Matrix products and attention: what lies between them an engine may fuse, their operands it has to move.
PRODUCTS = {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention", "_grouped_mm", "grouped_mm",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
}  # fmt: skip
OUTSIDE = None  # the layer of what runs outside all layers: embedding, last norm, head


@dataclass
class Counted:
    """Bytes moved by the ops of a forward pass, by the layer that executed them (None: outside the layers).

    Attributes:
        weights: layer → parameter → bytes read, summed over ops: a region that two ops read counts twice.
        regions: parameter → (offset, bytes) of the regions that were read: one per expert of a stacked parameter.
        kv_read, kv_written: layer → bytes of the KV cache.
        products: layer → bytes of activations that matrix products and attention read and write.
        between: layer → bytes of activations that all other ops read and write, and of copies of weights in another
            dtype, which Transformers makes anew at every step: an engine that fuses, and converts once, moves fewer.
        ops: operation → how often it ran (views left out).
    """

    weights: dict[int | None, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    regions: dict[str, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))
    kv_read: Counter[int | None] = field(default_factory=Counter)
    kv_written: Counter[int | None] = field(default_factory=Counter)
    products: Counter[int | None] = field(default_factory=Counter)
    between: Counter[int | None] = field(default_factory=Counter)
    ops: Counter[str] = field(default_factory=Counter)

    def weight_bytes(self, layers: Iterable[int | None] | None = None) -> int:
        """Bytes of weights that the ``layers`` read; None: everything, what lies outside the layers included."""
        return sum(self.weights[layer].total() for layer in (list(self.weights) if layers is None else layers))

    def of(self, what: str, layers: Iterable[int | None] | None = None) -> int:
        """The same for ``kv_read``, ``kv_written``, ``products`` or ``between``."""
        counter = getattr(self, what)
        return counter.total() if layers is None else sum(counter[layer] for layer in layers)


class ByteCounter(TorchDispatchMode):
    """Counts, while it is active, what the ops of ``model`` move; ``cache`` is the KV cache that it is run with.

    Args:
        model: a causal language model of Transformers.
        cache: an :class:`AppendingCache`; every other cache would be counted as activations.
    """

    def __init__(self, model: Any, cache: AppendingCache) -> None:
        super().__init__()
        self.counted = Counted()
        self._cache = cache
        self._layers = decoder_layers(model)
        self._executing: list[int] = []
        self._names: dict[int, str] = {}
        self._copies: dict[int, torch.Tensor] = {}  # by storage; held, lest its address be given to an activation
        kept = set(model.state_dict(keep_vars=True))
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in named:
            if name in kept:  # buffers that no checkpoint keeps are computed, not weights
                self._names.setdefault(_storage(tensor), name)

    @contextmanager
    def counting(self) -> Iterator[Counted]:
        """Count what runs inside the block."""

        def left(*_: Any) -> None:  # whatever a hook returns would replace the layer's output
            self._executing.pop()

        handles = []
        for index, layer in enumerate(self._layers):
            handles.append(layer.register_forward_pre_hook(lambda *_, index=index: self._executing.append(index)))
            handles.append(layer.register_forward_hook(left))
        try:
            with self:
                yield self.counted
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operands, results = _tensors((args, kwargs)), _tensors(result)
        # `to`, `reshape` and `contiguous` are views or copies, as it comes: the storage tells.
        if not (func.is_view and {*map(_storage, results)} <= {*map(_storage, operands)}):
            self._count(func.overloadpacket.__name__, operands, results)
        return result

    def _count(self, name: str, operands: list[torch.Tensor], results: list[torch.Tensor]) -> None:
        layer = self._executing[-1] if self._executing else OUTSIDE
        self.counted.ops[name] += 1
        if operands and all(storage in self._names or storage in self._copies for storage in map(_storage, operands)):
            self._copies.update((_storage(made), made) for made in results)
        touched: int | None = None  # bytes of the first operand that are touched, where not all of it is
        if name in GATHER and operands:
            touched = results[0].numel() * operands[0].element_size()
        elif name in OVERWRITE | ACCUMULATE:
            touched = min(_bytes(operands[-1]), _bytes(operands[0]))
        if name in OVERWRITE:  # written, not read
            self._move(layer, name, operands[0], touched, write=True)
            operands, results = operands[1:], []
        elif name in ACCUMULATE:
            self._move(layer, name, operands[0], touched, write=True)
            results = []
        for position, operand in enumerate(operands):
            self._move(layer, name, operand, touched if position == 0 and name not in OVERWRITE else None)
        for made in results:
            self._move(layer, name, made, None, write=True)

    def _move(
        self, layer: int | None, op: str, tensor: torch.Tensor, touched: int | None = None, write: bool = False
    ) -> None:
        moved = _bytes(tensor) if touched is None else touched
        storage = _storage(tensor)
        if storage in self._names:
            if write:
                raise MoecapError(f"{op} writes into the weight {self._names[storage]}: this is no inference.")
            self.counted.weights[layer][self._names[storage]] += moved
            offset = tensor.storage_offset() * tensor.element_size()
            self.counted.regions[self._names[storage]].add((offset, moved))
        elif storage in self._cache.storages:
            (self.counted.kv_written if write else self.counted.kv_read)[layer] += moved
        else:
            product = op in PRODUCTS and storage not in self._copies
            (self.counted.products if product else self.counted.between)[layer] += moved


class AppendingLayer(DynamicLayer):
    """The KV cache of one layer: room for ``capacity`` tokens, appended to in place; what it returns are views."""

    def __init__(self, capacity: int, storages: set[int]) -> None:
        super().__init__()
        self._capacity, self._storages = capacity, storages
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None
        self._length = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Append (batch, heads, tokens, dim) keys and values; returns all of them."""
        if self._room is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._room = tuple(
                x.new_empty(*x.shape[:2], self._capacity, x.shape[3]) for x in (key_states, value_states)
            )
            self._storages.update(map(_storage, self._room))
        start, self._length = self._length, self._length + key_states.shape[-2]
        if self._length > self._capacity:
            raise MoecapError(f"{self._length} tokens do not fit a KV cache made for {self._capacity}.")
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start : self._length].copy_(new)
        self.keys, self.values = (room[:, :, : self._length] for room in self._room)
        return self.keys, self.values


class AppendingCache(Cache):
    """A KV cache for layers of full attention that appends in place.

    Raises:
        MoecapError: the model keeps something else between tokens (a window, a recurrent state).
    """

    def __init__(self, config: Any, capacity: int) -> None:
        kinds = {type(layer) for layer in DynamicCache(config=config).layers}
        if kinds - {DynamicLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds - {DynamicLayer}))
            raise MoecapError(
                f"The bytes of this {config.model_type} model cannot be measured: it keeps {names} between tokens, and "
                "only a cache of full attention is counted."
            )
        self.storages: set[int] = set()
        layers = config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[AppendingLayer(capacity, self.storages) for _ in range(layers)])


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """The layers of a causal language model of Transformers, in order.

    Raises:
        MoecapError: it has no such list.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise MoecapError(
            f"{type(model).__name__}: no list of layers was found, so bytes cannot be told apart by layer."
        )
    return layers


def one_by_one(model: Any) -> Any:
    """Have ``model`` execute its experts one by one, so that one that no token was sent to is never touched."""
    model.set_experts_implementation("eager")
    return model.eval()


def decode_step(
    model: Any,
    prompts: torch.Tensor,
    next_tokens: torch.Tensor,
    window: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Counted:
    """Bytes that one decode step moves.

    Args:
        model: a causal language model, its experts executed one by one (:func:`one_by_one`).
        prompts: token ids, shape (batch, tokens), read into the KV cache beforehand, uncounted.
        next_tokens: the token ids that the step computes, shape (batch, 1).
        window: opened around the step and nothing else, for a profiler that watches from outside.
    """
    cache = AppendingCache(model.config, prompts.shape[1] + 1)
    counter = ByteCounter(model, cache)
    with torch.inference_mode():
        model(input_ids=prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
        with counter.counting() as counted, window():
            model(input_ids=next_tokens, past_key_values=cache, use_cache=True)
    return counted


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: torch.Tensor) -> int:
    """Distinct bytes behind a tensor: an expanded dimension (stride 0) repeats what is there."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride or size <= 1 else 1
    return elements * tensor.element_size()
