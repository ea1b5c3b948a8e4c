"""Bytes of weights: as a checkpoint stores them, or as a quantization recipe would. No torch.

A checkpoint is read by its safetensors headers alone (a few kilobytes of a terabyte). Each tensor goes to the layer and
component of the module that it belongs to, by transformers' own table of names; then the elements per layer and
component must be those of the model, so that a checkpoint that does not fit its config is an error, not a wrong count.
"""

from __future__ import annotations

import fnmatch
import json
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError, nearest

if TYPE_CHECKING:
    from moecap.model.skeleton import Skeleton

#: Bits per element of the dtypes of the safetensors format.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

#: Names of dtypes, as people write precisions.
DTYPE_PRECISION = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "BF16": "bf16",
    "F16": "fp16",
    "F32": "fp32",
}

#: Endings of tensors that go with a weight but hold no weight themselves.
COMPANIONS = (
    "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx", "weight_shape", "weight_global_scale",
    "input_scale", "input_global_scale", "input_zero_point", "activation_scale", "output_scale", "k_scale", "v_scale",
    "q_scale", "scales", "qzeros", "g_idx", "scale", "scale_inv", "zero_point", "zeros", "shape", "global_scale",
    "absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state", "bitsandbytes__nf4", "bitsandbytes__fp4",
)  # fmt: skip

#: Tensors of a checkpoint that decoding text does not read, by a word in their name.
UNREAD_WORDS = {
    "mtp": "mtp", "nextn": "mtp", "vision": "vision", "visual": "vision", "image": "vision", "audio": "audio",
    "multi_modal_projector": "vision", "mm_projector": "vision", "rotary_emb": "rotary", "rotary_pos_emb": "rotary",
}  # fmt: skip

#: Components that a recipe quantizes unless it says otherwise.
QUANTIZED = ("attention", "routed_experts", "shared_experts", "dense_mlp")


# -- recipes: what a precision would weigh


@dataclass(frozen=True)
class Matrix:
    """``copies`` weight matrices of (rows, columns) = (outputs, inputs), as one product uses them."""

    rows: int
    columns: int
    name: str = ""
    copies: int = 1
    quantizable: bool = True


@dataclass(frozen=True)
class Recipe:
    """How weights are stored.

    Attributes:
        weight_bits: bits of a quantized weight; ``rest_bits`` of everything else.
        group_size: weights along the input that share a scale; None: one scale per output; 0: one per matrix.
        block: (rows, columns) that share a scale, instead of a group.
        symmetric: without zero points (else ``weight_bits`` per group, packed into words where weights are).
        scale_bits: bits of a scale.
        word_bits: weights are packed into words of that many bits along the input; None: plain.
        index_bytes: bytes per matrix beside weights and scales (compressed-tensors keeps the shape, 16 bytes).
        column_index_bytes: bytes per input column (GPTQ's g_idx).
        components: what is quantized.
        ignore: modules that stay as they are: names, globs, or ``re:`` patterns.
    """

    name: str
    weight_bits: int = 16
    group_size: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    scale_bits: int = 16
    word_bits: int | None = None
    index_bytes: int = 0
    column_index_bytes: int = 0
    rest_bits: int = 16
    components: tuple[str, ...] = QUANTIZED
    ignore: tuple[str, ...] = ()
    quantized: bool = True

    def part_bytes(self, name: str, numel: int, component: str, matrices: Iterable[Matrix]) -> int:
        """Bytes of one parameter."""
        matrices = tuple(matrices)
        if (
            not self.quantized
            or component not in self.components
            or not matrices
            or not all(m.quantizable for m in matrices)
            or self.ignores(name)
        ):
            return ceil(numel * self.rest_bits / 8)
        return sum(m.copies * self.matrix_bytes(m.rows, m.columns) for m in matrices)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of one quantized matrix with all that goes with it.

        >>> Recipe("int4", 4, group_size=128, word_bits=32, index_bytes=16).matrix_bytes(128, 128)
        8464
        """
        if self.block:
            groups = ceil(rows / self.block[0]) * ceil(columns / self.block[1])
        elif self.group_size == 0:
            groups = 1
        else:
            groups = rows * (ceil(columns / self.group_size) if self.group_size else 1)
        word = self.word_bits or 8
        size = rows * ceil(columns * self.weight_bits / word) * word // 8 + ceil(groups * self.scale_bits / 8)
        if not self.symmetric:
            per_row = groups // rows
            size += ceil(rows * self.weight_bits / word) * word // 8 * per_row
        return size + self.index_bytes + self.column_index_bytes * columns

    def ignores(self, name: str) -> bool:
        """Whether a parameter's module is listed in ``ignore``."""
        module = re.sub(r"\.(weight|bias)$", "", name)
        for pattern in self.ignore:
            if pattern.startswith("re:"):
                if re.match(pattern[3:], module):
                    return True
            elif any(c in pattern for c in "*?["):
                if fnmatch.fnmatch(module, pattern) or fnmatch.fnmatch(module, f"{pattern}.*"):
                    return True
            elif f".{pattern}." in f".{module}.":
                return True
        return False


