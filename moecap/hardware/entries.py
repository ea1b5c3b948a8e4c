"""Entries of the hardware catalogue: what is said of a GPU, a server, a price, each with its source and status.

The pydantic models below are the catalogue's schema (:mod:`moecap.hardware.catalogue` puts them together). Statuses:

* ``verified``: read in the source; ``derived``: computed from verified figures, as ``note`` says;
* ``fitted``: chosen so that printed figures come out; ``assumption``: chosen by us, the basis is in ``source``;
* ``unverified``: from a secondary copy or from memory. Every figure that rests on one is marked.

Peaks are **dense** FLOP/s of matrix products per dtype, null where the chip has no such unit (``lacks``) or where no
source was found; never 0, never another dtype's, never a 2:4-sparse figure. Units are in the names; GB is 10⁹ bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from moecap.errors import nearest
from moecap.schema import Strict

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


def weakest(statuses: Iterable[str]) -> str:
    """The weakest of some statuses: what a figure that rests on all of them may claim."""
    return max(statuses, key=STATUSES.index, default="unverified")


def plain_name(name: str) -> str:
    """A device's name without what vendors and drivers vary: case, vendor, dashes, (R) and (TM)."""
    text = re.sub(r"\((r|tm)\)|®|™", "", name.lower())
    text = re.sub(r"\b(nvidia|amd|intel|tesla|geforce|instinct|corporation)\b", " ", text)
    return re.sub(r"[^a-z0-9+]+", "", text)


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
