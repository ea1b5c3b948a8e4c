"""The hardware catalogue: what machines can do, what they draw, what they cost, and who says so.

``config/catalogue/hardware.yaml`` (with ``config/catalogue/hardware/*.yaml`` merged into it) is the only source of
these facts. Its entries are described in :mod:`moecap.hardware.entries`; what follows from them for a deployment is in
:mod:`moecap.hardware.systems`. The schema is exported to ``config/schemas/hardware.json`` by
``python -m moecap.hardware.catalogue``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from moecap.documents import Document, KeyPath, read_document
from moecap.errors import Collector, Mistakes, MoecapError, Place, nearest
from moecap.hardware.entries import (
    DTYPES,
    REMEDY,
    STATUSES,
    ApiPrice,
    Board,
    Cpu,
    Gpu,
    Memory,
    Region,
    Rental,
    Server,
    Serverless,
    Site,
    Storage,
    plain_name,
)
from moecap.hardware.systems import System
from moecap.paths import catalogue_layers
from moecap.schema import Strict, mistakes_of


class Hardware(Strict):
    """The whole catalogue. A deployment's ``hardware`` is one of ``servers`` or ``gpus``."""

    gpus: dict[str, Gpu] = Field(default={})
    cpus: dict[str, Cpu] = Field(default={})
    memory: dict[str, Memory] = Field(default={})
    storage: dict[str, Storage] = Field(default={})
    boards: dict[str, Board] = Field(default={})
    nics: dict[str, Board] = Field(default={})
    servers: dict[str, Server] = Field(default={})
    rentals: tuple[Rental, ...] = ()
    serverless: tuple[Serverless, ...] = ()
    api_prices: tuple[ApiPrice, ...] = ()
    electricity: dict[str, Region] = Field(default={})
    sites: dict[str, Site] = Field(default={})

    @model_validator(mode="after")
    def _references(self) -> Hardware:
        for name in set(self.gpus) & set(self.servers):
            raise ValueError(f"{name!r} is both a GPU and a server; a deployment could not tell which is meant")
        for name, server in self.servers.items():
            if server.gpu is not None:
                self._known(f"servers.{name}.gpu", server.gpu, self.gpus)
            for use in server.parts:
                self._known(f"servers.{name}.parts", use.part, self.parts)
        for name, gpu in self.gpus.items():
            if gpu.host is not None:
                self._known(f"gpus.{name}.host", gpu.host, self.servers)
        for kind in ("rentals", "serverless"):
            for offer in getattr(self, kind):
                self._known(f"{kind}: {offer.provider}", offer.gpu, self.gpus)
        return self

    @staticmethod
    def _known(where: str, name: str, known: Iterable[str]) -> None:
        if name not in known:
            raise ValueError(f"{where} names {name!r}, which is no entry. {nearest(name, known)}")

    @cached_property
    def parts(self) -> dict[str, Cpu | Memory | Storage | Board]:
        """Everything that a server may be made of, by name."""
        return {**self.cpus, **self.memory, **self.storage, **self.boards, **self.nics}

    @property
    def names(self) -> list[str]:
        """What a deployment's ``hardware`` may be: a host alone computes nothing."""
        return [*(n for n, s in self.servers.items() if s.gpu or s.detect or s.parts), *self.gpus]

    # -- looking up -----------------------------------------------------------------------------------------------

    def find(self, name: str, where: str = "hardware") -> System:
        """The system of that name.

        Raises:
            MoecapError: there is none; ``where`` begins the message.
        """
        if name in self.servers:
            server = self.servers[name]
            return System(name, self, self.gpus[server.gpu] if server.gpu else None, server.gpu, server)
        if name in self.gpus:
            gpu = self.gpus[name]
            return System(name, self, gpu, name, self.servers[gpu.host] if gpu.host else None)
        part = [n for n in self.names if name and plain_name(name) in plain_name(n)]  # "H100": any H100
        hint = f"Did you mean {' or '.join(map(repr, part))}? " if part else nearest(name, self.names) + " "
        raise MoecapError(f"{where}: hardware {name!r} is not in the catalogue. {hint}{REMEDY}")

    def region(self, name: str, where: str = "cost.region") -> Region:
        """The electricity price of a region.

        Raises:
            MoecapError: the region is not in the catalogue.
        """
        if name not in self.electricity:
            raise MoecapError(
                f"{where}: no electricity price is known for region {name!r}. {nearest(name, self.electricity)} "
                "Or give `usd_per_kwh`."
            )
        return self.electricity[name]

    def site(self, name: str, where: str = "cost.pue") -> Site:
        """The power usage effectiveness of a site.

        Raises:
            MoecapError: the site is not in the catalogue.
        """
        if name not in self.sites:
            raise MoecapError(
                f"{where}: no power usage effectiveness is known for site {name!r}. {nearest(name, self.sites)} "
                "Or give a figure."
            )
        return self.sites[name]

    def match_gpu(self, detected: str, memory_bytes: int | None = None) -> str:
        """The entry for what NVML or ROCm calls a device.

        Args:
            detected: the device's name, e.g. ``NVIDIA A100-SXM4-80GB``.
            memory_bytes: its memory, which tells variants of one name apart.

        Raises:
            MoecapError: no entry has that name, or its memory is another; near misses are named.
        """
        known = {plain_name(alias): name for name, gpu in self.gpus.items() for alias in (*gpu.names, name)}
        found = known.get(plain_name(detected))
        if found is None:
            candidates = {alias: name for name, gpu in self.gpus.items() for alias in gpu.names}
            raise MoecapError(
                f"The machine calls its device {detected!r}, which no entry of the hardware catalogue lists in "
                f"`names`. {nearest(detected, candidates)} {REMEDY}"
            )
        expected = self.gpus[found].memory_bytes / self.gpus[found].logical_devices
        if memory_bytes is not None and abs(memory_bytes / expected - 1) > 0.12:
            others = [
                n
                for n, gpu in self.gpus.items()
                if abs(memory_bytes / (gpu.memory_bytes / gpu.logical_devices) - 1) <= 0.12
            ]
            raise MoecapError(
                f"The machine calls its device {detected!r}, as entry {found!r} does, but it has "
                f"{memory_bytes / 1e9:.1f} GB of memory, not {expected / 1e9:.1f}. Entries with that much: "
                f"{', '.join(others) or 'none'}. {REMEDY}"
            )
        return found

    def match_cpu(self, detected: str) -> str:
        """The entry for what the operating system calls the processor.

        Raises:
            MoecapError: no entry has that name; near misses are named.
        """
        known = {plain_name(alias): name for name, cpu in self.cpus.items() for alias in (*cpu.names, name)}
        wanted = plain_name(detected)
        for alias, name in sorted(known.items(), key=lambda item: -len(item[0])):
            if alias == wanted or wanted.startswith(alias):
                return name
        raise MoecapError(
            f"The machine calls its processor {detected!r}, which is in no entry of the hardware catalogue. "
            f"{nearest(detected, self.cpus)} {REMEDY}"
        )

    def slice(self, hardware: Iterable[str], regions: Iterable[str] = (), models: Iterable[str] = ()) -> dict[str, Any]:
        """The part of the catalogue that these systems, regions and models (their API prices) rest on, as plain data.

        A rule that takes it as a param reruns when one of these figures changes, and not when another does.
        :func:`from_slice` reads it back.
        """
        keep: dict[str, set[str]] = {}
        gpus: set[str] = set()
        for name in hardware:
            system = self.find(name)
            if system.gpu_name:
                gpus.add(system.gpu_name)
            if system.server is not None:
                server = name if name in self.servers else self.gpus[name].host
                keep.setdefault("servers", set()).add(str(server))
                for use in system.server.parts:
                    for section in ("cpus", "memory", "storage", "boards", "nics"):
                        if use.part in getattr(self, section):
                            keep.setdefault(section, set()).add(use.part)
        keep["gpus"] = gpus
        keep["electricity"] = set(regions)
        data: dict[str, Any] = {}
        for section, names in keep.items():
            entries = getattr(self, section)
            data[section] = {n: entries[n].model_dump(mode="json", exclude_none=True) for n in sorted(names)}
        for gpu in data["gpus"].values():  # a null peak is a statement, an absent one an omission
            gpu["peak_flops"] = {d: gpu["peak_flops"].get(d) for d in DTYPES}
            if gpu.get("host") not in data.get("servers", {}):
                gpu.pop("host", None)
        for section in ("rentals", "serverless"):
            data[section] = [
                offer.model_dump(mode="json", exclude_none=True)
                for offer in getattr(self, section)
                if offer.gpu in gpus
            ]
        wanted = {plain_name(model) for model in models}
        data["api_prices"] = [
            offer.model_dump(mode="json", exclude_none=True)
            for offer in self.api_prices
            if plain_name(offer.model) in wanted
        ]
        return data


