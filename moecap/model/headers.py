"""Which tensors a checkpoint holds, from the headers of its safetensors files alone. No torch, no weights.

The safetensors library reads and checks each header (its size, nesting and dtypes, offsets that overlap, leave holes or
are not the shape's size); what it cannot see is checked here: the folder, its index, and one file against another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from moecap.errors import MoecapError
from moecap.model.gguf_table import tensor_table

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"

#: Bits per element of the dtypes of the safetensors format.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, from its header: nothing of the data is read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    names: tuple[str, ...] = ()  # what it may be called in Hugging Face's format, where this one has names of its own
    block_bytes: int | None = None  # of a format whose elements share scales: what all of them take

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bits(self) -> int:
        if self.block_bytes is not None:
            return self.block_bytes * 8
        return self.elements * DTYPE_BITS[self.dtype]

    @property
    def bytes(self) -> int:
        return self.bits // 8


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint folder, and what a reader should know of its files."""

    tensors: tuple[StoredTensor, ...]
    notes: tuple[str, ...] = ()


def read_header(path: str | Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, from its header.

    Raises:
        MoecapError: the file is missing, truncated, longer than its header says, or no sound safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists():
        raise MoecapError(f"{path} does not exist; the checkpoint is incomplete. Download it again.")
    if not path.is_file():
        raise MoecapError(f"{path} is no file, so it is no safetensors file.")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118  not a dict
            tensors = [StoredTensor(n, s.get_dtype(), tuple(s.get_shape()), path.name) for n, s in slices]
    except (SafetensorError, OSError, ValueError) as error:
        raise MoecapError(
            f"{path} ({path.stat().st_size} bytes) is no sound safetensors file: {error}. It was left as it is; "
            "download it again."
        ) from error
    unknown = next((t for t in tensors if t.dtype not in DTYPE_BITS), None)
    if unknown is not None:
        raise MoecapError(f"{path}: how many bits an element of {unknown.dtype} ({unknown.name}) takes is not known.")
    return tensors


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """All tensors of a checkpoint folder: ``model.safetensors``, or else the files that its index names.

    A whole file comes before an index, as in transformers.

    Raises:
        MoecapError: no safetensors, a file that is missing or damaged or lies outside the folder, a tensor that the
            index names and no file has, or that two files have.
    """
    folder = Path(folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not any(folder.glob("*.safetensors")):
        return Checkpoint(
            tuple(
                StoredTensor(t.name, t.type, t.shape, path.name, t.names, t.bytes)
                for path in ggufs
                for t in tensor_table(path)
            )
        )
    index, whole = folder / INDEX, folder / WHOLE
    notes: tuple[str, ...] = ()
    names: Mapping[str, str] = {}
    if whole.exists() or whole.is_symlink():
        files = [whole]
        if index.exists():
            notes = (f"{index.name} lies beside {whole.name}, which is whole; the file is counted, not the index.",)
    elif index.exists():
        names = _weight_map(index)
        files = [folder / file for file in sorted(set(names.values()))]
    else:
        files = _loose_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        _check_inside(file, folder)
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise MoecapError(
                    f"{folder}: the tensor {tensor.name} is in {tensors[tensor.name].file} and in {tensor.file}. "
                    "Remove the files that are not part of this checkpoint."
                )
            tensors[tensor.name] = tensor
    missing = set(names) - set(tensors)
    if missing:
        raise MoecapError(f"{folder}: the index names {len(missing)} tensors that no file has, e.g. {min(missing)}.")
    return Checkpoint(tuple(tensors.values()), notes)


def _loose_files(folder: Path) -> list[Path]:
    """Safetensors files without an index; adapters, and a second copy in Mistral's own format, are not the model."""
    found = sorted(folder.glob("*.safetensors"))
    files = [f for f in found if not f.name.startswith(("adapter_", "consolidated"))] or found
    if not files:
        raise MoecapError(f"{folder} holds no safetensors or GGUF file; nothing else tells sizes.")
    return files


def _weight_map(index: Path) -> Mapping[str, str]:
    """Which file has which tensor, by the index of a checkpoint in several files."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
            raise TypeError("its weight_map is no table of file names")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MoecapError(f"{index} is not a complete index ({error}). Download it again.") from error
    for file in sorted(set(names.values())):
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise MoecapError(f"{index} names {file!r}, which lies outside the checkpoint's folder.")
    return names


def _check_inside(file: Path, folder: Path) -> None:
    """A file lies in the folder, or is a link of the hub's cache or of a manifest of ours.

    Raises:
        MoecapError: the file is a link to somewhere else.
    """
    target, home = file.resolve(), folder.resolve()
    of_the_hub = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    if home in target.parents or of_the_hub or (folder / "manifest.json").is_file():
        return
    raise MoecapError(
        f"{file} is a link out of its folder, to {target}. Give the folder that holds the files themselves."
    )
