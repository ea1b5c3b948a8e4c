"""From what a result file calls a model, a GPU, an engine or a format of weights to the catalogue's name for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError
from moecap.hardware.catalogue import Hardware
from moecap.paths import catalogue_layers
from moecap.schema import read_yaml

DATA = Path(__file__).parent / "data"


@lru_cache(maxsize=1)
def known_names() -> Mapping[str, Any]:
    """``data/names.yaml``."""
    return read_yaml(DATA / "names.yaml")


def plain(name: object) -> str:
    """Lower case, words apart by one space.

    >>> plain("RTX_PRO-6000 (Server)")
    'rtx pro 6000 server'
    """
    return " ".join(re.findall(r"[a-z0-9.]+", str(name).lower()))


def hardware_entry(printed: str | None, hardware: Hardware) -> str | None:
    """The catalogue's entry of a GPU or server; None: not known.

    The entry itself, what NVML calls it, or an alias; else the longest alias that the name begins with.
    """
    if not printed:
        return None
    if printed in hardware.names:
        return printed
    try:
        return hardware.match_gpu(printed)
    except MoecapError:
        pass
    wanted = plain(printed)
    aliases = {plain(a): entry for entry, names in known_names()["hardware"].items() for a in (*names, entry)}
    begun = [a for a in aliases if wanted == a or wanted.startswith(a + " ")]
    found = aliases[max(begun, key=len)] if begun else None
    return found if found in hardware.gpus else None


def model_entry(printed: str | None, catalogue: str | Path | None = None) -> str | None:
    """The catalogue's name of a model, from a hub id or a name with its tuning and format; None: not known."""
    if not printed:
        return None
    known = _models(str(catalogue) if catalogue else None)
    return known.get(_bare(printed)) or known.get(plain(printed))


@lru_cache(maxsize=8)
def _models(catalogue: str | None) -> Mapping[str, str]:
    found: dict[str, str] = {}
    entries: dict[str, Any] = {}
    for folder in catalogue_layers() if catalogue is None else [Path(catalogue)]:
        path = folder / "models.yaml"
        entries |= (read_yaml(path) or {}) if path.exists() else {}
    for name, entry in entries.items():
        hub = (entry.get("source") or {}).get("hub")
        for alias in (name, *([hub] if hub else []), *(entry.get("also") or ())):
            found.setdefault(_bare(alias), name)
    for name, aliases in known_names()["models"].items():
        if name in entries:
            for alias in aliases:
                found.setdefault(plain(alias), name)
    return found


def _bare(name: str) -> str:
    """A model's name without its owner and the words that do not say what it is."""
    ignored = {str(word) for word in known_names()["model_words"]}
    words = plain(name.rsplit("/", 1)[-1]).split()
    return " ".join(word for word in words if word not in ignored)


def engine_entry(printed: str | None, version: str | None = None) -> str | None:
    """The kind of engine, with its generation where an old one is another engine in speed; None: not known."""
    found = _listed(printed, "engines")
    digits = re.match(r"v?(\d+)\.(\d+)", version or "")
    for generation in known_names()["generations"].get(found, ()) if digits else ():
        before = tuple(int(part) for part in str(generation["before"]).split("."))
        if digits and (int(digits.group(1)), int(digits.group(2))) < before:
            return str(generation["name"])
    return found


def precision_entry(printed: str | None, model: str | None = None) -> str | None:
    """The catalogue's precision; a model that is released in one format only has that one. None: not known."""
    released = known_names()["released_in"].get(model)
    return str(released["precision"]) if released else _listed(printed, "precisions")


def _listed(printed: str | None, part: str) -> str | None:
    if not printed:
        return None
    wanted = plain(printed)
    for name, aliases in known_names()[part].items():
        if wanted in {plain(a) for a in (name, *_strings(aliases))}:
            return str(name)
    return None


def _strings(values: Iterable[Any]) -> Iterable[str]:
    return (str(v) for v in values)