# -- files ------------------------------------------------------------------------------------------------------------


def hardware_files(catalogue: str | Path) -> list[Path]:
    """The files of the catalogue in a folder: ``hardware.yaml``, then ``hardware/*.yaml`` in order of name."""
    folder = Path(catalogue)
    if folder.is_file():
        return [folder]
    main = folder / "hardware.yaml"
    return [main, *sorted((folder / "hardware").glob("*.yaml"))]


def layer_files(layers: Iterable[str | Path]) -> list[Path]:
    """The hardware files of several folders, first to last; only the first has to have them."""
    found = [(number, path) for number, layer in enumerate(layers) for path in hardware_files(layer)]
    return [path for number, path in found if number == 0 or path.exists()]


def layers_of(files: Iterable[str | Path]) -> list[Path]:
    """The folders that :func:`layer_files` lists the files of."""
    folders = (path.parent if path.name == "hardware.yaml" else path.parents[1] for path in map(Path, files))
    return list(dict.fromkeys(folders))


def load(catalogue: str | Path | Sequence[Path] | None = None) -> Hardware:
    """Read and check the hardware catalogue of a folder (or one file).

    Args:
        catalogue: a folder or file, alone; or several, of which a later one's entries (and lists, such as `rentals`)
            take the place of an earlier one's. None: the packaged catalogue and, over it, the project's own.

    Raises:
        MoecapError: a file is missing or broken, an entry lacks its source, names a wrong currency, a negative price, a
            part that is not there …; file, entry, key and value are named.
    """
    if catalogue is None:
        catalogue = catalogue_layers()
    layers = [Path(catalogue)] if isinstance(catalogue, str | Path) else list(catalogue)
    merged: dict[str, Any] = {}
    origin: _Origin = {}
    files = layer_files(layers)
    found = Collector()
    for layer in layers:
        sections, places = _read_sections((path for path in hardware_files(layer) if path in files), found)
        for section, entries in sections.items():
            if isinstance(entries, list):
                merged[section] = entries
            else:
                merged[section] = {**merged.get(section, {}), **entries}
        origin |= places
    found.finish()
    first = str(hardware_files(layers[-1])[0])
    return _validated(merged, lambda path: _place(path, origin, first))