_PLAIN_BITS = {"bf16": 16, "fp16": 16, "fp32": 32}
#: How llmcompressor's schemes store weights; other keys of a precision's recipe go over these.
SCHEMES: dict[str, dict[str, Any]] = {
    "W8A8": {"weight_bits": 8},
    "W8A16": {"weight_bits": 8, "word_bits": 32, "index_bytes": 16},
    "W4A16": {"weight_bits": 4, "group_size": 128, "word_bits": 32, "index_bytes": 16},
    "W4A16_ASYM": {"weight_bits": 4, "group_size": 128, "word_bits": 32, "index_bytes": 16, "symmetric": False},
    "FP8": {"weight_bits": 8, "group_size": 0},
    "FP8_DYNAMIC": {"weight_bits": 8},
    "FP8_BLOCK": {"weight_bits": 8, "block": [128, 128]},
    "MXFP4": {"weight_bits": 4, "group_size": 32, "scale_bits": 8, "word_bits": 8},
    "NVFP4": {"weight_bits": 4, "group_size": 16, "scale_bits": 8, "word_bits": 8, "index_bytes": 4},
}
#: Precisions that need no catalogue.
_BUILT_IN = {"int8": "W8A8", "int4": "W4A16", "fp8": "FP8_DYNAMIC", "mxfp4": "MXFP4", "nvfp4": "NVFP4"}
#: What stays as it is where a recipe does not say: as in every recipe of the catalogue.
_IGNORED = ("lm_head", "re:.*gate$", "re:.*router.*")


def dtype_precision(dtype: str) -> str:
    """``bf16`` for ``torch.bfloat16`` and so on.

    Raises:
        MoecapError: a dtype that weights are not kept in.
    """
    short = dtype.split(".")[-1]
    if short not in DTYPE_PRECISION:
        raise MoecapError(f"dtype {dtype!r} in the config is no dtype of weights. {nearest(short, DTYPE_PRECISION)}")
    return DTYPE_PRECISION[short]


def recipe_from_dict(name: str, values: Mapping[str, Any]) -> Recipe:
    """A recipe from plain keys (those of :class:`Recipe`); packed words are assumed below 8 bits.

    Raises:
        MoecapError: an unknown key, or bits that are none.
    """
    values = dict(values)
    known = {f for f in Recipe.__dataclass_fields__ if f not in {"name", "quantized"}}
    unknown = set(values) - known
    if unknown:
        key = sorted(unknown)[0]
        raise MoecapError(f"Precision {name!r}: unknown key {key!r} in its recipe. {nearest(key, known)}")
    bits = values.get("weight_bits", 16)
    if not isinstance(bits, int) or not 1 <= bits <= 32:
        raise MoecapError(f"Precision {name!r}: weight_bits is {bits!r}, it must be a whole number from 1 to 32.")
    if bits < 8 and "word_bits" not in values:
        values |= {"word_bits": 32, "index_bytes": values.get("index_bytes", 16)}
    for key in ("components", "ignore", "block"):
        if values.get(key) is not None:
            values[key] = tuple(values[key])
    values.setdefault("ignore", _IGNORED)
    return Recipe(name, **values)


