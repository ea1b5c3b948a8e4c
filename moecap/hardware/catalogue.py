"""The hardware catalogue: what machines can do, what they draw, what they cost, and who says so.

``config/catalogue/hardware.yaml`` (with ``config/catalogue/hardware/*.yaml`` merged into it) is the only source of
these facts; the pydantic models below are its schema, exported to ``config/schemas/hardware.json`` by
``python -m moecap.hardware.catalogue``. Every entry names its source and a status:

* ``verified``: read in the source; ``derived``: computed from verified figures, as ``note`` says;
* ``fitted``: chosen so that printed figures come out; ``assumption``: chosen by us, the basis is in ``source``;
* ``unverified``: from a secondary copy or from memory. Every figure that rests on one is marked.

Peaks are **dense** FLOP/s of matrix products per dtype, null where the chip has no such unit (``lacks``) or where no
source was found; never 0, never another dtype's, never a 2:4-sparse figure. Units are in the names; GB is 10⁹ bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from moecap.documents import Document, KeyPath, read_document
from moecap.errors import Collector, Mistakes, MoecapError, Place, nearest
from moecap.paths import catalogue_layers
from moecap.schema import Strict, mistakes_of

Dtype = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4"]
DTYPES: tuple[str, ...] = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")

Status = Literal["verified", "derived", "fitted", "assumption", "unverified"]
STATUSES: tuple[str, ...] = ("verified", "derived", "fitted", "assumption", "unverified")
SOURCED = frozenset({"verified", "derived"})

#: Currencies that a price may be given in. Costs are in USD: any other needs its exchange rate beside it.
CURRENCIES = ("USD", "EUR", "GBP", "CNY", "JPY", "CHF", "INR", "KRW", "CAD", "AUD")

#: The parts of equation (5), second line, and what the catalogue prices beside them.
COMPONENTS = ("gpu", "cpu", "motherboard", "dram", "ssd", "nic", "unsplit")

Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]

REMEDY = (
    "Add an entry to config/catalogue/hardware.yaml: a copy of a similar one, with your own figures, `source` and "
    "`status`."
)


class Sourced(Strict):
    """A fact with its source: no entry goes without one."""

    source: Text = Field(description="document, repository@commit:path or address that says it, or the stated basis")
    status: Status
    date: str | None = Field(default=None, description="date of the figure, as precise as the source is")
    note: str | None = None


class Rate(Sourced):
    """What one unit of a currency is worth."""

    usd: Positive


class Price(Sourced):
    """A price with its range. ``value`` is what is computed with: as given, or the middle of the range."""

    currency: str
    value: float | None = Field(default=None, ge=0)
    low: float | None = Field(default=None, ge=0)
    high: float | None = Field(default=None, ge=0)
    usd_per_unit: Rate | None = Field(default=None, description="exchange rate, for a currency other than USD")

    @field_validator("currency")
    @classmethod
    def _known_currency(cls, value: str) -> str:
        if value not in CURRENCIES:
            raise ValueError(f"unknown currency; costs are in USD. {nearest(value, CURRENCIES)}")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Price:
        if self.currency != "USD" and self.usd_per_unit is None:
            raise ValueError(
                f"the price is in {self.currency}, but costs are in USD; convert it, or give `usd_per_unit` with its "
                "date, source and status"
            )
        if self.value is None and (self.low is None or self.high is None):
            raise ValueError("a price needs `value`, or both `low` and `high`")
        ends = [x for x in (self.low, self.value, self.high) if x is not None]
        if ends != sorted(ends):
            raise ValueError(f"low ≤ value ≤ high does not hold for {self.low}, {self.value}, {self.high}")
        return self

    def usd(self) -> Range:
        """The price in USD, as a range."""
        rate = self.usd_per_unit.usd if self.usd_per_unit else 1.0
        value = (self.low + self.high) / 2 if self.value is None else self.value  # type: ignore[operator]
        low = value if self.low is None else self.low
        high = value if self.high is None else self.high
        return Range(value * rate, low * rate, high * rate)


@dataclass(frozen=True)
class Range:
    """A figure with the ends of its range (equal to it where none is known). Ranges add up end by end."""

    value: float
    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.value * factor, self.low * factor, self.high * factor)

    @property
    def known(self) -> bool:
        """Whether a spread is known."""
        return self.high > self.low


class Gpu(Sourced):
    """One accelerator, as a card, a module, or one of a rack's."""

    vendor: Literal["nvidia", "amd", "intel", "apple"]
    names: tuple[Text, ...] = Field(min_length=1, description="what NVML or ROCm calls it")
    memory_bytes: int = Field(gt=0)
    memory_bytes_per_s: Positive
    peak_flops: dict[Dtype, Positive | None] = Field(description="dense FLOP/s per dtype")
    lacks: tuple[Dtype, ...] = Field(default=(), description="dtypes that the chip has no units for")
    link_bytes_per_s: Positive | None = Field(
        default=None,
        description="NVLink or Infinity Fabric to all peers together, one way; null: unknown or none",
    )
    pcie_bytes_per_s: Positive | None = Field(default=None, description="to the host, one direction")
    tdp_w: Positive
    idle_w: Positive | None = None
    price: Price | None = None
    host: str | None = Field(default=None, description="server that is bought with it, pro rata of its slots")
    whole_system: bool = Field(default=False, description="price and power are those of a whole computer")
    logical_devices: int = Field(default=1, ge=1, description="devices that the driver shows for it")
    sources: dict[str, Sourced] = Field(default={}, description="figures that another source says: field -> source")

    @model_validator(mode="after")
    def _peaks(self) -> Gpu:
        missing = [d for d in DTYPES if d not in self.peak_flops]
        if missing:
            raise ValueError(f"peak_flops does not say {', '.join(missing)}: give the dense FLOP/s, or null")
        both = [d for d in self.lacks if self.peak_flops[d] is not None]
        if both:
            raise ValueError(f"peak_flops has a figure for {', '.join(both)}, which `lacks` says that the chip lacks")
        fields = set(type(self).model_fields)
        for key in self.sources:
            name, _, dtype = key.partition(".")
            if name not in fields or (dtype and dtype not in DTYPES):
                raise ValueError(f"`sources` names {key!r}, which is no field. {nearest(key, fields)}")
        return self

    def status_of(self, figure: str) -> str:
        """The status of one figure (``peak_flops.tf32``, ``idle_w``): its own source's, else the entry's."""
        own = self.sources.get(figure)
        return own.status if own else self.status


