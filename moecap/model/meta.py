"""A model's anatomy from its config alone, by building it on PyTorch's meta device and reading its structure.

No branch on a model's name or ``model_type``: what a parameter is follows from the module that holds it (a parameter
with a leading expert dimension, a projection to the number of experts, a block that takes the KV cache) and from one
small table of words that transformers uses across families (below). What cannot be told apart is refused by name.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError, nearest
from moecap.model.stored import Matrix, Recipe, dtype_precision, recipe_from_quantization_config, resolve_precision
from moecap.model.structure import COMPONENTS, LAYER_COMPONENTS, Anatomy, Component, LayerKind

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

# -- the table of words that transformers uses across families

#: The module that holds the routed experts.
EXPERT_WORDS = {"experts"}
#: The last parts of a router's name; a projection from hidden size to the number of experts is one in any case.
ROUTER_WORDS = {"gate", "router", "expert_bias", "e_score_correction_bias"}
#: Part of the name of experts that every token uses.
SHARED_WORD = "shared"
#: A block that takes one of these arguments keeps state between tokens: attention of some kind.
CACHE_ARGUMENTS = {"past_key_values", "past_key_value", "cache_params", "layer_past"}
#: How modules and configs call the number of routed experts, and how many a token uses.
EXPERTS_WORDS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
TOP_K_WORDS = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "num_selected_experts",
)
#: How configs call the layers of multi-token prediction that a checkpoint has after its last one.
EXTRA_LAYER_WORDS = ("num_nextn_predict_layers", "num_mtp_modules", "num_mtp_layers", "mtp_num_hidden_layers")
#: Config switches that turn a family's experts off.
MOE_FLAGS = ("is_moe", "enable_moe_block")
#: More than this share of a model in leftovers is refused, not counted as ``other``.
OTHER_LIMIT = 0.1
#: Projections whose output the KV cache keeps: keys and values apart, both in one, or a compressed latent (MLA).
KEY_WORDS = ("k_proj", "k", "key")
VALUE_WORDS = ("v_proj", "v", "value")
FUSED_QKV_WORDS = ("qkv_proj", "Wqkv", "query_key_value", "c_attn")
FUSED_KV_WORDS = ("kv_proj",)
LATENT_WORDS = ("kv_a_proj_with_mqa",)
#: Keys of a sparse-attention indexer, cached beside the KV.
INDEXER_KEY = ("indexer", "wk")
INDEXER_WORDS = {"wq_b", "wk", "k_norm", "weights_proj"}
#: Projections into a latent that all heads share: tensor parallelism keeps them whole on every rank.
SHARED_LATENT_WORDS = {"q_a_proj", "kv_a_proj_with_mqa", "indexer"}
OUTPUT_WORDS = ("o_proj", "out_proj", "o", "dense")
HEAD_DIM_WORDS = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_kv")
CROSS_WORDS = ("cross", "encdec", "encoder_attn")
#: Kinds of cache whose growth per token follows from the projections; others are refused.
GROWING = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "indexed_attention": "indexed",
}
CONSTANT = {"linear_attention", "conv"}
NO_CACHE = {"moe", "mlp"}
#: How linear-attention modules call the dimensions of their recurrent state: the first line whose names are all there.
STATE_WORDS = (
    ("num_v_heads", "head_k_dim", "head_v_dim"),
    ("num_heads", "head_k_dim", "head_v_dim"),
    ("num_heads", "head_dim", "ssm_state_size"),
    ("n_heads", "head_dim", "ssm_state_size"),
    ("intermediate_size", "ssm_state_size"),
    ("num_attention_heads", "head_dim", "head_dim"),
    ("num_heads", "head_dim", "head_dim"),
)


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
    """What a layer keeps between tokens, and the shape of its attention; fields as in :class:`LayerKind`."""

    attention: str = "none"
    kv_elements_per_token: int = 0
    kv_window: int | None = None
    state_elements: int = 0
    query_heads: int = 0
    qk_head_dim: int = 0
    v_head_dim: int = 0
    kv_heads: int = 0
    cross_kv_elements_per_token: int = 0


@dataclass(frozen=True)
class Layer:
    """One layer's place, experts and memory."""

    prefix: str
    stack: str
    experts: int
    top_k: int
    memory: Memory


@dataclass(frozen=True)
class Skeleton:
    """A model's structure, before anybody says how its weights are stored."""

    parts: tuple[Part, ...]
    layers: tuple[Layer, ...]
    tied_embeddings: bool
    hidden_size: int
    vocab_size: int
    dtype: str = "bfloat16"
    quantization: Mapping[str, Any] | None = None
    buffers: Mapping[str, tuple[str, int | None]] = field(default_factory=dict)
    renamings: Any = None
    extra_layers: int = 0
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def total_params(self) -> int:
        return sum(part.numel for part in self.parts)


class Refused(MoecapError):
    """A model whose modules could not be told apart, so that a count would be a guess."""


# -- building


