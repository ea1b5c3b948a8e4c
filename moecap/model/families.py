"""Families of models stated as data: tensors per layer with sizes in terms of config keys, for what transformers lacks.

One file per family in ``config/catalogue/architectures/``. A size is an arithmetic expression of the config's keys, of
``i`` (the layer, from 0) and of names that the file defines from them; nothing else can be said, so a file is data.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from pydantic import Field

from moecap.documents import read_document
from moecap.errors import MoecapError
from moecap.model.keys import config_keys
from moecap.model.layouts import Matrix
from moecap.model.skeleton import Layer, Memory, Part, Skeleton
from moecap.model.structure import Cache
from moecap.paths import catalogue_layers
from moecap.schema import Strict, check

Expression = int | str


class TensorShape(Strict):
    """A tensor: its name in a checkpoint (below the layer), what it is, its shape, and in which layers it is."""

    name: str
    component: str
    shape: tuple[Expression, ...]
    when: Expression = 1
    makes_kv: bool = Field(False, description="keys and values come from it: tensor parallelism splits it by KV heads")
    replicated: bool = Field(False, description="every rank of tensor parallelism keeps it whole")
    quantizable: bool = True


class CacheShape(Strict):
    """A cache of a layer, as :class:`~moecap.model.structure.Cache` has it."""

    elements: Expression
    tokens: Expression = 1
    window: Expression | None = None
    read_limit: Expression | None = None
    heads: Expression = 1
    flops_per_pair: Expression = 0


class MemoryShape(Strict):
    """What a layer keeps between tokens; the first of a family's whose ``when`` holds for it."""

    attention: str
    when: Expression = 1
    caches: tuple[CacheShape, ...] = ()
    query_heads: Expression = 0
    qk_head_dim: Expression = 0
    v_head_dim: Expression = 0
    kv_heads: Expression = 0
    recurrent_elements: Expression = 0
    conv_elements: Expression = 0


class Family(Strict):
    """The structure of a family of models.

    Attributes:
        model_types: whose configs it reads; ``text``: the key of the text model's config, null: the file itself.
        source: where the shapes are read from.
        defaults: what a key is if the file does not have it.
        requires: the values of keys for which these shapes are right; others are refused.
        sizes, layer_sizes: names for expressions, in order; the latter are worked out per layer.
        hidden_size, vocab_size, layers, experts, top_k, tied: expressions; experts and top-k per layer.
        prefix: what the name of a layer begins with; ``outside``: tensors outside the layers, whole names.
        state_dtype: of recurrent state.
        mtp_layers: layers of multi-token prediction.
    """

    model_types: tuple[str, ...]
    text: str | None = None
    source: str
    status: str
    defaults: dict[str, Any] = Field(default_factory=dict)
    requires: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    sizes: dict[str, Expression] = Field(default_factory=dict)
    layer_sizes: dict[str, Expression] = Field(default_factory=dict)
    hidden_size: Expression = "hidden_size"
    vocab_size: Expression = "vocab_size"
    layers: Expression = "num_hidden_layers"
    experts: Expression = 0
    top_k: Expression = 0
    tied: Expression = "tie_word_embeddings"
    prefix: str
    state_dtype: str | None = None
    mtp_layers: Expression = 0
    outside: tuple[TensorShape, ...]
    parts: tuple[TensorShape, ...]
    memory: tuple[MemoryShape, ...]
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def families() -> Mapping[str, Family]:
    """Every family of the catalogue, by ``model_type``.

    Raises:
        MoecapError: a file that does not fit the format.
    """
    found: dict[str, Family] = {}
    for layer in catalogue_layers():
        for path in sorted((layer / "architectures").glob("*.yaml")):
            family = _read(path)
            found |= dict.fromkeys(family.model_types, family)
    return found


def _read(path: Path) -> Family:
    document = read_document(path)
    return check(Family, document.data, document.place)


def family_of(data: Mapping[str, Any]) -> Family | None:
    """The family that reads a config, if its ``model_type`` is stated as data."""
    return families().get(str(data.get("model_type")))


def from_family(family: Family, data: Mapping[str, Any]) -> Skeleton:
    """The structure of the model that a config describes, by its family's shapes.

    Raises:
        MoecapError: a key is missing, has a value for which the shapes are not right, or speaks of shapes and is
            read by nobody.
    """
    own = data.get(family.text) if family.text else data
    if not isinstance(own, Mapping):
        raise MoecapError(f"This {data.get('model_type')} config has no {family.text!r}.")
    names = _Names({**family.defaults, **own}, str(data.get("model_type")))
    _check_requirements(family, names)
    for name, expression in family.sizes.items():
        names.add(name, names.value(expression))
    parts = [_part(tensor, names, None, 0, tensor.name) for tensor in family.outside if names.value(tensor.when)]
    layers: list[Layer] = []
    for number in range(names.value(family.layers)):
        here = names.of_layer(number, family.layer_sizes)
        experts, top_k = here.value(family.experts), here.value(family.top_k)
        if not 0 <= top_k <= experts or (experts and not top_k):
            raise MoecapError(f"Layer {number}: a token is to use {top_k} of {experts} experts. Correct the config.")
        prefix = f"{family.prefix}.{number}"
        parts += [
            _part(tensor, here, number, experts, f"{prefix}.{tensor.name}")
            for tensor in family.parts
            if here.value(tensor.when)
        ]
        layers.append(Layer(prefix, "decoder", experts, top_k, _memory(family, here, number)))
    _check_all_read(family, own, names)
    nested = data.get("quantization_config") or own.get("quantization_config")
    return Skeleton(
        parts=tuple(parts),
        layers=tuple(layers),
        tied_embeddings=bool(names.value(family.tied)),
        hidden_size=names.value(family.hidden_size),
        vocab_size=names.value(family.vocab_size),
        dtype=str(own.get("dtype") or own.get("torch_dtype") or data.get("dtype") or "bfloat16"),
        state_dtype=family.state_dtype,
        quantization=nested,
        extra_layers=names.value(family.mtp_layers),
        notes=(f"Shapes as data: {family.status} ({family.source}).", *family.notes),
    )