class Cpu(Sourced):
    """One processor (socket)."""

    names: tuple[Text, ...] = Field(default=(), description="what the operating system calls it")
    cores: int = Field(gt=0)
    tdp_w: Positive | None = None
    includes_memory: bool = Field(default=False, description="tdp_w includes the memory's power")
    memory_bytes_per_s: Positive | None = None
    memory_channels: int | None = Field(default=None, gt=0)
    memory_type: str | None = None
    price: Price | None = None


class Memory(Sourced):
    """Host memory, by the byte."""

    price_per_gb: Price | None = None
    power_w_per_gb: Positive | None = None


class Storage(Sourced):
    """Solid-state storage: price by the byte, power by the drive."""

    price_per_tb: Price | None = None
    drive_bytes: int | None = Field(default=None, gt=0)
    idle_w: Positive | None = None
    active_w: Positive | None = None


class Board(Sourced):
    """A motherboard or chassis (which carries PCIe: eq. 5), or a network card."""

    price: Price | None = None
    tdp_w: Positive | None = None


class Use(Strict):
    """So many of a part, or so many bytes of memory or storage.

    ``per: core`` and ``detected`` make a share of a part out of what is detected: two cores of a 96-core processor.
    """

    part: Text
    count: float | None = Field(default=None, gt=0)
    bytes: int | None = Field(default=None, gt=0)
    detected: bool = Field(default=False, description="as much as the machine has, by cores or by bytes of memory")

    @model_validator(mode="after")
    def _one_amount(self) -> Use:
        if sum((self.count is not None, self.bytes is not None, self.detected)) != 1:
            raise ValueError("give exactly one of `count`, `bytes`, `detected: true`")
        return self


class ServerPrice(Strict):
    """What a server costs where its parts' prices do not say it."""

    whole: Price | None = Field(default=None, description="the full server; it is bought whole")
    base: Price | None = Field(default=None, description="without devices")
    per_device: Price | None = None

    @model_validator(mode="after")
    def _one_way(self) -> ServerPrice:
        if (self.whole is None) == (self.base is None and self.per_device is None):
            raise ValueError("give `whole`, or `base` and `per_device`")
        return self


class ServerPower(Sourced):
    """Power of the full server under full load."""

    whole_w: Positive


class Server(Sourced):
    """A computer: what a deployment's ``hardware`` usually names."""

    gpu: str | None = None
    slots: int = Field(default=1, ge=1, description="devices of a full server")
    detect: bool = Field(default=False, description="cores, memory and speeds are those of the machine that it runs on")
    price: ServerPrice | None = Field(default=None, description="null: the sum of its parts")
    parts: tuple[Use, ...] = ()
    power: ServerPower | None = Field(default=None, description="null: the sum of its parts")


