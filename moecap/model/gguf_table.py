"""What a GGUF file holds, by its tensor table: names, types, shapes and bytes. No weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moecap.errors import MoecapError


@dataclass(frozen=True)
class Tensor:
    """One row of a GGUF file's tensor table. ``names``: what a Hugging Face checkpoint may call it."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    names: tuple[str, ...]


def tensor_table(path: str | Path) -> Iterator[Tensor]:
    """The tensors of a GGUF file, by the gguf library; no weight is read.

    Raises:
        MoecapError: no GGUF file, or one that is cut off.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(str(path))
        architecture = str(reader.fields["general.architecture"].contents())
        layers = int(reader.fields[f"{architecture}.block_count"].contents())
        known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    except (ValueError, KeyError, OSError, IndexError) as error:
        raise MoecapError(
            f"{path} is no complete GGUF file ({error}). Delete its folder to have it made again."
        ) from error
    theirs: dict[str, list[str]] = {}
    for other, (_, name) in gguf.get_tensor_name_map(known, layers).mapping.items():
        theirs.setdefault(name, []).append(other)
    for tensor in reader.tensors:
        stem, _, ending = tensor.name.rpartition(".")
        yield Tensor(
            name=tensor.name,
            type=tensor.tensor_type.name,
            shape=tuple(int(n) for n in reversed(tensor.shape)),
            bytes=int(tensor.n_bytes),
            names=tuple(f"{name}.{ending}" for name in theirs.get(stem, [])),
        )