def resolve_precision(precision: str | Mapping[str, Any], catalogue: str | Path | None = None) -> Recipe:
    """The recipe of a precision: a dtype, an entry of ``precisions.yaml``, or plain keys.

    Raises:
        MoecapError: a precision that neither the catalogue nor this module knows.
    """
    if isinstance(precision, Mapping):
        return recipe_from_dict(
            str(precision.get("name", "custom")), {k: v for k, v in precision.items() if k != "name"}
        )
    if precision in _PLAIN_BITS:
        return Recipe(precision, rest_bits=_PLAIN_BITS[precision], quantized=False)
    entries = _precisions(catalogue)
    entry = entries.get(precision, {"scheme": _BUILT_IN.get(precision)})
    own = {**entry, **(entry.get("recipe") or {})}
    scheme = own.get("scheme")
    if scheme in _PLAIN_BITS:
        return Recipe(precision, rest_bits=_PLAIN_BITS[scheme], quantized=False)
    stored = {key: value for key, value in own.items() if key in Recipe.__dataclass_fields__ and key != "name"}
    if scheme in SCHEMES or "weight_bits" in stored:
        return recipe_from_dict(precision, {**SCHEMES.get(scheme, {}), **stored})
    if precision in entries:
        raise MoecapError(
            f"Precision {precision!r} has scheme {scheme!r}, and how that stores weights is not known. "
            f"{nearest(scheme, SCHEMES)} Or state `weight_bits` (and `group_size`, `symmetric`) in its `recipe`."
        )
    raise MoecapError(
        f"Precision {precision!r} is not known. {nearest(precision, {*entries, *_BUILT_IN, *_PLAIN_BITS})} Add it to "
        "config/catalogue/precisions.yaml with `weight_bits` and `group_size`."
    )


def _precisions(catalogue: str | Path | None) -> Mapping[str, Any]:
    from moecap.paths import catalogue_layers
    from moecap.schema import read_yaml

    entries: dict[str, Any] = {}
    for layer in catalogue_layers() if catalogue is None else [Path(catalogue)]:
        path = layer / "precisions.yaml"
        found = (read_yaml(path) or {}) if path.exists() else {}
        if isinstance(found, Mapping):
            entries |= found.get("precisions", found)
    return entries


def recipe_from_quantization_config(config: Mapping[str, Any]) -> Recipe:
    """The recipe that a checkpoint's ``quantization_config`` states.

    Raises:
        MoecapError: a method that this does not know; nothing is assumed about how it stores weights.
    """
    method = str(config.get("quant_method", "")).lower()
    ignore = tuple(config.get("modules_to_not_convert") or config.get("ignore") or ())
    if method in {"compressed-tensors", "compressed_tensors"}:
        groups = list((config.get("config_groups") or {}).values())
        weights = (groups[0].get("weights") or {}) if groups else {}
        layout = str(groups[0].get("format") or config.get("format") or "") if groups else ""
        bits, kind = weights.get("num_bits"), weights.get("type", "int")
        if len(groups) != 1 or not bits:
            raise MoecapError(
                f"quantization_config: compressed-tensors with {len(groups)} groups has no one way to store weights. "
                "Give the checkpoint itself, its safetensors headers say what it weighs."
            )
        strategy = weights.get("strategy")
        group = {"channel": None, "tensor": 0}.get(strategy, weights.get("group_size"))
        block = tuple(weights["block_structure"]) if strategy == "block" and weights.get("block_structure") else None
        packed = "pack" in layout
        floats = {4: "nvfp4" if "nvfp4" in layout else "mxfp4", 8: "fp8"}
        return Recipe(
            floats.get(bits, f"fp{bits}") if kind == "float" else f"int{bits}",
            bits,
            group_size=group,
            block=block,
            symmetric=bool(weights.get("symmetric", True)),
            scale_bits=8 if kind == "float" and bits == 4 else 16,
            word_bits=32 if packed and kind == "int" else None,
            index_bytes=16 if packed and kind == "int" else 4 if "nvfp4" in layout else 0,
            ignore=ignore,
        )
    if method == "fp8":
        block = config.get("weight_block_size")
        return Recipe(
            "fp8", 8, group_size=0, block=tuple(block) if block else None, scale_bits=32, ignore=(*ignore, "lm_head")
        )
    if method == "mxfp4":
        return Recipe("mxfp4", 4, group_size=32, scale_bits=8, ignore=ignore, components=("routed_experts",))
    if method in {"gptq", "awq"}:
        bits, group = int(config.get("bits") or config.get("w_bit") or 4), config.get("group_size", 128)
        return Recipe(
            f"int{bits}",
            bits,
            group_size=None if group in (-1, None) else int(group),
            symmetric=False,  # both store zero points, symmetric or not
            word_bits=32,
            column_index_bytes=4 if method == "gptq" else 0,
            ignore=(*ignore, "re:.*gate$", "lm_head"),
        )
    raise MoecapError(
        f"quantization_config: how {method or 'this method'!r} stores weights is not known. Give the checkpoint itself "
        "(its headers say what it weighs) or a precision. Known: awq, compressed-tensors, fp8, gptq, mxfp4."
    )