class Rental(Sourced):
    """A device by the hour."""

    gpu: str
    provider: Text
    plan: Literal["on_demand", "reserved", "spot", "index"]
    usd_per_device_hour: Price


class Serverless(Sourced):
    """A device by the second."""

    gpu: str
    provider: Text
    usd_per_device_second: Price


class ApiPrice(Sourced):
    """A model by the token."""

    model: Text
    provider: Text
    usd_per_million_input_tokens: Price | None = None
    usd_per_million_output_tokens: Price | None = None


class Region(Sourced):
    """Price of electricity."""

    usd_per_kwh: Price


class Site(Sourced):
    """Power usage effectiveness of data centres."""

    pue: float = Field(ge=1.0)
    low: float | None = Field(default=None, ge=1.0)
    high: float | None = Field(default=None, ge=1.0)


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


@dataclass(frozen=True)
class Purchase:
    """What a deployment costs to buy, by the components of equation (5), in USD.

    ``components`` holds what can be told apart; ``None`` where a price covers several together (``unsplit``) or where
    none is known (``unpriced``: then ``total`` is a lower bound, and ``complete`` is false).
    """

    components: Mapping[str, Range | None]
    unpriced: tuple[str, ...]
    status: str
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Range:
        """C_hardware of equation (5)."""
        total = Range(0.0, 0.0, 0.0)
        for part in self.components.values():
            total = total + part if part is not None else total
        return total

    @classmethod
    def unknown(cls, note: str) -> Purchase:
        """Nothing of it has a price."""
        return cls(dict.fromkeys(COMPONENTS), ("everything",), "unverified", (), (note,))

    @property
    def known(self) -> bool:
        """Whether anything of it has a price."""
        return any(part is not None for part in self.components.values())

    @property
    def complete(self) -> bool:
        """Whether every part has a price."""
        return not self.unpriced


@dataclass(frozen=True)
class Power:
    """Estimated power under full load by the components of equation (6), in W; links are part of the chips' TDP."""

    components: Mapping[str, float | None]
    unknown: tuple[str, ...]
    status: str

    @property
    def total_w(self) -> float | None:
        """The sum of what is known; None: nothing is."""
        known = [w for w in self.components.values() if w is not None]
        return sum(known) if known else None

    @property
    def covers(self) -> str:
        """The components that the sum covers, for a column."""
        return ", ".join(name for name, w in self.components.items() if w is not None)


@dataclass(frozen=True)
class Speeds:
    """What one device can do, as the catalogue says: all that a prediction rests on."""

    memory_bytes: float
    memory_bytes_per_s: float
    peak_flops: Mapping[str, float | None]
    link_bytes_per_s: float | None = None
    pcie_bytes_per_s: float | None = None


