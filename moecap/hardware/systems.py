"""What a deployment's ``hardware`` names, worked out from the catalogue's entries: speeds, purchase, power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moecap.errors import MoecapError
from moecap.hardware.entries import COMPONENTS, DTYPES, Cpu, Gpu, Memory, Price, Range, Server, Storage, Use, weakest

if TYPE_CHECKING:
    from moecap.hardware.catalogue import Hardware


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
        return (
            {str(dtype): flops for dtype, flops in self.gpu.peak_flops.items()} if self.gpu else dict.fromkeys(DTYPES)
        )

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
        return Speeds(
            gpu.memory_bytes, gpu.memory_bytes_per_s, self.peak_flops, gpu.link_bytes_per_s, gpu.pcie_bytes_per_s
        )

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