# -- safetensors headers


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, from its header: nothing of the data is read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_header(path: str | Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, from its header.

    Raises:
        MoecapError: the file is missing, truncated, or no safetensors.
    """
    path = Path(path)
    try:
        total = path.stat().st_size
        with path.open("rb") as handle:
            length = handle.read(8)
            size = struct.unpack("<Q", length)[0] if len(length) == 8 else -1
            if not 2 <= size <= min(total - 8, 10**9):
                raise MoecapError(f"{path} is no complete safetensors file: {total} bytes, a header of {size} bytes.")
            header = json.loads(handle.read(size))
        tensors = []
        for name, info in header.items():
            if name == "__metadata__":
                continue
            start, end = info["data_offsets"]
            shape, dtype = tuple(info["shape"]), info["dtype"]
            if dtype not in DTYPE_BITS:
                raise MoecapError(f"{path}: tensor {name} has dtype {dtype!r}. {nearest(dtype, DTYPE_BITS)}")
            if (end - start) * 8 != prod(shape) * DTYPE_BITS[dtype]:
                raise MoecapError(f"{path}: tensor {name} of {dtype} {shape} cannot take {end - start} bytes.")
            tensors.append((end, StoredTensor(name, dtype, shape, end - start, path.name)))
    except FileNotFoundError as error:
        raise MoecapError(f"{path} does not exist; the checkpoint is incomplete. Download it again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise MoecapError(f"{path} has a broken safetensors header ({error}). Download it again.") from error
    data_end = 8 + size + max((end for end, _ in tensors), default=0)
    if total != data_end:
        raise MoecapError(
            f"{path} is {'truncated' if total < data_end else 'longer than its header says'}: {total} bytes instead of "
            f"{data_end}. The file was left as it is; download it again."
        )
    return [tensor for _, tensor in tensors]


def read_checkpoint(folder: str | Path) -> list[StoredTensor]:
    """All tensors of a checkpoint folder: one safetensors file, or those that its index names.

    Raises:
        MoecapError: no safetensors, a file that the index names is missing or truncated, or lacks a tensor.
    """
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if (folder / "model.safetensors").exists():
            files = [folder / "model.safetensors"]
        if not files:
            raise MoecapError(f"{folder} holds no safetensors file; sizes are counted from safetensors headers only.")
        return [tensor for file in files for tensor in read_header(file)]
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise MoecapError(f"{index} is not a complete index ({error}). Download it again.") from error
    tensors = [t for file in sorted(set(places.values())) for t in read_header(folder / file)]
    missing = set(places) - {t.name for t in tensors}
    if missing:
        raise MoecapError(f"{folder}: the index names {len(missing)} tensors that no file has, e.g. {min(missing)}.")
    return tensors


# -- from tensors to layers and components


@dataclass(frozen=True)
class StoredSizes:
    """Bytes of a checkpoint per (layer, component), and of what decoding does not read, by name."""

    sizes: Mapping[tuple[int | None, str], int]
    unread: Mapping[str, int]
    precision: str
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, tuple[int | None, str]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values()) + sum(self.unread.values())


def stored_sizes(folder: str | Path, structure: Skeleton) -> StoredSizes:
    """Attribute every tensor of a checkpoint to the layer and component that it belongs to.

    Raises:
        MoecapError: tensors that the model has no place for, or parameters that the checkpoint lacks.
    """
    folder = Path(folder)
    tensors = read_checkpoint(folder)
    quantization = structure.quantization
    bits = _packed_bits(quantization)
    places = _Places(structure)
    sizes: dict[tuple[int | None, str], int] = defaultdict(int)
    elements: dict[tuple[int | None, str], int] = defaultdict(int)
    inexact: set[tuple[int | None, str]] = set()
    unread: dict[str, int] = defaultdict(int)
    attributed: dict[str, tuple[int | None, str]] = {}
    unknown: list[str] = []
    names = {t.name for t in tensors}
    for tensor in tensors:
        place = places.find(tensor.name)
        if place is None:
            reason = places.unread(tensor.name)
            if reason is None:
                unknown.append(tensor.name)
            else:
                unread[reason] += tensor.bytes
            continue
        sizes[place] += tensor.bytes
        attributed[tensor.name] = place
        if not places.is_parameter(tensor.name) or _is_companion(tensor.name, names):
            continue
        count, packed = _logical_elements(tensor, bits, names)
        elements[place] += count
        if packed:
            inexact.add(place)
    if unknown:
        raise MoecapError(
            f"{folder}: {len(unknown)} tensors belong to no part of the model that its config describes, e.g. "
            f"{', '.join(sorted(unknown)[:3])}. The config.json is not this checkpoint's, or the model has parts that "
            "transformers does not build."
        )
    expected: dict[tuple[int | None, str], int] = Counter()
    for part in structure.parts:
        expected[part.layer, part.component] += part.numel
    for place in sorted({*expected, *elements}, key=lambda p: (p[0] is None, p[0] or 0, p[1])):
        want, have = expected.get(place, 0), elements.get(place, 0)
        # Packed words round up: as many elements, or up to a hundredth more.
        if have == want or (place in inexact and want <= have <= want * 1.01 + 64):
            continue
        where = f"layer {place[0]}" if place[0] is not None else "outside the layers"
        raise MoecapError(
            f"{folder}: the checkpoint holds {have} weights of {place[1]} ({where}), its config describes {want}. It "
            "is incomplete, or the config.json is not its own."
        )
    precision = recipe_name(quantization) if quantization else _main_dtype(tensors)
    notes = tuple(f"{size} bytes of {name} are stored but not read when decoding." for name, size in unread.items())
    return StoredSizes(dict(sizes), dict(unread), precision, notes, attributed)


def recipe_name(quantization: Mapping[str, Any]) -> str:
    """How a quantized checkpoint is called: ``int4``, ``fp8``, …, or its method where formats are mixed."""
    try:
        return recipe_from_quantization_config(quantization).name
    except MoecapError:
        return str(quantization.get("quant_method", "quantized"))


class _Places:
    """Finds the layer and component of a checkpoint's tensor names."""

    def __init__(self, structure: Skeleton) -> None:
        self.exact: dict[str, tuple[int | None, str]] = {p.name: (p.layer, p.component) for p in structure.parts}
        self.parameters = set(self.exact)
        self.buffers = {name: (layer, component) for name, (component, layer) in structure.buffers.items()}
        self.modules: dict[str, Counter[tuple[int | None, str]]] = defaultdict(Counter)
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
            if head not in self.modules and found not in self.exact:
                base = next((s.partition(".")[0] for s in self.stacks), "")
                if any(m.startswith(f"{base}.{head}") for m in (*self.modules, *self.exact)):
                    found = f"{base}.{found}"
            self._cache[name] = found
        return found

    def find(self, name: str) -> tuple[int | None, str] | None:
        new = self.renamed(name)
        if new in self.exact:
            return self.exact[new]
        if new in self.buffers:
            return self.buffers[new]
        if self._outside_layers(new):
            return None
        for prefix in reversed(list(_prefixes(new))):
            if prefix in self.layer_prefixes or prefix in self.stacks:
                return None
            known = self.modules.get(prefix)
            if known is None:
                base = next((p for p in self._parameter_bases(new) if p in self.exact), None)
                if base is not None:
                    return self.exact[base]
                continue
            if len(known) == 1:
                return next(iter(known)) if prefix.count(".") or prefix in {"lm_head"} else None
            return max(known, key=lambda place: known[place]) if _ends_with_companion(new) else None
        return None

    def is_parameter(self, name: str) -> bool:
        return self.renamed(name) not in self.buffers

    def _parameter_bases(self, name: str) -> Iterator[str]:
        """``experts.gate_up_proj`` for ``experts.gate_up_proj_blocks``."""
        stem = name
        while "_" in stem.rpartition(".")[2]:
            stem = stem.rpartition("_")[0]
            yield stem

    def _outside_layers(self, name: str) -> bool:
        """Whether a name lies in a stack of layers, but beyond those that the model has."""
        for stack in self.stacks:
            if name.startswith(f"{stack}."):
                index = name[len(stack) + 1 :].partition(".")[0]
                return f"{stack}.{index}" not in self.layer_prefixes
        return False

    def unread(self, name: str) -> str | None:
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
        words = set(re.split(r"[._\d]+", name.lower())) | set(name.lower().split("."))
        reason = next((reason for word, reason in UNREAD_WORDS.items() if word in words), None)
        return reason or ("ignored by transformers" if self._ignored(name) else None)

    def _ignored(self, name: str) -> bool:
        return any(re.search(pattern, n) for pattern in self.ignored for n in (name, self.renamed(name)))


def _split(transforms: Any) -> tuple[list[Any], list[Any]]:
    converters = [t for t in transforms or () if getattr(t, "operations", None)]
    return [t for t in transforms or () if t not in converters], converters


def _prefixes(name: str) -> Iterator[str]:
    words = name.split(".")
    for i in range(1, len(words)):
        yield ".".join(words[:i])


def _ends_with_companion(name: str) -> bool:
    last = name.rpartition(".")[2]
    return any(last == c or last.endswith(f"_{c}") for c in COMPANIONS)


def _is_companion(name: str, names: set[str]) -> bool:
    """Whether a tensor is a scale, zero point or index of another."""
    last = name.rpartition(".")[2]
    if last in COMPANIONS or last.startswith("weight_scale") or last.endswith(("_scales", "_scale_inv", "_scale")):
        return True
    return last.endswith("_zero_point") or ".weight." in name


def _packed_bits(quantization: Mapping[str, Any] | None) -> int | None:
    if not quantization:
        return None
    groups = list((quantization.get("config_groups") or {}).values())
    bits = {(g.get("weights") or {}).get("num_bits") for g in groups} - {None}
    found = quantization.get("bits") or quantization.get("w_bit") or (bits.pop() if len(bits) == 1 else None)
    return int(found) if found else None


def _logical_elements(tensor: StoredTensor, bits: int | None, names: set[str]) -> tuple[int, bool]:
    """Weights in a tensor, and whether packing may have rounded the number up."""
    last = tensor.name.rpartition(".")[2]
    packed = last in {"qweight", "weight_packed"} or last.endswith(("_packed", "_blocks", "_qweight"))
    if packed and tensor.dtype in {"U8", "I8", "F4"}:
        return tensor.elements * (2 if tensor.dtype != "F4" else 1), True
    if packed and tensor.dtype in {"I32", "U32"}:
        return tensor.elements * 32 // (bits or 4), True
    if tensor.dtype == "U8" and any(n.startswith(f"{tensor.name}.quant_state") for n in names):
        return tensor.elements * 2, True
    return tensor.elements, False


def _main_dtype(tensors: Iterable[StoredTensor]) -> str:
    weight: Counter[str] = Counter()
    for tensor in tensors:
        weight[tensor.dtype] += tensor.bytes
    dtype = weight.most_common(1)[0][0]
    return DTYPE_PRECISION.get(dtype, dtype.lower())


# Embeddings, norms, routers and the head stay in 16 bits; they are a few per cent of what is listed here.
UNQUANTIZED_SHARE = 0.05


def planned_bytes(total_params: int, scheme: str) -> int:
    """Bytes of a checkpoint that is not there yet. An estimate: a few per cent too many rather than too few.

    >>> planned_bytes(46_702_792_704, "bf16")
    93405585408
    >>> 24e9 < planned_bytes(46_702_792_704, "W4A16") < 30e9
    True
    """
    stored = SCHEMES.get(scheme)
    if stored is None:
        return 2 * total_params
    bits = stored["weight_bits"] + stored.get("scale_bits", 16) / (stored.get("group_size") or 1024)
    return round(total_params * ((1 - UNQUANTIZED_SHARE) * bits / 8 + UNQUANTIZED_SHARE * 2))
