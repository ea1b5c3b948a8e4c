"""What each parameter of a built model is, and what each layer keeps: the model's skeleton.

No branch on a model's name or ``model_type``: what a parameter is follows from the module that holds it (a parameter
with a leading expert dimension, a projection to the number of experts, a block that takes the KV cache) and from one
small table of words (:mod:`moecap.model.words`). What cannot be told apart is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError
from moecap.model.attention import AttentionReader
from moecap.model.built import build, conversions, load_config, quantization, read_json
from moecap.model.layouts import Matrix
from moecap.model.modules import (
    Parameter,
    attribute,
    buffers,
    is_convolution,
    is_embedding,
    is_linear,
    is_norm,
    parameters,
    path_of,
    takes_cache,
)
from moecap.model.skeleton import Layer, Part, Refused, Skeleton
from moecap.model.stated import check_stated, states_experts
from moecap.model.structure import COMPONENTS
from moecap.model.words import (
    EXPERT_WORDS,
    EXPERTS_WORDS,
    EXTRA_LAYER_WORDS,
    FUSED_KV_WORDS,
    FUSED_QKV_WORDS,
    HEADS_WORDS,
    KEY_WORDS,
    KV_HEADS_WORDS,
    OTHER_LIMIT,
    ROUTER_WORDS,
    SHARED_LATENT_WORDS,
    SHARED_WORD,
    STATE_DTYPE_WORDS,
    TOP_K_WORDS,
    VALUE_WORDS,
    ZERO_EXPERTS_WORDS,
)

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


def skeleton(source: str | Path | Mapping[str, Any] | PretrainedConfig) -> Skeleton:
    """The structure of the model that a config (or its path) describes, held against what the config states.

    Raises:
        Refused: modules that could not be told apart, by name.
        MoecapError: an unknown or impossible config, keys of it that the built model does not show, or more experts per
            token than there are.
    """
    from transformers import PretrainedConfig

    if isinstance(source, PretrainedConfig):
        config, stated, where = source, source.to_diff_dict(), "the given config"
    else:
        stated, where = read_json(source)
        config = load_config(source)
    found = _Model(build(config), config).skeleton()
    if states_experts(stated, config) and not any(layer.experts for layer in found.layers):
        raise Refused(f"{where} speaks of {states_experts(stated, config)} experts, but no layer has a block of them.")
    return found if source is config else check_stated(found, stated, config, where)


class _Model:
    """Reads a built model, part by part."""

    def __init__(self, model: PreTrainedModel, config: PretrainedConfig) -> None:
        self.model, self.config = model, config
        self.text = config.get_text_config(decoder=True)
        self.parts: list[Part] = []
        self.layers: list[Layer] = []
        self.buffers: dict[str, tuple[str, int | None]] = {}
        self.left_over: list[str] = []
        self.seen: set[int] = set()
        self.notes: list[str] = []

    def skeleton(self) -> Skeleton:
        model, text = self.model, self.text
        try:
            embedding: Any = model.get_input_embeddings()
        except NotImplementedError:  # several models in one, as in speech to speech
            raise Refused(f"{type(model).__name__} does not say which embedding its text comes in by.") from None
        vocab, hidden = (int(n) for n in embedding.weight.shape)
        head: Any = model.get_output_embeddings()
        body = text_model(model)
        self._read_stacks(body, hidden)
        tied = self._read_outside(body, head)
        self._note_what_is_left()
        state = next((value for word in STATE_DTYPE_WORDS if isinstance(value := getattr(text, word, None), str)), None)
        if state is None and any(layer.memory.recurrent_elements for layer in self.layers):
            self.notes.append("The config does not say the dtype of the recurrent state; it is counted at the model's.")
        return Skeleton(
            parts=tuple(self.parts),
            layers=tuple(self.layers),
            tied_embeddings=tied,
            hidden_size=hidden,
            vocab_size=vocab,
            dtype=str(getattr(text, "dtype", None) or getattr(self.config, "dtype", None) or "bfloat16").split(".")[-1],
            state_dtype=state,
            quantization=quantization(self.config),
            buffers=self.buffers,
            renamings=conversions(model),
            extra_layers=attribute((self.config, text), EXTRA_LAYER_WORDS) or 0,
            ignored=tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()),
            notes=tuple(self.notes),
        )

    # the layers

    def _read_stacks(self, body: torch.nn.Module, hidden: int) -> None:
        stacks = _stacks(body)
        if not stacks:
            raise Refused(f"{type(self.model).__name__}: no list of layers with attention or experts was found.")
        prefix_of_body = path_of(self.model, body)
        types, windows = _cache_types(self.text)
        per_layer = dict(enumerate(self.text.per_layer_config))
        decoder_index = 0
        for path, stack in stacks:
            encoder = "encoder" in path
            for index, module in enumerate(stack):
                prefix = ".".join(x for x in (*prefix_of_body, *path, str(index)) if x)
                own = self.text if encoder else per_layer.get(decoder_index, self.text)
                reader = LayerReader(module, prefix, hidden, own)
                if encoder:
                    kind, window = "full_attention", None
                elif decoder_index < len(types):
                    kind, window = types[decoder_index], windows[decoder_index]
                else:
                    kind, window = "shared", None
                decoder_index += not encoder
                self._read_layer(reader, module, kind, window, encoder)

    def _read_layer(
        self, reader: LayerReader, module: torch.nn.Module, kind: str, window: int | None, encoder: bool
    ) -> None:
        number, prefix = len(self.layers), reader.prefix
        for parameter in parameters(module):
            if id(parameter.tensor) in self.seen:
                continue
            self.seen.add(id(parameter.tensor))
            part = reader.part(parameter, number)
            if part.component == "other":
                self.left_over.append(part.name)
            self.parts.append(part)
        for buffer in buffers(module):
            name, component = f"{prefix}.{'.'.join(buffer.path)}", reader.component(buffer)
            # What corrects a router's scores is learnt, though it is no parameter; a table of ids is not.
            if component == "router" and buffer.tensor.is_floating_point():
                self.parts.append(Part(name, buffer.shape, component, number))
            else:
                self.buffers[name] = (component, number)
        stack = "encoder" if encoder else "decoder"
        memory = reader.memory(kind, window, encoder)
        self.layers.append(Layer(prefix, stack, reader.experts, reader.top_k, memory, reader.zero_experts))
        self.notes += [note for note in reader.notes if note not in self.notes]

    # outside the layers

    def _read_outside(self, body: torch.nn.Module, head: Any) -> bool:
        """Embedding, head, last norm; whether embedding and head are one."""
        import torch

        names = {id(p): n for n, p in reversed([*self.model.named_parameters(remove_duplicate=False)])}
        head_ids = {id(p) for p in head.parameters()} if head is not None else set()
        for parameter in (*parameters(body), *(parameters(head) if head is not None else ())):
            if id(parameter.tensor) in self.seen:
                continue
            self.seen.add(id(parameter.tensor))
            name, shape = names.get(id(parameter.tensor), ".".join(parameter.path)), parameter.shape
            embeds = is_embedding(parameter)
            if embeds:
                component = "embedding"
            elif id(parameter.tensor) in head_ids:
                component = "lm_head"
            elif is_norm(parameter.owner) or (len(shape) == 1 and "norm" in name):
                component = "norms"
            else:
                component = "other"
                self.left_over.append(name)
            matrix = () if len(shape) != 2 or embeds else (Matrix(shape[0], shape[1], name),)
            self.parts.append(Part(name, shape, component, None, matrix, embeds))
        if head is None:
            return True
        return any(head.weight is m.weight for m in self.model.modules() if isinstance(m, torch.nn.Embedding))

    def _note_what_is_left(self) -> None:
        outside = sum(p.numel() for p in self.model.parameters() if id(p) not in self.seen)
        if outside:
            self.notes.append(f"{outside} parameters outside the text model (vision, audio) are not counted.")
        if not self.left_over:
            return
        other, total = (sum(p.numel for p in self.parts if p.component in c) for c in ({"other"}, COMPONENTS))
        kinds = sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in self.left_over})
        if other > OTHER_LIMIT * total:
            raise Refused(f"{other} of {total} parameters belong to no component that is known: {', '.join(kinds)}.")
        self.notes.append(f"Counted as 'other': {', '.join(kinds)}.")


class LayerReader:
    """Tells what the parameters of one layer are."""

    def __init__(self, layer: torch.nn.Module, prefix: str, hidden: int, config: PretrainedConfig) -> None:
        self.layer, self.prefix, self.hidden, self.config = layer, prefix, hidden, config
        self.notes: list[str] = []
        self.modules = dict(layer.named_modules())
        self.experts = self.top_k = self.zero_experts = 0
        self.expert_root = self._find_experts()
        if self.expert_root is not None:
            self.experts = self._count_experts(self.modules[self.expert_root])
        self.attention = self._find_attention()
        self.mlp = self._find_mlp()
        self.direct_mlp = () if self.mlp or self.expert_root is not None else self._find_direct_mlp()
        if self.expert_root is not None:
            self._check_router()
            self.top_k = self._find_top_k()

    def refuse(self, reason: str) -> Refused:
        return Refused(f"{self.prefix} ({type(self.layer).__name__}): {reason}")

    def memory(self, kind: str, window: int | None, encoder: bool) -> Any:
        """What the layer keeps between tokens, a :class:`~moecap.model.skeleton.Memory`."""
        blocks = {name: self.modules[name] for name in self.attention}
        place = f"{self.prefix} ({type(self.layer).__name__})"
        return AttentionReader(blocks, self.hidden, self.config, place).memory(kind, window, encoder)

    # what a parameter is

    def part(self, parameter: Parameter, number: int) -> Part:
        """A parameter with all that is told of it."""
        component = self.component(parameter)
        name, shape = f"{self.prefix}.{'.'.join(parameter.path)}", parameter.shape
        if component == "routed_experts" and len(shape) == 3 and shape[0] == self.experts + self.zero_experts:
            # The library makes room for the choices that compute nothing; a checkpoint has no weights for them.
            shape = (self.experts, *shape[1:])
        kv, replicated = self._attention_split(parameter) if component == "attention" else (0, 0)
        matrices = self._matrices(parameter, shape, component)
        return Part(name, shape, component, number, matrices, False, kv, replicated)

    def component(self, parameter: Parameter) -> str:
        path, shape = parameter.path, parameter.shape
        for depth in range(len(path) - 1, 0, -1):
            module = self.modules.get(".".join(path[:depth]))
            if module is not None and is_norm(module):
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
        return self._beside_experts(inside, shape)

    def _beside_experts(self, inside: str, shape: tuple[int, ...]) -> str:
        """What is left: projections between the hidden size and that of the experts, or nothing that is known."""
        block = self.expert_root.rpartition(".")[0] if self.expert_root else ""
        if not block or not inside.startswith(f"{block}.") or len(shape) < 2:
            return "other"
        others = set(shape) - {self.hidden}
        if len(shape) == 2 and self.hidden in shape and len(others) == 1 and others <= self.expert_sizes():
            return "other"
        raise self.refuse(f"{inside} {shape} lies beside the experts and is neither router nor shared expert.")

    def expert_sizes(self) -> set[int]:
        """The sizes that all matrices of an expert share: what it takes in and gives out; its width too if ungated."""
        if self.expert_root is None:
            return set()
        shapes = [set(p.shape[-2:]) for p in self.modules[self.expert_root].parameters() if p.ndim >= 2]
        return set.intersection(*shapes) if shapes else set()

    def _attention_split(self, parameter: Parameter) -> tuple[int, int]:
        """Of an attention parameter: how much makes keys and values, and how much every rank keeps whole."""
        words = set(parameter.path)
        if words & SHARED_LATENT_WORDS:
            return 0, prod(parameter.shape)
        if words & {*KEY_WORDS, *VALUE_WORDS, *FUSED_KV_WORDS}:
            return prod(parameter.shape), 0
        if words & set(FUSED_QKV_WORDS):
            owners = self._owners(parameter)
            heads = attribute((parameter.owner, *owners, self.config), HEADS_WORDS)
            kv_heads = attribute((*owners, self.config), KV_HEADS_WORDS)
            if heads and kv_heads:
                return prod(parameter.shape) * 2 * kv_heads // (heads + 2 * kv_heads), 0
        return 0, 0

    def _owners(self, parameter: Parameter) -> tuple[Any, ...]:
        names = (".".join(parameter.path[:depth]) for depth in range(len(parameter.path) - 1, 0, -1))
        return tuple(self.modules[name] for name in names if name in self.modules)

    def _matrices(self, parameter: Parameter, shape: tuple[int, ...], component: str) -> tuple[Matrix, ...]:
        """The matrices of a parameter as products use them: (out, in) each, an expert's apart."""
        name = f"{self.prefix}.{'.'.join(parameter.path)}"
        if len(shape) < 2 or component == "norms" or parameter.path[-1].endswith("bias") or is_embedding(parameter):
            return ()
        if component == "routed_experts" and not is_linear(parameter):
            return self._expert_matrices(parameter.path[-1], shape, name)
        if len(shape) == 3 and not is_convolution(parameter.owner):
            return (Matrix(shape[1], shape[2], name, shape[0]),)
        plain = is_linear(parameter) and component != "router"
        return (Matrix(shape[0], prod(shape[1:]), name, quantizable=plain and len(shape) == 2),)

    def _expert_matrices(self, word: str, shape: tuple[int, ...], name: str) -> tuple[Matrix, ...]:
        leading = shape[0] == self.experts and len(shape) > 2
        if len(shape) == 2 and shape[0] == self.experts:
            return ()  # a bias or scale per expert
        rows, columns = (shape[1], shape[2]) if leading else (shape[0] // self.experts, shape[1])
        taken_in = self.hidden if self.hidden in self.expert_sizes() else self._latent_size()
        reads_hidden = not any(part in word for part in ("down", "w2", "output"))
        if leading and (columns if reads_hidden else rows) != taken_in:
            rows, columns = columns, rows
        halves = 2 if "gate_up" in word else 1
        return (Matrix(rows // halves, columns, name, halves * self.experts),)

    def _latent_size(self) -> int:
        """The size that experts take in where projections beside them lead from the hidden size to another."""
        block = self.expert_root.rpartition(".")[0] if self.expert_root else ""
        for name, module in self.modules[block].named_children():
            weight = getattr(module, "weight", None)
            inside = f"{block}.{name}" if block else name
            if weight is None or weight.ndim != 2 or inside == self.expert_root or SHARED_WORD in name:
                continue
            if weight.shape[1] == self.hidden and int(weight.shape[0]) in self.expert_sizes():
                return int(weight.shape[0])
        return self.hidden

    # experts and router

    def _find_experts(self) -> str | None:
        roots: list[str] = []
        for name, module in self.modules.items():
            own = list(module.parameters(recurse=False))
            by_word = name.rpartition(".")[2] in EXPERT_WORDS and any(True for _ in module.parameters())
            by_shape = any(p.ndim == 3 for p in own) and not is_convolution(module) and SHARED_WORD not in name
            if by_word or (by_shape and not any(name == r or name.startswith(f"{r}.") for r in roots)):
                roots.append(name)
        roots = [r for r in roots if not any(r != o and r.startswith(f"{o}.") for o in roots)]
        if len(roots) > 1:
            raise self.refuse(f"more than one set of routed experts: {', '.join(roots)}.")
        return roots[0] if roots else None

    def _count_experts(self, root: torch.nn.Module) -> int:
        import torch

        if isinstance(root, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            children = [child for child in root.children() if any(True for _ in child.parameters())]
            shapes = {tuple((n, tuple(p.shape)) for n, p in child.named_parameters()) for child in children}
            if len(shapes) != 1:
                raise self.refuse(f"{self.expert_root} holds experts of {len(shapes)} different shapes.")
            return len(children)
        experts = self._stacked_experts(root)
        for name, p in root.named_parameters():
            whole = p.ndim == 2 and p.shape[0] % experts == 0 and p.shape[0] > experts
            if p.shape[0] not in (experts, experts + self.zero_experts) and not whole:
                raise self.refuse(
                    f"{self.expert_root}.{name} {tuple(p.shape)} does not divide among {experts} experts."
                )
        return experts

    def _stacked_experts(self, root: torch.nn.Module) -> int:
        """Experts in parameters that hold all of them, by their leading dimension."""
        leading = sorted({int(p.shape[0]) for p in root.parameters() if p.ndim == 3})
        self.zero_experts = attribute((root, self.config), ZERO_EXPERTS_WORDS) or 0
        if self.zero_experts and leading in ([leading[-1] - self.zero_experts, leading[-1]], leading[:1]):
            self.notes.append(
                f"The router also chooses among {self.zero_experts} experts that compute nothing: a token uses at most "
                "as many experts as are counted, mostly fewer."
            )
            return leading[0]
        if len(leading) > 1:
            raise self.refuse(f"{self.expert_root} has parameters for {' and '.join(map(str, leading))} experts.")
        if leading:
            return leading[0]
        found = attribute((root, *root.modules()), EXPERTS_WORDS)
        if found is None:
            raise self.refuse(f"{self.expert_root} does not say how many experts it holds.")
        return found

    def _is_router(self, parameter: Parameter) -> bool:
        if any(word in ROUTER_WORDS for word in parameter.path):
            return True
        shape = parameter.shape
        return len(shape) == 2 and shape == (self.experts, self.hidden)

    def _check_router(self) -> None:
        routers = [p for p in parameters(self.layer) if len(p.shape) == 2 and self.component(p) == "router"]
        if not any(p.shape[0] == self.experts + self.zero_experts for p in routers):
            found = ", ".join(f"{'.'.join(p.path)} {p.shape}" for p in routers) or "no projection at all"
            raise self.refuse(f"no router scores exactly the {self.experts} experts of {self.expert_root}: {found}.")

    def _find_top_k(self) -> int:
        assert self.expert_root is not None
        block = self.expert_root.rpartition(".")[0]
        near = [self.modules[self.expert_root], self.modules[block]]
        routers = [m for n, m in self.modules.items() if n and any(w in ROUTER_WORDS for w in n.split("."))]
        found = attribute((*routers, *near), TOP_K_WORDS)
        if found is None:
            # A router class that is named after its k ("Top1Router").
            named = {int(k) for m in routers for k in re.findall(r"Top(\d+)", type(m).__name__)}
            found = named.pop() if len(named) == 1 else attribute((self.config,), TOP_K_WORDS)
        if found is None:
            raise self.refuse("nothing says how many experts a token uses.")
        if not 1 <= found <= self.experts:
            raise MoecapError(
                f"{self.prefix}: a token is to use {found} of {self.experts} experts; experts per token must lie "
                "between 1 and the number of experts. Correct the config."
            )
        return found

    # attention and dense blocks

    def _find_attention(self) -> tuple[str, ...]:
        found: list[str] = []
        for name, module in self.modules.items():
            if not name or any(name.startswith(f"{f}.") for f in found):
                continue
            holds_experts = self.expert_root is not None and f"{self.expert_root}.".startswith(f"{name}.")
            if takes_cache(module) and not holds_experts and any(True for _ in module.parameters()):
                found.append(name)
        return tuple(found)

    def _find_mlp(self) -> tuple[str, ...]:
        """Blocks that lead from the hidden size to another width and back: outermost first."""
        found: list[str] = []
        for name, module in self.modules.items():
            if not name or any(name.startswith(f"{f}.") for f in (*found, *self.attention)) or name in self.attention:
                continue
            if self._belongs_to_experts(name) or is_norm(module) or any(takes_cache(m) for m in module.modules()):
                continue
            shapes = [tuple(p.shape) for p in module.parameters() if p.ndim == 2]
            to, back = (any(s[side] == self.hidden for s in shapes) for side in (1, 0))
            if to and back and len(shapes) > 1:
                found.append(name)
        return tuple(found)

    def _belongs_to_experts(self, name: str) -> bool:
        if self.expert_root is None:
            return False
        inside, root = f"{name}.", f"{self.expert_root}."
        words = name.split(".")
        return (
            root.startswith(inside)
            or inside.startswith(root)
            or any(SHARED_WORD in word or word in ROUTER_WORDS for word in words)
        )

    def _find_direct_mlp(self) -> tuple[str, ...]:
        """Linear layers that lie in the layer itself, to another width and back, where it has no block of its own."""
        import torch

        linear = {n: m for n, m in self.layer.named_children() if isinstance(m, torch.nn.Linear)}
        up = [n for n, m in linear.items() if m.in_features == self.hidden]
        down = [n for n, m in linear.items() if m.out_features == self.hidden and n not in up]
        return (*up, *down) if up and down else ()


def text_model(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a model that generates text: all of it, or the language model inside a multimodal one."""
    for path in ("model.language_model", "language_model", "thinker.model"):
        module: Any = model
        for word in path.split("."):
            module = getattr(module, word, None)
            if module is None:
                break
        if module is not None:
            return module
    return model


def _stacks(body: torch.nn.Module) -> list[tuple[tuple[str, ...], torch.nn.ModuleList]]:
    """The outermost lists of modules that hold attention or experts: the layers, encoder first."""
    import torch

    found: list[tuple[tuple[str, ...], torch.nn.ModuleList]] = []
    for name, module in body.named_modules():
        path = tuple(name.split(".")) if name else ()
        if not isinstance(module, torch.nn.ModuleList) or any(path[: len(p)] == p for p, _ in found):
            continue
        if any(takes_cache(m) for element in module for m in element.modules()):
            found.append((path, module))
    return found


def _cache_types(config: PretrainedConfig) -> tuple[list[str], list[int | None]]:
    """Per decoder layer what kind of cache transformers gives it, and the window after which it stops growing."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    types, options = get_layer_types_and_kwargs(config)
    windows = [option.get("sliding_window") for option in options]
    compressed = [getattr(option.get("config"), "sliding_window", None) for option in options]
    return list(types), [w if w is not None else c for w, c in zip(windows, compressed, strict=True)]