#: (section, name or index) -> the file of an entry, and its place in the section there.
_Origin = dict[tuple[str, str | int], tuple[Document, str | int]]


def _place(path: KeyPath, origin: _Origin, default: str) -> Place:
    if len(path) > 1 and (path[0], path[1]) in origin:
        document, own = origin[str(path[0]), path[1]]
        return document.place((path[0], own, *path[2:]))
    return Place(default)


def _read_sections(files: Iterable[Path], found: Collector) -> tuple[dict[str, Any], _Origin]:
    """The sections of one folder's files put together, and where every entry (section, name or index) stands."""
    merged: dict[str, Any] = {}
    origin: _Origin = {}
    for path in files:
        with found.taking(Place(str(path))):
            document = read_document(path)
            if not isinstance(document.data or {}, dict):
                raise MoecapError(f"a mapping of sections is expected ({', '.join(Hardware.model_fields)}).")
            for section, entries in (document.data or {}).items():
                _add_section(str(section), entries, document, merged, origin, found)
    return merged, origin


def _add_section(
    section: str, entries: Any, document: Document, merged: dict[str, Any], origin: _Origin, found: Collector
) -> None:
    place = document.place((section,))
    lists = get_origin(Hardware.model_fields[section].annotation) is tuple if section in Hardware.model_fields else None
    if lists is None:
        found.add(place, f"unknown section `{section}`. {nearest(section, Hardware.model_fields)}", section)
    elif lists:
        if not isinstance(entries or [], list):
            found.add(place, f"`{section}`: a list of entries is expected.", section)
            return
        before = merged.setdefault(section, [])
        for index, entry in enumerate(entries or []):
            origin[section, len(before)] = (document, index)
            before.append(entry)
    elif not isinstance(entries or {}, dict):
        found.add(place, f"`{section}`: a mapping from names to entries is expected.", section)
    else:
        target = merged.setdefault(section, {})
        for name, entry in (entries or {}).items():
            if name in target:
                other, own = origin[section, name]
                found.add(
                    document.place((section, name)),
                    f"{section}.{name} is already defined in {other.place((section, own))}. Keep one.",
                    f"{section}.{name}",
                )
                continue
            target[name] = entry
            origin[section, name] = (document, name)


def _validated(data: Mapping[str, Any], place: Callable[[KeyPath], Place]) -> Hardware:
    try:
        return Hardware.model_validate(dict(data))
    except ValidationError as error:
        found = Collector()
        for path, mistake in mistakes_of(error, Hardware, data, place):
            text = mistake.text
            if path and path[-1] in ("source", "status") and " is missing" in text:
                text = (
                    f"`{mistake.key}` is missing. Every figure of the hardware catalogue names its `source` and "
                    f"`status` ({', '.join(STATUSES)}); what has no source is null, or `unverified`."
                )
            found.add(mistake.place, text, mistake.key)
        raise Mistakes(found.mistakes) from None


def from_slice(data: Mapping[str, Any], source: str = "the catalogue's slice") -> Hardware:
    """The catalogue from plain data (:meth:`Hardware.slice`)."""
    return _validated(data, lambda _: Place(source))


def schema() -> dict[str, Any]:
    """JSON schema of the catalogue, generated from the models."""
    model: type[BaseModel] = Hardware
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


if __name__ == "__main__":
    Path("config/schemas/hardware.json").write_text(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")