@dataclass(frozen=True)
class System:
    """What a deployment's ``hardware`` names: a server with its devices, or devices with a host bought pro rata."""

    name: str
    catalogue: Hardware
    gpu: Gpu | None
    gpu_name: str | None
    server: Server | None

    @property
    def kind(self) -> str:
        """``gpu`` or ``cpu``: what computes."""
        return "gpu" if self.gpu is not None else "cpu"

    @property
    def detect(self) -> bool:
        """Whether its speeds are those measured on the machine itself."""
        return self.server is not None and self.server.detect

    @property
    def bare(self) -> bool:
        """Whether it is a GPU entry, with its host counted pro rata."""
        return self.name == self.gpu_name

    @property
    def peak_flops(self) -> dict[str, float | None]:
        """Dense FLOP/s per dtype of one device; all null where they are measured, not catalogued."""
        return dict(self.gpu.peak_flops) if self.gpu else dict.fromkeys(DTYPES)

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one device."""
        return self.gpu.memory_bytes if self.gpu else None

    @property
    def memory_bytes_per_s(self) -> float | None:
        """Peak memory bandwidth of one device."""
        return self.gpu.memory_bytes_per_s if self.gpu else None

    def tiers(self, devices: int) -> dict[str, float | None]:
        """Bandwidth of each memory tier that weights may lie in or pass, of ``devices`` devices together, in B/s.

        ``dram`` is the memory of the processors that the entry names, whole; null: not known.
        """
        gpu = self.gpu
        parts = self.server.parts if self.server else ()
        cpus = [(use.count, self.catalogue.cpus[use.part]) for use in parts if use.part in self.catalogue.cpus]
        each = [count * cpu.memory_bytes_per_s for count, cpu in cpus if count and cpu.memory_bytes_per_s]
        return {
            "hbm": gpu.memory_bytes_per_s * devices if gpu else None,
            "pcie": gpu.pcie_bytes_per_s * devices if gpu and gpu.pcie_bytes_per_s else None,
            "dram": sum(each) * self._servers(devices) if each and len(each) == len(cpus) else None,
        }

    @property
    def speeds(self) -> Speeds | None:
        """What one device can do; None where that is measured, not catalogued."""
        if self.gpu is None:
            return None
        gpu = self.gpu
        peaks = dict(gpu.peak_flops)
        return Speeds(gpu.memory_bytes, gpu.memory_bytes_per_s, peaks, gpu.link_bytes_per_s, gpu.pcie_bytes_per_s)

    def speed_status(self, dtype: str) -> str | None:
        """The weakest status of the figures that a prediction in a dtype rests on; None where they are measured."""
        if self.gpu is None:
            return None
        return weakest(map(self.gpu.status_of, ("memory_bytes", "memory_bytes_per_s", f"peak_flops.{dtype}")))

    def why_no_peak(self, dtype: str) -> str:
        """One sentence on a peak that is null."""
        if self.gpu is None:
            return f"{self.name} has no catalogued peaks; they are measured on the machine."
        if dtype in self.gpu.lacks:
            return f"{self.gpu_name} has no {dtype} units."
        return f"No source is known for the {dtype} peak of {self.gpu_name}."

    # -- equation (5) -----------------------------------------------------------------------------------------------

    def purchase(self, devices: int, machine: Mapping[str, Any] | None = None) -> Purchase:
        """C_hardware of equation (5) by component.

        Args:
            devices: GPUs; of a system without GPUs, machines.
            machine: what was detected (``cores``, ``memory_bytes``), for an entry that is priced by it.

        Raises:
            MoecapError: devices < 1, or nothing of it has a price.
        """
        if devices < 1:
            raise MoecapError(f"{self.name}: devices is {devices}; at least 1 is needed.")
        found: dict[str, Range | None] = dict.fromkeys(COMPONENTS)
        prices: list[Price] = []
        unpriced: list[str] = []
        notes: list[str] = []

        def add(component: str, price: Price | None, amount: float, label: str) -> None:
            if price is None:
                unpriced.append(label)
                return
            prices.append(price)
            found[component] = price.usd() * amount + (found[component] or Range(0.0, 0.0, 0.0))

        whole = self.server.price if self.server else None
        servers = self._servers(devices)
        if whole is not None and whole.whole is not None and not self.bare:
            add("unsplit", whole.whole, servers, "server")
            notes.append(f"a server of {self.server.slots} devices is bought whole")  # type: ignore[union-attr]
        else:
            if self.gpu is not None:
                per_device = whole.per_device if whole and whole.per_device and not self.bare else self.gpu.price
                add("gpu", per_device, devices, str(self.gpu_name))
            if whole is not None and whole.base is not None:
                add("unsplit", whole.base, servers, "host")
            if self.server is not None:
                for use in self.server.parts:
                    component, price, amount = self._part_price(use, machine)
                    add(component, price, amount * servers, use.part)
            if self.bare and self.server is not None:
                notes.append(f"the host is a share of {self.gpu.host}, {devices} of {self.server.slots} slots")  # type: ignore[union-attr]
            if self.bare and self.server is None and not self.gpu.whole_system:  # type: ignore[union-attr]
                unpriced.append("host")
        if not prices or self.gpu_name in unpriced:  # the rest alone would pass for a bargain
            raise MoecapError(
                f"{self.name}: no price is known for {', '.join(unpriced) or 'it'}. Add `price` with its date, source "
                "and status to its entry in config/catalogue/hardware.yaml; a price is never guessed."
            )
        sources = tuple(dict.fromkeys(f"{p.source} ({p.date or 'undated'}, {p.status})" for p in prices))
        composed = [self.server.status] if self.server and self.server.parts else []  # what is in it may be a guess too
        if composed:
            sources = (*sources, f"{self.server.source} ({self.server.status})")  # type: ignore[union-attr]
        return Purchase(
            found, tuple(unpriced), weakest([*composed, *(p.status for p in prices)]), sources, tuple(notes)
        )

    def gpus_usd(self, devices: int, bought: Purchase) -> Range | None:
        """What the GPUs alone cost: as counted in the whole, else by their own entry's price; None: not known."""
        counted = bought.components.get("gpu")
        if counted is not None or self.gpu is None or self.gpu.price is None or self.gpu.whole_system:
            return counted
        return self.gpu.price.usd() * devices

    def _servers(self, devices: int) -> float:
        """Servers bought: whole ones, or for a bare GPU the share of a host that its slots make."""
        if self.server is None:
            return 0.0
        share = devices / self.server.slots
        return share if self.bare else float(-(-devices // self.server.slots))

    def _amount(self, use: Use, machine: Mapping[str, Any] | None) -> float:
        """Parts (processors, cards), or bytes of memory and storage."""
        if not use.detected:
            return float(use.count if use.count is not None else use.bytes or 0)
        facts = machine or detected_machine()
        part = self.catalogue.parts[use.part]
        if isinstance(part, Cpu):
            return float(facts["cores"]) / part.cores
        if isinstance(part, Memory):
            return float(facts["memory_bytes"])
        raise MoecapError(f"{self.name}: the amount of {use.part!r} cannot be detected; give `count` or `bytes`.")

    def _part_price(self, use: Use, machine: Mapping[str, Any] | None) -> tuple[str, Price | None, float]:
        part = self.catalogue.parts[use.part]
        amount = self._amount(use, machine)
        if isinstance(part, Memory):
            return "dram", part.price_per_gb, amount / 1e9
        if isinstance(part, Storage):
            return "ssd", part.price_per_tb, amount / 1e12
        return self._component(use), part.price, amount

    def _component(self, use: Use) -> str:
        if use.part in self.catalogue.nics:
            return "nic"
        return "cpu" if use.part in self.catalogue.cpus else "motherboard"

    # -- equation (6) -----------------------------------------------------------------------------------------------

    def power(self, devices: int, machine: Mapping[str, Any] | None = None, idle: bool = False) -> Power:
        """P of equation (6) by component, under full load (or idle), estimated from TDPs.

        The power of NVLink, PCIe and the memory bus is part of the chips' TDP and is not counted again.
        """
        found: dict[str, float | None] = {"gpu": None, "cpu": None, "dram": None, "ssd": None, "host": None}
        statuses: list[str] = []
        unknown: list[str] = []
        gpu, server = self.gpu, self.server
        if gpu is not None:
            watts = gpu.idle_w if idle else gpu.tdp_w
            found["gpu"] = None if watts is None else watts * devices
            statuses.append(gpu.status_of("idle_w" if idle else "tdp_w"))
            if watts is None:
                unknown.append(str(self.gpu_name))
        if server is None or (gpu is not None and gpu.whole_system):
            return Power(found, tuple(unknown), weakest(statuses))
        servers = self._servers(devices)
        if server.power is not None and not idle:
            host = server.power.whole_w - (gpu.tdp_w * server.slots if gpu is not None and not self.bare else 0.0)
            found["host"] = max(host, 0.0) * servers
            statuses.append(server.power.status)
            return Power(found, tuple(unknown), weakest(statuses))
        for use in server.parts:
            part = self.catalogue.parts[use.part]
            amount = self._amount(use, machine)
            if isinstance(part, Memory):
                name, watts = "dram", part.power_w_per_gb and part.power_w_per_gb * amount / 1e9
            elif isinstance(part, Storage):
                each = part.idle_w if idle else part.active_w
                drives = amount / part.drive_bytes if part.drive_bytes else None
                name, watts = "ssd", each * drives if each and drives else None
            elif isinstance(part, Cpu):
                name, watts = "cpu", None if idle or part.tdp_w is None else part.tdp_w * amount
            else:
                name, watts = "host", None if idle or part.tdp_w is None else part.tdp_w * amount
            if watts is None:
                unknown.append(use.part)
            else:
                found[name] = (found[name] or 0.0) + watts * servers
                statuses.append(part.status)
        if server.parts:
            statuses.append(server.status)
        else:
            unknown.append("host")
        return Power(found, tuple(unknown), weakest(statuses))


def detected_machine() -> dict[str, Any]:
    """Cores and memory of the machine that this runs on, for entries that are priced by what is detected."""
    import psutil

    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    return {"cores": cores, "memory_bytes": psutil.virtual_memory().total}


def weakest(statuses: Iterable[str]) -> str:
    """The weakest of some statuses: what a figure that rests on all of them may claim."""
    return max(statuses, key=STATUSES.index, default="unverified")


def plain_name(name: str) -> str:
    """A device's name without what vendors and drivers vary: case, vendor, dashes, (R) and (TM)."""
    text = re.sub(r"\((r|tm)\)|®|™", "", name.lower())
    text = re.sub(r"\b(nvidia|amd|intel|tesla|geforce|instinct|corporation)\b", " ", text)
    return re.sub(r"[^a-z0-9+]+", "", text)


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
                    "`status` "
                    f"({', '.join(STATUSES)}); what has no source is null, or `unverified`."
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