def load_config(source: str | Path | Mapping[str, Any]) -> PretrainedConfig:
    """The transformers config of a dict, a ``config.json`` or a folder that has one.

    A ``model_type`` that transformers does not know is read by the architecture that the config names, if transformers
    ships that (so Kimi-K2's is DeepSeek-V3's).

    Raises:
        MoecapError: no such file, not JSON, or a model that transformers does not know.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    where = "the given config"
    data: Any = source
    if not isinstance(source, Mapping):
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        where = str(path)
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise MoecapError(f"{path} does not exist; a checkpoint folder has a config.json.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise MoecapError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(data, Mapping):
        raise MoecapError(f"{where} is not a JSON object, so it is no model config.")
    data = dict(data)
    model_type = data.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        by_architecture = _model_type_of(data.get("architectures") or ())
        if by_architecture is None:
            raise MoecapError(
                f"{where}: model_type {model_type!r} (architectures {data.get('architectures')}) is not a model "
                f"that the installed transformers ships. {nearest(model_type, CONFIG_MAPPING.keys())} State its "
                "shapes as data in config/catalogue/models.yaml, or install a transformers that has it."
            )
        model_type = by_architecture
    try:
        with _quiet():
            return AutoConfig.for_model(model_type, **data)
    except MoecapError:
        raise
    except Exception as error:  # transformers raises what it likes for a value that it cannot use
        raise MoecapError(
            f"{where}: transformers cannot read this {model_type} config ({type(error).__name__}: "
            f"{_first_line(error)}). Correct the key that it names."
        ) from error


def build(config: PretrainedConfig, device: str = "meta") -> PreTrainedModel:
    """The model on the meta device: shapes without memory, in well under a second.

    Raises:
        MoecapError: transformers has no class that generates text for this config, or cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
    from transformers import AutoModelForMultimodalLM as AutoMultimodal

    text = config.get_text_config(decoder=True)
    choices: list[tuple[Any, Any]] = [(AutoModelForSeq2SeqLM, config)] if config.is_encoder_decoder else []
    choices += [(AutoModelForCausalLM, text), (AutoModelForImageTextToText, config), (AutoMultimodal, config)]
    for auto, candidate in choices:
        if type(candidate) in auto._model_mapping:
            break
    else:
        raise Refused(f"transformers has no class that generates text for {type(config).__name__}.")
    candidate = _without_quantization(candidate)
    try:
        with torch.device(device), _quiet():
            return auto.from_config(candidate)
    except Exception as error:
        raise MoecapError(
            f"transformers cannot build a model from this {candidate.model_type} config ({type(error).__name__}: "
            f"{_first_line(error)}). Check the sizes that it names; a config must state every size that differs from "
            "the family's defaults."
        ) from error


def skeleton(source: str | Path | Mapping[str, Any] | PretrainedConfig) -> Skeleton:
    """The structure of the model that a config (or its path) describes.

    Raises:
        Refused: modules that could not be told apart, by name.
        MoecapError: an unknown or impossible config, or more experts per token than there are.
    """
    from transformers import PretrainedConfig

    config = source if isinstance(source, PretrainedConfig) else load_config(source)
    return _skeleton(build(config), config)


# -- reading the structure


@dataclass
class _Parameter:
    path: tuple[str, ...]  # within the layer or the model
    owner: torch.nn.Module
    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


def _skeleton(model: PreTrainedModel, config: PretrainedConfig) -> Skeleton:
    import torch

    text = config.get_text_config(decoder=True)
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # several models in one, as in speech to speech
        raise Refused(f"{type(model).__name__} does not say which embedding its text comes in by.") from None
    hidden, vocab = int(embedding.weight.shape[1]), int(embedding.weight.shape[0])
    head = model.get_output_embeddings()
    body, notes = _text_model(model)
    stacks = _stacks(body)
    if not stacks:
        raise Refused(f"{type(model).__name__}: no list of layers with attention or experts was found.")

    names = {id(p): n for n, p in reversed([*model.named_parameters(remove_duplicate=False)])}
    seen: set[int] = set()
    parts: list[Part] = []
    layers: list[Layer] = []
    prefix_of_body = _path_of(model, body)
    types, windows = _cache_types(text)
    decoder_index = 0
    per_layer = dict(enumerate(text.per_layer_config))
    buffers: dict[str, tuple[str, int | None]] = {}
    left_over: list[str] = []
    for stack_path, stack in stacks:
        encoder = "encoder" in stack_path
        for index, module in enumerate(stack):
            number = len(layers)
            prefix = ".".join(x for x in (*prefix_of_body, *stack_path, str(index)) if x)
            own = text if encoder else per_layer.get(decoder_index, text)
            reading = _LayerReader(module, prefix, hidden, own)
            for parameter in _parameters(module):
                if id(parameter.tensor) in seen:
                    continue
                seen.add(id(parameter.tensor))
                component = reading.component(parameter)
                name = f"{prefix}.{'.'.join(parameter.path)}"
                if component == "other":
                    left_over.append(name)
                kv, replicated = reading.attention_split(parameter) if component == "attention" else (0, 0)
                matrices = reading.matrices(parameter, component)
                parts.append(Part(name, parameter.shape, component, number, matrices, False, kv, replicated))
            for path, owner in _buffers(module):
                holder = _Parameter(path, owner, torch.empty(0, device="meta"))
                buffers[f"{prefix}.{'.'.join(path)}"] = (reading.component(holder), number)
            if encoder:
                kind, window = "full_attention", None
            elif decoder_index < len(types):
                kind, window = types[decoder_index], windows[decoder_index]
            else:
                kind, window = "shared", None
            decoder_index += not encoder
            memory = reading.memory(kind, window, encoder)
            layers.append(Layer(prefix, "encoder" if encoder else "decoder", reading.experts, reading.top_k, memory))

    tied = head is None or any(head.weight is m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding))
    head_ids = {id(p) for p in head.parameters()} if head is not None else set()
    for parameter in (*_parameters(body), *(_parameters(head) if head is not None else ())):
        if id(parameter.tensor) in seen:
            continue
        seen.add(id(parameter.tensor))
        name = names.get(id(parameter.tensor), ".".join(parameter.path))
        is_embedding = isinstance(parameter.owner, torch.nn.Embedding)
        if is_embedding:
            component = "embedding"
        elif id(parameter.tensor) in head_ids:
            component = "lm_head"
        elif _is_norm(parameter.owner) or (len(parameter.shape) == 1 and "norm" in name):
            component = "norms"
        else:
            component = "other"
            left_over.append(name)
        shape = parameter.shape
        matrix = () if len(shape) != 2 or is_embedding else (Matrix(shape[0], shape[1], name),)
        parts.append(Part(name, shape, component, None, matrix, is_embedding))
    outside = sum(p.numel() for p in model.parameters() if id(p) not in seen)
    if outside:
        notes = (*notes, f"{outside} parameters outside the text model (vision, audio) are not counted.")
    if left_over:
        other, total = (sum(p.numel for p in parts if p.component in c) for c in ({"other"}, COMPONENTS))
        kinds = sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in left_over})
        if other > OTHER_LIMIT * total:
            raise Refused(f"{other} of {total} parameters belong to no component that is known: {', '.join(kinds)}.")
        notes = (*notes, f"Counted as 'other': {', '.join(kinds)}.")
    _check_experts(text, layers)
    return Skeleton(
        parts=tuple(parts),
        layers=tuple(layers),
        tied_embeddings=tied,
        hidden_size=hidden,
        vocab_size=vocab,
        dtype=str(getattr(text, "dtype", None) or getattr(config, "dtype", None) or "bfloat16").split(".")[-1],
        quantization=_quantization(config),
        buffers=buffers,
        renamings=_conversions(model),
        extra_layers=_attribute((config, text), EXTRA_LAYER_WORDS) or 0,
        ignored=tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
        notes=notes,
    )


