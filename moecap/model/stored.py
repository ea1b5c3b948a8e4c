"""Bytes of weights as a checkpoint stores them, per layer and component. No torch.

A checkpoint is read by its safetensors headers alone. Each tensor goes to the layer and component of the module that it
belongs to, by transformers' own table of names. How many weights a packed tensor holds follows from its dtype, its
shape and the shape of the parameter, tensor by tensor; then the weights per layer and component must be those of the
model, so that a checkpoint that does not fit its config is an error, not a wrong count.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError
from moecap.model.headers import DTYPE_BITS, StoredTensor, read_checkpoint
from moecap.model.names import alone
from moecap.model.recipes import DTYPE_PRECISION

if TYPE_CHECKING:
    from moecap.model.skeleton import Part, Skeleton

#: Last parts of the names of tensors that hold a module's weights.
WEIGHTS = ("weight", "qweight", "weight_packed", "W_q")
#: Endings of the names of fused parameters whose weights are packed (gpt-oss, fused experts).
PACKED_ENDINGS = ("_blocks", "_packed", "_qweight")
#: Endings of tensors that go with a weight but hold no weight themselves.
COMPANIONS = (
    "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_zero_point", "weight_zp", "weight_g_idx",
    "weight_shape", "weight_global_scale", "input_scale", "input_global_scale", "input_zero_point", "activation_scale",
    "output_scale", "output_zero_point", "input_scale_ub", "k_scale", "v_scale", "q_scale", "kv_scale", "k_zero_point",
    "v_zero_point", "k_global_scale", "v_global_scale", "k_bias", "v_bias", "scales", "biases", "qzeros", "g_idx",
    "scale", "scale_inv", "zero_point", "zeros", "shape", "global_scale", "pre_quant_scale", "smooth_scale", "SCB",
    "weight_format", "absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state", "bitsandbytes__nf4",
    "bitsandbytes__fp4",
)  # fmt: skip
#: Bits that a weight may take in a tensor of a dtype that packs several into an element.
PACKED_BITS = {
    "U8": (4, 8, 6, 2, 3, 1), "I8": (4, 8, 2), "I32": (4, 8, 2, 3, 5, 6, 7, 1), "U32": (4, 8, 2, 3, 5, 6, 7, 1),
    "I16": (4, 8, 2),
}  # fmt: skip

#: Tensors of a checkpoint that decoding text does not read, by a word in their name.
UNREAD_WORDS = {
    "mtp": "mtp", "nextn": "mtp", "vision": "vision", "visual": "vision", "image": "vision", "audio": "audio",
    "multi_modal_projector": "vision", "mm_projector": "vision", "rotary_emb": "rotary", "rotary_pos_emb": "rotary",
}  # fmt: skip

Place = tuple[int | None, str]


@dataclass(frozen=True)
class StoredSizes:
    """Bytes of a checkpoint per (layer, component), and of what decoding does not read, by name."""

    sizes: Mapping[Place, int]
    unread: Mapping[str, int]
    main_dtype: str
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, Place] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values()) + sum(self.unread.values())


def stored_sizes(folder: str | Path, structure: Skeleton) -> StoredSizes:
    """Attribute every tensor of a checkpoint to the layer and component that it belongs to.

    Raises:
        MoecapError: tensors that the model has no place for, or parameters that the checkpoint lacks.
    """
    folder = Path(folder)
    checkpoint = read_checkpoint(folder)
    places = _Places(structure)
    if any(tensor.names for tensor in checkpoint.tensors):
        checkpoint = replace(checkpoint, tensors=tuple(map(places.in_our_words, checkpoint.tensors)))
    sizes: dict[Place, int] = defaultdict(int)
    elements: dict[Place, int] = defaultdict(int)
    unread: dict[str, int] = defaultdict(int)
    attributed: dict[str, Place] = {}
    unknown: list[str] = []
    for tensor in checkpoint.tensors:
        place = places.find(tensor.name)
        if place is not None:
            attributed[tensor.name] = place
            sizes[place] += tensor.bytes
        elif (reason := places.unread(tensor.name)) is not None:
            unread[reason] += tensor.bytes
        else:
            unknown.append(tensor.name)
    if unknown:
        raise MoecapError(
            f"{folder}: {len(unknown)} tensors belong to no part of the model that its config describes, e.g. "
            f"{', '.join(sorted(unknown)[:3])}. The config.json is not this checkpoint's, or the model has parts that "
            "transformers does not build."
        )
    for name, count in places.weights(t for t in checkpoint.tensors if t.name in attributed).items():
        elements[attributed[name]] += count
    _check_whole(folder, structure, elements)
    notes = [f"{size} bytes of {name} are stored but not read when decoding." for name, size in unread.items()]
    return StoredSizes(
        dict(sizes), dict(unread), _main_dtype(checkpoint.tensors), (*checkpoint.notes, *notes), attributed
    )


def _check_whole(folder: Path, structure: Skeleton, elements: Mapping[Place, int]) -> None:
    """Every layer and component holds as many weights as the config describes.

    Raises:
        MoecapError: names the first that does not.
    """
    expected: dict[Place, int] = Counter()
    for part in structure.parts:
        expected[part.layer, part.component] += part.numel
    for place in sorted({*expected, *elements}, key=lambda p: (p[0] is None, p[0] or 0, p[1])):
        want, have = expected.get(place, 0), elements.get(place, 0)
        if have == want:
            continue
        where = f"layer {place[0]}" if place[0] is not None else "outside the layers"
        raise MoecapError(
            f"{folder}: the checkpoint holds {have} weights of {place[1]} ({where}), its config describes {want}. It "
            "is incomplete, or the config.json is not its own."
        )


class _Places:
    """Finds the layer and component of a checkpoint's tensor names."""

    def __init__(self, structure: Skeleton) -> None:
        self.parts: dict[str, Part] = {p.name: p for p in structure.parts}
        self.experts = {
            p.name: structure.layers[p.layer].experts if p.layer is not None else 0 for p in structure.parts
        }
        self.buffers = {name: (layer, component) for name, (component, layer) in structure.buffers.items()}
        self.modules: dict[str, Counter[Place]] = defaultdict(Counter)
        for part in structure.parts:
            for prefix in _prefixes(part.name):
                self.modules[prefix][part.layer, part.component] += part.numel
        self.layer_prefixes = {layer.prefix for layer in structure.layers}
        self.stacks = {prefix.rpartition(".")[0] for prefix in self.layer_prefixes}
        self.renamings, self.converters = _split(structure.renamings)
        self.tied = structure.tied_embeddings
        self.extra_layers, self.ignored = structure.extra_layers, structure.ignored
        self._cache: dict[str, str] = {}

    def renamed(self, name: str) -> str:
        """A checkpoint's name as the model's: transformers' renamings, then its base prefix."""
        found = self._cache.get(name)
        if found is None:
            found = name
            for transform in self.renamings:
                found = transform.rename_source_key(found)[0]
            for transform in self.converters:
                found, matched = transform.rename_source_key(found)
                if matched is not None:
                    break
            head = found.partition(".")[0]
            if head not in self.modules and found not in self.parts:
                base = next((s.partition(".")[0] for s in self.stacks), "")
                if any(m.startswith(f"{base}.{head}") for m in (*self.modules, *self.parts)):
                    found = f"{base}.{found}"
                elif alone(found) != found:
                    found = alone(found)
            self._cache[name] = found
        return found

    def in_our_words(self, tensor: StoredTensor) -> StoredTensor:
        """A tensor of a format with names of its own, under the name that this model has for it."""
        return replace(tensor, name=next((name for name in tensor.names if self.find(name)), tensor.name))

    def find(self, name: str) -> Place | None:
        """Layer and component of a tensor; None: the model has no place for it."""
        part = self.part(name)
        if part is not None:
            return part.layer, part.component
        new = self.renamed(name)
        if new in self.buffers:
            return self.buffers[new]
        if self._outside_layers(new) or _unread_word(name):
            return None
        for prefix in reversed(list(_prefixes(new))):
            if prefix in self.layer_prefixes or prefix in self.stacks:
                return None
            known = self.modules.get(prefix)
            if known is None:
                base = next((p for p in _parameter_bases(new) if p in self.parts), None)
                if base is not None:
                    return self.parts[base].layer, self.parts[base].component
                continue
            if len(known) == 1:
                return next(iter(known)) if prefix.count(".") or prefix in {"lm_head"} else None
            return max(known, key=lambda place: known[place]) if _is_companion(new) else None
        return None

    def part(self, name: str) -> Part | None:
        """The parameter whose weights (all, or an expert's) a tensor holds; None: it holds none."""
        found = self.parts.get(self.renamed(name))
        if found is not None:
            return found
        module, _, last = name.rpartition(".")
        if last in WEIGHTS and module:
            return self.parts.get(self.renamed(f"{module}.weight"))
        ending = next((e for e in PACKED_ENDINGS if last.endswith(e)), None)
        return self.parts.get(self.renamed(name.removesuffix(ending))) if ending else None

    def weights(self, tensors: Iterable[StoredTensor]) -> dict[str, int]:
        """How many weights of the model each tensor holds, by name; 0 for what goes with weights.

        Raises:
            MoecapError: a dtype and shape in which the parameter could not be stored.
        """
        found: dict[str, int] = {}
        of_part: dict[str, list[StoredTensor]] = defaultdict(list)
        for tensor in tensors:
            part = None if self.renamed(tensor.name) in self.buffers else self.part(tensor.name)
            if part is not None:
                of_part[part.name].append(tensor)
            beside = part is None and (_is_companion(tensor.name) or tensor.name.endswith(".bias"))
            found[tensor.name] = 0 if beside or self.renamed(tensor.name) in self.buffers else tensor.elements
        for name, own in of_part.items():
            part = self.parts[name]
            share = self._share(part, len(own))
            found |= {tensor.name: _weights(tensor, part, share) for tensor in own}
        return found

    def _share(self, part: Part, tensors: int) -> int:
        """How many weights each of so many tensors of a parameter holds: all, an expert's, or one projection of it."""
        experts = self.experts[part.name] if part.component == "routed_experts" else 0
        shares = {part.numel, *(matrix.rows * matrix.columns for matrix in part.matrices)}
        if experts and part.numel % experts == 0 and len(part.shape) > 1:
            shares.add(part.numel // experts)
        return max((s for s in shares if part.numel // s >= tensors), default=min(shares))

    def _outside_layers(self, name: str) -> bool:
        """Whether a name lies in a stack of layers, but beyond those that the model has."""
        for stack in self.stacks:
            if name.startswith(f"{stack}."):
                index = name[len(stack) + 1 :].partition(".")[0]
                return f"{stack}.{index}" not in self.layer_prefixes
        return False

    def unread(self, name: str) -> str | None:
        """Why decoding does not read a tensor that has no place; None: nothing says so."""
        new = self.renamed(name)
        if self._outside_layers(new):
            stack = next(s for s in self.stacks if new.startswith(f"{s}."))
            index = new[len(stack) + 1 :].partition(".")[0]
            count = sum(prefix.startswith(f"{stack}.") for prefix in self.layer_prefixes)
            # Layers after the last one are multi-token prediction where the config or transformers says so.
            within = index.isdigit() and count <= int(index) < count + self.extra_layers
            return "mtp" if within or self._ignored(name) else None
        if self.tied and new.partition(".")[0] in {"lm_head", "output"}:
            return "lm_head (tied)"
        return _unread_word(name) or ("ignored by transformers" if self._ignored(name) else None)

    def _ignored(self, name: str) -> bool:
        return any(re.search(pattern, n) for pattern in self.ignored for n in (name, self.renamed(name)))


def _weights(tensor: StoredTensor, part: Part, share: int) -> int:
    """How many weights a tensor of a parameter holds: its elements, or ``share``, packed.

    Words are filled along one dimension of the matrix, and the last of them need not be full.

    Raises:
        MoecapError: it is neither.
    """
    bits, word = PACKED_BITS.get(tensor.dtype, ()), DTYPE_BITS[tensor.dtype]
    if not bits or tensor.elements == share:
        return tensor.elements
    if any(tensor.elements * word == share * b for b in bits):
        return share
    matrices = [m for m in part.matrices if m.rows * m.columns == share]
    for matrix, b in ((m, b) for m in matrices for b in bits):
        rows, columns = matrix.rows, matrix.columns
        if tensor.elements in {rows * ceil(columns * b / word), columns * ceil(rows * b / word)}:
            return share
    # A matrix that the checkpoint cuts along its outputs (queries, keys and values in one parameter of the model).
    sides = tensor.shape if len(tensor.shape) == 2 else ()
    for matrix, rows, b in ((m, rows, b) for m in part.matrices for rows in sides for b in bits):
        if rows <= matrix.rows and tensor.elements * word == rows * matrix.columns * b:
            return rows * matrix.columns
    raise MoecapError(
        f"{tensor.name} ({tensor.dtype} {list(tensor.shape)} in {tensor.file}) is no way in which {part.name} "
        f"{list(part.shape)} could be stored. The config.json is not this checkpoint's, or the file is damaged."
    )


def _split(transforms: Any) -> tuple[list[Any], list[Any]]:
    converters = [t for t in transforms or () if getattr(t, "operations", None)]
    return [t for t in transforms or () if t not in converters], converters


def _prefixes(name: str) -> Iterator[str]:
    words = name.split(".")
    for i in range(1, len(words)):
        yield ".".join(words[:i])


def _parameter_bases(name: str) -> Iterator[str]:
    """``experts.gate_up_proj`` for ``experts.gate_up_proj_scales``."""
    stem = name
    while "_" in stem.rpartition(".")[2]:
        stem = stem.rpartition("_")[0]
        yield stem


def _unread_word(name: str) -> str | None:
    words = set(re.split(r"[._\d]+", name.lower())) | set(name.lower().split("."))
    return next((reason for word, reason in UNREAD_WORDS.items() if word in words), None)


def _is_companion(name: str) -> bool:
    """Whether a tensor is a scale, zero point or index of another."""
    last = name.rpartition(".")[2]
    return last in COMPANIONS or any(last.endswith(f"_{c}") for c in COMPANIONS) or ".weight." in name


def _main_dtype(tensors: Iterable[StoredTensor]) -> str:
    """The dtype that most bytes of a checkpoint are in, as people write it."""
    size: Counter[str] = Counter()
    for tensor in tensors:
        size[tensor.dtype] += tensor.bytes
    dtype = size.most_common(1)[0][0]
    return DTYPE_PRECISION.get(dtype, dtype.lower())
