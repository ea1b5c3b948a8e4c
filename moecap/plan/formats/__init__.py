"""Readers of public result files, where they lie: one file per format, told apart by what is in them.

A format is a module with ``NAME``, ``sniff(file) -> bool`` and ``read(file) -> points``; to add one, write it and put
it into :data:`FORMATS`. A reader only reads: names are printed as the file has them, figures in SI units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from moecap.errors import MoecapError
from moecap.plan.formats import (
    aiconfigurator,
    aiconfigurator_kernels,
    aiperf,
    inferencex,
    ktransformers,
    ml_energy,
    mlperf,
    own,
    vllm_bench,
)
from moecap.plan.formats.file import File
from moecap.plan.points import AnyPoint

#: In the order in which they are asked; the first that knows a file reads it.
FORMATS: tuple[ModuleType, ...] = (
    own,
    aiconfigurator,
    aiconfigurator_kernels,
    ml_energy,
    ktransformers,
    inferencex,
    aiperf,
    vllm_bench,
    mlperf,
)

#: Files that may hold results, in a folder.
SUFFIXES = {".csv", ".parquet", ".json", ".jsonl", ".txt", ".zst"}


def read(path: str | Path) -> list[AnyPoint]:
    """The measured points of a file.

    Raises:
        MoecapError: it does not exist, or no format knows it.
    """
    file = File(Path(path))
    for known in FORMATS:
        if known.sniff(file):
            return list(known.read(file))
    names = ", ".join(m.NAME for m in FORMATS)
    raise MoecapError(f"{path} is in no format that is known ({names}). {file.problem or ''}".strip())


def read_all(paths: Iterable[str | Path]) -> tuple[list[AnyPoint], list[str]]:
    """The points of files and folders (searched through), and which files were passed over, with the reason.

    Raises:
        MoecapError: a file that was named cannot be read, or nothing was found.
    """
    points: list[AnyPoint] = []
    passed: list[str] = []
    for path in map(Path, paths):
        if not path.is_dir():
            points += read(path)
            continue
        for file in _files(path):
            try:
                points += read(file)
            except MoecapError as error:
                passed.append(str(error))
    if not points:
        reason = f" {passed[0]}" if passed else ""
        raise MoecapError(f"No measured points were found in {', '.join(map(str, paths))}.{reason}")
    return points, passed


def _files(folder: Path) -> Iterator[Path]:
    hidden = (p for p in sorted(folder.rglob("*")) if not any(part.startswith(".") for part in p.parts))
    return (p for p in hidden if p.is_file() and p.suffix in SUFFIXES)