class _LayerReader:
    """Tells what the parameters of one layer are."""

    def __init__(self, layer: torch.nn.Module, prefix: str, hidden: int, config: PretrainedConfig) -> None:
        self.layer, self.prefix, self.hidden, self.config = layer, prefix, hidden, config
        self.modules = dict(layer.named_modules())
        self.expert_root = self._find_experts()
        self.experts = self._count_experts() if self.expert_root is not None else 0
        self.attention = self._find_attention()
        self.mlp = self._find_mlp()
        self.direct_mlp = () if self.mlp or self.expert_root is not None else self._find_direct_mlp()
        self.top_k = 0
        if self.expert_root is not None:
            self._check_router()
            self.top_k = self._find_top_k()

    def refuse(self, reason: str) -> Refused:
        return Refused(f"{self.prefix} ({type(self.layer).__name__}): {reason}")

    # what a parameter is

    def component(self, parameter: _Parameter) -> str:
        path, shape = parameter.path, parameter.shape
        for depth in range(len(path) - 1, 0, -1):
            module = self.modules.get(".".join(path[:depth]))
            if module is not None and _is_norm(module):
                return "norms"
        inside = ".".join(path)
        if self.expert_root is not None and inside.startswith(f"{self.expert_root}."):
            return "routed_experts"
        if any(inside.startswith(f"{name}.") for name in self.attention):
            return "attention"
        if self.expert_root is not None:
            if any(SHARED_WORD in word for word in path):
                return "shared_experts"
            if self._is_router(parameter):
                return "router"
        if any(inside.startswith(f"{name}.") for name in self.mlp):
            return "dense_mlp"
        if len(shape) == 1 and any("norm" in word for word in path):
            return "norms"
        if self.direct_mlp and path[0] in self.direct_mlp:
            return "dense_mlp"
        block = self.expert_root.rpartition(".")[0] if self.expert_root else ""
        if block and inside.startswith(f"{block}.") and len(shape) > 1:
            raise self.refuse(f"{inside} {shape} lies beside the experts and is neither router nor shared expert.")
        return "other"

    def attention_split(self, parameter: _Parameter) -> tuple[int, int]:
        """Of an attention parameter: how much makes keys and values, and how much every rank keeps whole."""
        words = set(parameter.path)
        if words & SHARED_LATENT_WORDS:
            return 0, prod(parameter.shape)
        if words & {*KEY_WORDS, *VALUE_WORDS, *FUSED_KV_WORDS}:
            return prod(parameter.shape), 0
        if words & set(FUSED_QKV_WORDS):
            heads = _attribute(
                (parameter.owner, *self._owners(parameter), self.config), ("num_heads", "num_attention_heads")
            )
            kv_heads = _attribute((*self._owners(parameter), self.config), ("num_key_value_heads", "kv_n_heads"))
            if heads and kv_heads:
                return prod(parameter.shape) * 2 * kv_heads // (heads + 2 * kv_heads), 0
        return 0, 0

    def _owners(self, parameter: _Parameter) -> tuple[Any, ...]:
        names = (".".join(parameter.path[:depth]) for depth in range(len(parameter.path) - 1, 0, -1))
        return tuple(self.modules[name] for name in names if name in self.modules)

    def matrices(self, parameter: _Parameter, component: str) -> tuple[Matrix, ...]:
        """The matrices of a parameter as products use them: (out, in) each, an expert's apart."""
        shape, name = parameter.shape, f"{self.prefix}.{'.'.join(parameter.path)}"
        if len(shape) < 2 or component == "norms" or parameter.path[-1].endswith("bias") or _is_embedding(parameter):
            return ()
        if component == "routed_experts" and not _is_linear(parameter):
            leading = shape[0] == self.experts and len(shape) > 2
            if len(shape) == 2 and shape[0] == self.experts:
                return ()  # a bias or scale per expert
            rows, columns = (shape[1], shape[2]) if leading else (shape[0] // self.experts, shape[1])
            reads_hidden = not any(word in parameter.path[-1] for word in ("down", "w2", "output"))
            if leading and (columns if reads_hidden else rows) != self.hidden:
                rows, columns = columns, rows
            halves = 2 if "gate_up" in parameter.path[-1] else 1
            return (Matrix(rows // halves, columns, name, halves * self.experts),)
        if len(shape) == 3 and not _is_convolution(parameter.owner):
            return (Matrix(shape[1], shape[2], name, shape[0]),)
        plain = _is_linear(parameter) and component != "router"
        return (Matrix(shape[0], prod(shape[1:]), name, quantizable=plain and len(shape) == 2),)

    # experts and router

    def _find_experts(self) -> str | None:
        roots: list[str] = []
        for name, module in self.modules.items():
            own = list(module.parameters(recurse=False))
            by_word = name.rpartition(".")[2] in EXPERT_WORDS and any(True for _ in module.parameters())
            by_shape = any(p.ndim == 3 for p in own) and not _is_convolution(module) and SHARED_WORD not in name
            if by_word or (by_shape and not any(name == r or name.startswith(f"{r}.") for r in roots)):
                roots.append(name)
        roots = [r for r in roots if not any(r != o and r.startswith(f"{o}.") for o in roots)]
        if len(roots) > 1:
            raise self.refuse(f"more than one set of routed experts: {', '.join(roots)}.")
        return roots[0] if roots else None

    def _count_experts(self) -> int:
        import torch

        root = self.modules[self.expert_root]
        if isinstance(root, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            children = [child for child in root.children() if any(True for _ in child.parameters())]
            shapes = {tuple((n, tuple(p.shape)) for n, p in child.named_parameters()) for child in children}
            if len(shapes) != 1:
                raise self.refuse(f"{self.expert_root} holds experts of {len(shapes)} different shapes.")
            return len(children)
        leading = {p.shape[0] for p in root.parameters() if p.ndim == 3}
        if len(leading) > 1:
            raise self.refuse(
                f"{self.expert_root} has parameters for {' and '.join(map(str, sorted(leading)))} experts."
            )
        if leading:
            experts = leading.pop()
        else:
            found = _attribute((root, *root.modules()), EXPERTS_WORDS)
            if found is None:
                raise self.refuse(f"{self.expert_root} does not say how many experts it holds.")
            experts = int(found)
        for name, p in root.named_parameters():
            if p.shape[0] != experts and not (p.ndim == 2 and p.shape[0] % experts == 0 and p.shape[0] > experts):
                raise self.refuse(
                    f"{self.expert_root}.{name} {tuple(p.shape)} does not divide among {experts} experts."
                )
        return experts

    def _is_router(self, parameter: _Parameter) -> bool:
        if any(word in ROUTER_WORDS for word in parameter.path):
            return True
        shape = parameter.shape
        return len(shape) == 2 and shape == (self.experts, self.hidden)

    def _check_router(self) -> None:
        routers = [p for p in _parameters(self.layer) if len(p.shape) == 2 and self.component(p) == "router"]
        if not any(p.shape[0] == self.experts for p in routers):
            found = ", ".join(f"{'.'.join(p.path)} {p.shape}" for p in routers) or "no projection at all"
            raise self.refuse(f"no router scores exactly the {self.experts} experts of {self.expert_root}: {found}.")

    def _find_top_k(self) -> int:
        assert self.expert_root is not None
        block = self.expert_root.rpartition(".")[0]
        near = [self.modules[self.expert_root], self.modules[block]]
        routers = [m for n, m in self.modules.items() if n and any(w in ROUTER_WORDS for w in n.split("."))]
        found = _attribute((*routers, *near), TOP_K_WORDS)
        if found is None:
            # A router class that is named after its k ("Top1Router").
            named = {int(k) for m in routers for k in re.findall(r"Top(\d+)", type(m).__name__)}
            found = named.pop() if len(named) == 1 else _attribute((self.config,), TOP_K_WORDS)
        if found is None:
            raise self.refuse("nothing says how many experts a token uses.")
        top_k = int(found)
        if not 1 <= top_k <= self.experts:
            raise MoecapError(
                f"{self.prefix}: a token is to use {top_k} of {self.experts} experts; experts per token must lie "
                "between 1 and the number of experts. Correct the config."
            )
        return top_k

    # attention and dense blocks

    def _find_attention(self) -> tuple[str, ...]:
        found: list[str] = []
        for name, module in self.modules.items():
            if not name or any(name.startswith(f"{f}.") for f in found):
                continue
            holds_experts = self.expert_root is not None and f"{self.expert_root}.".startswith(f"{name}.")
            if _takes_cache(module) and not holds_experts and any(True for _ in module.parameters()):
                found.append(name)
        return tuple(found)

    def _find_mlp(self) -> tuple[str, ...]:
        """Blocks that lead from the hidden size to another width and back: outermost first."""
        found: list[str] = []
        for name, module in self.modules.items():
            if not name or any(name.startswith(f"{f}.") for f in (*found, *self.attention)) or name in self.attention:
                continue
            if self.expert_root is not None and (
                f"{self.expert_root}.".startswith(f"{name}.")
                or f"{name}.".startswith(f"{self.expert_root}.")
                or any(SHARED_WORD in word or word in ROUTER_WORDS for word in name.split("."))
            ):
                continue
            if _is_norm(module) or any(_takes_cache(m) for m in module.modules()):
                continue
            shapes = [tuple(p.shape) for p in module.parameters() if p.ndim == 2]
            if (
                any(s[1] == self.hidden for s in shapes)
                and any(s[0] == self.hidden for s in shapes)
                and len(shapes) > 1
            ):
                found.append(name)
        return tuple(found)

    def _find_direct_mlp(self) -> tuple[str, ...]:
        """Linear layers that lie in the layer itself, to another width and back, where it has no block of its own."""
        import torch

        linear = {n: m for n, m in self.layer.named_children() if isinstance(m, torch.nn.Linear)}
        up = [n for n, m in linear.items() if m.in_features == self.hidden]
        down = [n for n, m in linear.items() if m.out_features == self.hidden and n not in up]
        return (*up, *down) if up and down else ()

    # what the layer remembers

    def memory(self, kind: str, window: int | None, encoder: bool) -> Memory:
        if kind in CONSTANT:
            return self._constant_state(kind)
        if not self.attention:
            if kind in NO_CACHE or encoder:
                return Memory()
            raise self.refuse(f"the cache has {kind!r} for this layer, but no block of it takes a cache.")
        if kind in NO_CACHE:
            raise self.refuse(f"{', '.join(self.attention)} takes a cache, but the config gives this layer none.")
        if kind not in GROWING and kind != "shared":
            raise self.refuse(f"what {', '.join(self.attention)} keeps in a cache of kind {kind!r} is not known.")
        total = Memory(attention="none")
        for name in self.attention:
            one = self._attention_memory(self.modules[name], name)
            crosses = (
                not encoder
                and any(
                    word in name.lower().replace("_", "").replace("attention", "attn") or word in name.lower()
                    for word in CROSS_WORDS
                )
            ) or (
                not encoder
                and any(w in type(m).__name__.lower() for w in ("cross",) for m in self.modules[name].modules())
            )
            if crosses:
                total = replace(total, cross_kv_elements_per_token=one.kv_elements_per_token)
            elif total.kv_elements_per_token and replace(one, kv_elements_per_token=0) != replace(
                total, kv_elements_per_token=0, cross_kv_elements_per_token=0
            ):
                raise self.refuse(f"attention blocks of different shapes: {', '.join(self.attention)}.")
            else:
                kept = total.kv_elements_per_token + one.kv_elements_per_token
                heads = total.query_heads + one.query_heads
                total = replace(
                    one,
                    kv_elements_per_token=kept,
                    query_heads=heads,
                    cross_kv_elements_per_token=total.cross_kv_elements_per_token,
                )
        if encoder or kind == "shared":
            total = replace(total, kv_elements_per_token=0)
        name = GROWING.get(kind, "shared")
        if total.attention == "latent":
            name = "latent"
        return replace(total, attention=name, kv_window=None if encoder else window)

    def _attention_memory(self, block: torch.nn.Module, name: str) -> Memory:
        projections = {
            n: m for n, m in block.named_modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2
        }
        plain = {n.rpartition(".")[2]: m for n, m in projections.items() if "indexer" not in n and "compress" not in n}
        latent = _first(plain, LATENT_WORDS)
        indexer = sum(_out(m) for n, m in projections.items() if tuple(n.split(".")[-2:]) == INDEXER_KEY)
        unknown = sorted({n for n in self._indexer_words(block) if n not in INDEXER_WORDS})
        if unknown:
            raise self.refuse(f"what the indexer of {name} keeps beside its keys is not known ({', '.join(unknown)}).")
        holder = _holder(block, plain)
        output = _first(plain, OUTPUT_WORDS)
        if latent is not None:
            qk = _attribute((holder,), ("qk_head_dim",))
            nope, rope = _attribute((holder,), ("qk_nope_head_dim",)), _attribute((holder,), ("qk_rope_head_dim",))
            value = _attribute((holder, self.config), ("v_head_dim",))
            qk = qk if qk is not None else (nope or 0) + (rope or 0)
            heads = _attribute((holder, self.config), ("num_heads", "num_attention_heads"))
            if not (qk and value and heads):
                raise self.refuse(f"{name} compresses its KV but does not state its head dimensions.")
            return Memory("latent", _out(latent) + indexer, None, 0, int(heads), int(qk), int(value), 1)
        key, value = _first(plain, KEY_WORDS), _first(plain, VALUE_WORDS)
        head_dim = _attribute((holder, self.config), HEAD_DIM_WORDS)
        if head_dim is None:
            heads = _attribute((holder, self.config), ("num_heads", "num_attention_heads"))
            head_dim = self.hidden // int(heads) if heads else None
        if head_dim is None:
            raise self.refuse(f"{name} does not state the dimension of its heads.")
        head_dim = int(head_dim)
        fused, fused_kv = _first(plain, FUSED_QKV_WORDS), _first(plain, FUSED_KV_WORDS)
        if key is not None:
            keys, values = _out(key), _out(value) if value is not None else _out(key)
        elif fused_kv is not None:
            keys = values = _out(fused_kv) // 2
        elif fused is not None and output is not None:
            keys = values = (_out(fused) - output.weight.shape[1]) // 2
        else:
            raise self.refuse(f"{name} keeps a KV cache, but its key and value projections could not be found.")
        kv_heads = keys // head_dim
        if not kv_heads or keys % head_dim or values % kv_heads or output is None:
            raise self.refuse(f"{name}: keys of {keys} and values of {values} do not divide into heads of {head_dim}.")
        v_dim = values // kv_heads
        if output.weight.shape[1] % v_dim:
            raise self.refuse(
                f"{name}: an output projection of {output.weight.shape[1]} has no whole heads of {v_dim}."
            )
        heads = output.weight.shape[1] // v_dim
        if heads % kv_heads:
            raise self.refuse(f"{name} has {heads} query heads, which do not divide among {kv_heads} KV heads.")
        return Memory("full", keys + values + indexer, None, 0, heads, head_dim, v_dim, kv_heads)

    @staticmethod
    def _indexer_words(block: torch.nn.Module) -> set[str]:
        names = (n.split(".") for n, _ in block.named_parameters())
        return {words[words.index("indexer") + 1] for words in names if "indexer" in words}

    def _constant_state(self, kind: str) -> Memory:
        import torch

        elements = 0
        for name in self.attention:
            for module in self.modules[name].modules():
                if isinstance(module, torch.nn.Conv1d):
                    elements += module.out_channels * module.kernel_size[0]
            if kind == "conv":
                continue
            block = self.modules[name]
            for words in STATE_WORDS:
                values = [getattr(block, word, None) for word in words]
                if all(isinstance(v, int) for v in values):
                    elements += prod(values)
                    break
            else:
                raise self.refuse(f"{name} keeps a recurrent state whose dimensions could not be read.")
        if not self.attention:
            raise self.refuse(f"the cache has {kind!r} for this layer, but no block of it takes a cache.")
        return Memory("linear", state_elements=elements)


# -- from structure to numbers


def assemble(
    model: str,
    precision: str,
    structure: Skeleton,
    sizes: Mapping[tuple[int | None, str], int],
    *,
    kv_dtype_bytes: float = 2,
    embedding_row_bytes: int | None = None,
    unread: Mapping[str, int] | None = None,
    source: str = "config",
    notes: Iterable[str] = (),
) -> Anatomy:
    """Put a structure and the bytes per (layer, component) together; a layer of None is outside the layers."""
    params: dict[tuple[int | None, str], int] = defaultdict(int)
    flops: dict[tuple[int | None, str], int] = defaultdict(int)
    keys: dict[int | None, int] = defaultdict(int)
    replicated: dict[int | None, int] = defaultdict(int)
    widths: dict[int | None, int] = defaultdict(int)
    for part in structure.parts:
        keys[part.layer] += part.kv_params
        if part.component == "routed_experts":
            # The product that leads back to the model's width; of fused ones with as many outputs, the narrower.
            found = [m.columns for m in part.matrices if m.rows == structure.hidden_size]
            widths[part.layer] = min(filter(None, (widths[part.layer], *found)), default=0)
        replicated[part.layer] += part.replicated_params
        params[part.layer, part.component] += part.numel
        flops[part.layer, part.component] += part.flops
    described = []
    for index, layer in enumerate(structure.layers):
        values: dict[str, Any] = {}
        for component, name in LAYER_COMPONENTS.items():
            divisor = layer.experts if component == "routed_experts" else 1
            count, size = params[index, component], sizes.get((index, component), 0)
            divisor = divisor or 1
            values[f"{name}_params"] = count // divisor
            values[f"{name}_bytes"] = size // divisor if size % divisor == 0 else size / divisor
            if component != "norms":
                values[f"{name}_flops"] = flops[index, component] // divisor
        memory = layer.memory
        described.append(
            LayerKind(
                count=1,
                experts=layer.experts,
                top_k=layer.top_k,
                stack=layer.stack,
                attention=memory.attention,
                kv_elements_per_token=memory.kv_elements_per_token,
                kv_bytes_per_token=round(memory.kv_elements_per_token * kv_dtype_bytes),
                kv_window=memory.kv_window,
                state_bytes=round(memory.state_elements * kv_dtype_bytes),
                query_heads=memory.query_heads,
                qk_head_dim=memory.qk_head_dim,
                v_head_dim=memory.v_head_dim,
                kv_heads=memory.kv_heads,
                expert_width=widths[index],
                attention_kv_params=keys[index],
                attention_replicated_params=replicated[index],
                cross_kv_elements_per_token=memory.cross_kv_elements_per_token,
                **values,
            )
        )
    distinct = list(dict.fromkeys(described))
    layer_kind = tuple(distinct.index(kind) for kind in described)
    kinds = tuple(replace(kind, count=layer_kind.count(i)) for i, kind in enumerate(distinct))
    totals = {
        component: Component(
            sum(n for (_, c), n in params.items() if c == component),
            sum(n for (_, c), n in sizes.items() if c == component),
        )
        for component in COMPONENTS
    }
    total = structure.total_params
    idle = sum(kind.count * (kind.experts - kind.top_k) * kind.expert_params for kind in kinds)
    return Anatomy(
        model=model,
        precision=precision,
        total_params=total,
        active_params=total - idle,
        components=totals,
        kinds=kinds,
        layer_kind=layer_kind,
        hidden_size=structure.hidden_size,
        vocab_size=structure.vocab_size,
        tied_embeddings=structure.tied_embeddings,
        embedding_row_bytes=(
            embedding_row_bytes
            if embedding_row_bytes is not None
            else sum(
                totals["embedding"].bytes * part.numel // (totals["embedding"].params * part.shape[0])
                for part in structure.parts
                if part.embedding and part.layer is None
            )
        ),
        kv_dtype_bytes=kv_dtype_bytes,
        unread=dict(unread or {}),
        source=source,
        notes=(*structure.notes, *notes),
    )


def planned_sizes(structure: Skeleton, recipe: Recipe) -> dict[tuple[int | None, str], int]:
    """Bytes per (layer, component) if the model were stored by ``recipe``."""
    sizes: dict[tuple[int | None, str], int] = defaultdict(int)
    for part in structure.parts:
        sizes[part.layer, part.component] += recipe.part_bytes(part.name, part.numel, part.component, part.matrices)
    return dict(sizes)


def anatomy(
    model: str | Path | Mapping[str, Any],
    precision: str | Mapping[str, Any] | None = None,
    *,
    kv_dtype_bytes: float | None = None,
    name: str | None = None,
    catalogue: str | Path | None = None,
) -> Anatomy:
    """Count a model: parameters, bytes, FLOPs and KV per layer and component.

    Args:
        model: a catalogue name, a hub id, a checkpoint folder, a ``config.json``, or a config as a dict. A folder with
            safetensors is counted from their headers, unless ``precision`` asks for another than it has.
        precision: how the weights are to be stored: a name of ``config/catalogue/precisions.yaml``, a dtype
            (``bf16``), or a recipe (``weight_bits``, ``group_size``, ``symmetric``, ``scale_bits``, ``ignore``). None:
            as the checkpoint or config has it.
        kv_dtype_bytes: bytes of a KV element; None: that of the model's dtype.
        name: what to call the model; None: what was given.
        catalogue: the folder of catalogues; None: the project's.

    Raises:
        MoecapError: an unknown model, a checkpoint that is truncated or does not fit its config, top-k over experts.
        Refused: modules that could not be told apart.

    >>> anatomy("mixtral-8x7b").total_params
    46702792704
    """
    from moecap.model.resolve import resolve

    found = resolve(model, catalogue=catalogue)
    label = name or found.name
    structure = from_shapes(found.shapes) if found.shapes is not None else _cached(json.dumps(found.config))
    if kv_dtype_bytes is not None and not kv_dtype_bytes > 0:
        raise MoecapError(
            f"kv_dtype_bytes is {kv_dtype_bytes}; a KV element takes more than 0 bytes (bf16: 2, fp8: 1)."
        )
    kv_bytes = kv_dtype_bytes if kv_dtype_bytes is not None else 4 if structure.dtype == "float32" else 2
    if found.checkpoint is not None and precision is None:
        from moecap.model.stored import stored_sizes

        stored = stored_sizes(found.checkpoint, structure)
        return assemble(
            label,
            stored.precision,
            structure,
            stored.sizes,
            kv_dtype_bytes=kv_bytes,
            unread=stored.unread,
            source="checkpoint",
            notes=(*found.notes, *stored.notes),
        )
    recipe = _recipe(precision, structure, catalogue)
    return assemble(
        label,
        recipe.name,
        structure,
        planned_sizes(structure, recipe),
        kv_dtype_bytes=kv_bytes,
        notes=found.notes,
    )


def _recipe(precision: str | Mapping[str, Any] | None, structure: Skeleton, catalogue: str | Path | None) -> Recipe:
    if precision is not None:
        return resolve_precision(precision, catalogue)
    if structure.quantization:
        return recipe_from_quantization_config(structure.quantization)
    return resolve_precision(dtype_precision(structure.dtype), catalogue)


@lru_cache(maxsize=16)
def _cached(config: str) -> Skeleton:
    return skeleton(json.loads(config))


# -- shapes as data, for models that transformers does not ship


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
            memory = Memory(**group.get("memory", {}))
            for _ in range(int(group["count"])):
                number = len(layers)
                stack = group.get("stack", "decoder")
                layers.append(Layer(f"layers.{number}", stack, experts, top_k, memory))
                for key in ("attention", "attention_kv", "router", "expert", "shared", "dense_mlp", "norms", "other"):
                    for i, shape in enumerate(group.get(key, ())):
                        component = names.get(key, key)
                        copies = experts if key == "expert" else 1
                        name = f"layers.{number}.{key}.{i}"
                        matrix = ()
                        if len(shape) == 2:
                            plain = component not in {"router", "norms"}
                            matrix = (Matrix(shape[0], shape[1], name, copies, plain),)
                        full = (copies, *shape) if key == "expert" else tuple(shape)
                        kv = prod(full) if key == "attention_kv" else 0
                        parts.append(Part(name, full, component, number, matrix, kv_params=kv))
    except KeyError as error:
        raise MoecapError(f"Shapes given as data need the key {error}.") from error
    return Skeleton(tuple(parts), tuple(layers), bool(shapes["tied_embeddings"]), hidden, vocab)


# -- held against the running model


@dataclass(frozen=True)
class Measured:
    """What a real forward pass of a (small) model kept and did."""

    kv_elements_per_token: int
    state_elements: int
    top_k: int


def measure(config: PretrainedConfig, tokens: tuple[int, int] = (5, 9)) -> Measured:
    """Run a small model on random weights and read its cache and its routing: the count's independent check.

    The KV per token is the growth of the cache between two prompt lengths (both below any window); ``top_k`` is the
    number of expert ids per token that reach the block of experts, 0 if none do. The model is built for real, so its
    config must be small.

    Raises:
        MoecapError: the model cannot be built or run.
    """
    import torch

    caches = []
    chosen: set[int] = set()
    model = build(config, device="cpu").eval().float()

    def spy(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64) and value.ndim >= 2:
                mask = int(value.max()) <= 1 and value.shape[-1] > 2  # one column per expert, not one per choice
                if not mask:
                    chosen.add(int(value.shape[-1]))

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in EXPERT_WORDS:
            module.register_forward_pre_hook(spy, with_kwargs=True)
    with torch.no_grad(), _quiet():
        for length in tokens:
            ids = torch.arange(2, 2 + length).remainder(16)[None]
            extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {"use_cache": True}
            try:
                caches.append(model(input_ids=ids, **extra).past_key_values)
            except Exception as error:
                raise MoecapError(f"The model does not run: {type(error).__name__}: {_first_line(error)}") from error
    kept = [_cache_elements(cache) for cache in caches]
    grown = (kept[1][0] - kept[0][0]) // (tokens[1] - tokens[0])
    return Measured(grown, kept[1][1], max(chosen, default=0))


def _cache_elements(cache: Any) -> tuple[int, int]:
    """Elements that a cache holds: per-token ones, and constant state."""
    import torch

    growing = constant = 0
    cache = getattr(cache, "self_attention_cache", cache)
    constant += sum(t.numel() for t in getattr(cache, "linear_cache", ()) if isinstance(t, torch.Tensor))
    for layer in cache.layers:
        for name, value in vars(layer).items():
            tensors = (
                list(value.values())
                if isinstance(value, dict)
                else value
                if isinstance(value, (list, tuple))
                else [value]
            )
            count = sum(t.numel() for t in tensors if isinstance(t, torch.Tensor) and t.ndim > 1)
            if "conv" in name or "recurrent" in name or "state" in name:
                constant += count
            else:
                growing += count
    return growing, constant


# -- small things


def _parameters(module: torch.nn.Module) -> Iterator[_Parameter]:
    for name, owner in module.named_modules():
        prefix = tuple(name.split(".")) if name else ()
        for own, tensor in owner.named_parameters(recurse=False):
            yield _Parameter((*prefix, own), owner, tensor)


def _buffers(module: torch.nn.Module) -> Iterator[tuple[tuple[str, ...], torch.nn.Module]]:
    for name, owner in module.named_modules():
        prefix = tuple(name.split(".")) if name else ()
        for own, tensor in owner.named_buffers(recurse=False):
            if tensor is not None and own not in owner._non_persistent_buffers_set:
                yield (*prefix, own), owner


@lru_cache(maxsize=4096)
def _arguments(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(inspect.unwrap(cls.forward)).parameters)


def _takes_cache(module: torch.nn.Module) -> bool:
    return bool(_arguments(type(module)) & CACHE_ARGUMENTS)


def _is_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not _takes_cache(module)


def _is_linear(parameter: _Parameter) -> bool:
    import torch

    return isinstance(parameter.owner, torch.nn.Linear)


def _is_embedding(parameter: _Parameter) -> bool:
    import torch

    return isinstance(parameter.owner, torch.nn.Embedding)


def _is_convolution(module: torch.nn.Module) -> bool:
    import torch

    return isinstance(module, torch.nn.modules.conv._ConvNd)


def _attribute(holders: Iterable[Any], words: Iterable[str]) -> Any:
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


def _first(modules: Mapping[str, Any], words: Iterable[str]) -> Any:
    return next((modules[word] for word in words if word in modules), None)


def _holder(block: torch.nn.Module, projections: Mapping[str, torch.nn.Module]) -> torch.nn.Module:
    """The module that owns the projections: an attention block may be wrapped with its norms."""
    wanted = {id(m) for m in projections.values()}
    return max(block.modules(), key=lambda m: sum(id(c) in wanted for c in m.children()))


def _out(linear: Any) -> int:
    return int(linear.weight.shape[0])


def _text_model(model: PreTrainedModel) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The part of a model that generates text: all of it, or the language model inside a multimodal one."""
    for path in ("model.language_model", "language_model", "thinker.model"):
        module: Any = model
        for word in path.split("."):
            module = getattr(module, word, None)
            if module is None:
                break
        if module is not None:
            return module, ()
    return model, ()


def _path_of(model: torch.nn.Module, body: torch.nn.Module) -> tuple[str, ...]:
    return next(tuple(n.split(".")) if n else () for n, m in model.named_modules() if m is body)


def _stacks(body: torch.nn.Module) -> list[tuple[tuple[str, ...], torch.nn.ModuleList]]:
    """The outermost lists of modules that hold attention or experts: the layers, encoder first."""
    import torch

    found: list[tuple[tuple[str, ...], torch.nn.ModuleList]] = []
    for name, module in body.named_modules():
        path = tuple(name.split(".")) if name else ()
        if not isinstance(module, torch.nn.ModuleList) or any(path[: len(p)] == p for p, _ in found):
            continue
        if any(_takes_cache(m) for element in module for m in element.modules()):
            found.append((path, module))
    return found


def _cache_types(config: PretrainedConfig) -> tuple[list[str], list[int | None]]:
    """Per decoder layer what kind of cache transformers gives it, and the window after which it stops growing."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    types, options = get_layer_types_and_kwargs(config)
    return list(types), [option.get("sliding_window") for option in options]


def _check_experts(config: PretrainedConfig, layers: list[Layer]) -> None:
    """A config that speaks of routed experts must have given some layer experts."""
    if any(getattr(config, flag, None) is False for flag in MOE_FLAGS):
        return
    told = [w for w in TOP_K_WORDS if isinstance(getattr(config, w, None), int) and getattr(config, w) > 1]
    wanted = _attribute((config,), EXPERTS_WORDS)
    if wanted and wanted > 1 and told and not any(layer.experts for layer in layers):
        raise Refused(f"The config speaks of {wanted} experts ({told[0]}), but no layer has a block of them.")


def _conversions(model: PreTrainedModel) -> Any:
    """transformers' own table from a checkpoint's tensor names to the model's, for :mod:`moecap.model.stored`."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    with _quiet():
        return get_model_conversion_mapping(model)


def _quantization(config: PretrainedConfig) -> Mapping[str, Any] | None:
    for holder in (config, config.get_text_config(decoder=True)):
        found = getattr(holder, "quantization_config", None)
        if found:
            return found if isinstance(found, Mapping) else found.to_dict()
    return None


def _without_quantization(config: PretrainedConfig) -> PretrainedConfig:
    from copy import deepcopy

    config = deepcopy(config)
    for holder in (config, config.get_text_config(decoder=True)):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    return config


def _model_type_of(architectures: Iterable[str]) -> str | None:
    from transformers.models.auto import modeling_auto

    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for model_type, classes in mapping.items():
            for architecture in architectures:
                if architecture == classes or (isinstance(classes, tuple) and architecture in classes):
                    return model_type
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class _quiet:
    """Silence transformers' warnings on configs: ours say what matters."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("transformers")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        self.caught.__exit__(*error)
        self.logger.setLevel(self.level)