def _part(tensor: TensorShape, names: _Names, layer: int | None, experts: int, name: str) -> Part:
    shape = tuple(names.value(size) for size in tensor.shape)
    routed = tensor.component == "routed_experts"
    matrices: tuple[Matrix, ...] = ()
    if len(shape) == 2 and tensor.component not in {"embedding", "norms"}:
        copies = experts if routed else 1
        plain = tensor.quantizable and tensor.component not in {"router", "lm_head"}
        matrices = (Matrix(shape[0], shape[1], name, copies, plain),)
    full = (experts, *shape) if routed else shape
    size = prod(full)
    return Part(
        name,
        full,
        tensor.component,
        layer,
        matrices,
        tensor.component == "embedding",
        size if tensor.makes_kv else 0,
        size if tensor.replicated else 0,
    )


def _memory(family: Family, names: _Names, number: int) -> Memory:
    shape = next((m for m in family.memory if names.value(m.when)), None)
    if shape is None:
        raise MoecapError(f"{family.source}: no memory is stated for layer {number}.")
    figures = ("query_heads", "qk_head_dim", "v_head_dim", "kv_heads", "recurrent_elements", "conv_elements")
    own = {figure: names.value(getattr(shape, figure)) for figure in figures}
    caches = []
    for cache in shape.caches:
        stated = {k: names.value(v) for k, v in cache.model_dump().items() if v is not None}
        score = 2 * own["query_heads"] * (own["qk_head_dim"] + own["v_head_dim"])
        caches.append(Cache(**stated | {"flops_per_pair": stated["flops_per_pair"] or score}))
    return Memory(shape.attention, tuple(caches), **own)


def _check_requirements(family: Family, names: _Names) -> None:
    for key, values in family.requires.items():
        if (value := names.look_up(key)) not in values:
            raise MoecapError(
                f"{key} is {value!r}; the shapes of {', '.join(family.model_types)} are known for "
                f"{' or '.join(map(repr, values))} ({family.source})."
            )


def _check_all_read(family: Family, own: Mapping[str, Any], names: _Names) -> None:
    """A key of the file that speaks of shapes must be read by the family's expressions, or known to shape nothing."""
    keys = config_keys()
    known = names.read | set(family.requires) | {k.partition(".")[0] for k in family.requires} | {family.text}
    unread = [
        key
        for key, value in own.items()
        if key not in known
        and keys.speaks_of_shapes(key)
        and not keys.is_harmless(key)
        and not isinstance(value, str)
        and value not in (None, False, 0, [], {})
    ]
    if unread:
        raise MoecapError(
            f"{', '.join(f'{key} ({own[key]})' for key in unread)}: read by nobody; the shapes of "
            f"{', '.join(family.model_types)} are stated without it. If it shapes nothing, take it out of the file."
        )


class _Names:
    """The values of names in expressions: config keys (with dots into nested ones) and what a family defines."""

    def __init__(self, config: Mapping[str, Any], model: str) -> None:
        self.config, self.model = config, model
        self.own: dict[str, Any] = {}
        self.read: set[str] = set()

    def add(self, name: str, value: Any) -> None:
        self.own[name] = value

    def of_layer(self, number: int, sizes: Mapping[str, Expression]) -> _Names:
        here = _Names(self.config, self.model)
        here.read = self.read
        here.own = self.own | {"i": number}
        for name, expression in sizes.items():
            here.add(name, here.value(expression))
        return here

    def look_up(self, name: str) -> Any:
        head, _, rest = name.partition(".")
        if name in self.own:
            return self.own[name]
        self.read.add(head)
        value: Any = self.config.get(head)
        for word in rest.split(".") if rest else ():
            value = value.get(word) if isinstance(value, Mapping) else None
        return value

    def value(self, expression: Expression) -> Any:
        if isinstance(expression, int):
            return expression
        value = _evaluate(ast.parse(expression, mode="eval").body, self)
        return value


_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def _evaluate(node: ast.AST, names: _Names) -> Any:
    """Whole-number arithmetic and comparisons of names; nothing else."""
    match node:
        case ast.Constant(value=value) if isinstance(value, int):
            return value
        case ast.Name() | ast.Attribute():
            name = ast.unparse(node)
            if (value := names.look_up(name)) is None:
                raise MoecapError(f"A {names.model} config needs the key {name!r}.")
            return value
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_evaluate(left, names), _evaluate(right, names))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _BINARY[type(op)](_evaluate(left, names), _evaluate(right, names))
        case ast.BoolOp(op=op, values=values):
            results = (_evaluate(value, names) for value in values)
            return all(results) if isinstance(op, ast.And) else any(results)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _evaluate(operand, names)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _evaluate(body if _evaluate(test, names) else orelse, names)
    raise MoecapError(f"{ast.unparse(node)!r} is no arithmetic of config keys.")
