"""Energy of a measured window, from the counters that the hardware itself keeps.

GPUs: NVML's total energy counter (Volta and later). CPUs: RAPL through Linux's powercap files (packages and DRAM; Intel
and AMD). Both are running totals, so a window is two readings and costs the timed run nothing. Zeus and CodeCarbon
read the same two counters, but bring a web client, a metrics exporter or a carbon database that this project does not
use, and CodeCarbon fills gaps with a guess from a table of TDPs; measured and estimated must never mix here.

Where there is no counter, or it may not be read, everything is None: use :func:`estimate_power_w`, which says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moecap.errors import MoecapError
from moecap.hardware.gpus import Nvml

POWERCAP = Path("/sys/class/powercap")
# RAPL counters wrap (typically after 262 kJ: minutes under load), so they are read more often than that.
RAPL_INTERVAL_S = 20.0

Device = Literal["auto", "cpu", "gpu"]


@dataclass
class Energy:
    """What a window measured; everything is None until the block has ended, and where nothing could be read.

    Attributes:
        energy_j: joules over the window, of the devices that ``source`` covers.
        power_w: ``energy_j`` / ``elapsed_s``.
        source: "nvml" (the GPUs alone) or "rapl" (CPU packages and DRAM); None: not measured.
        elapsed_s: length of the window.
        by_domain: joules per GPU or RAPL domain, those of the host beside a GPU's too. Only those of ``source`` are
            summed in ``energy_j``.
    """

    energy_j: float | None = None
    power_w: float | None = None
    source: str | None = None
    elapsed_s: float | None = None
    by_domain: dict[str, float] = field(default_factory=dict)


@contextmanager
def window(device: Device = "auto", powercap: Path = POWERCAP) -> Iterator[Energy]:
    """Measure the energy of the block.

    Args:
        device: where the work runs: "gpu" (NVML), "cpu" (RAPL), or "auto": NVML where it counts, else RAPL. A CPU
            engine on a machine with idle GPUs asks for "cpu".
        powercap: where the kernel keeps the RAPL domains.

    >>> with window() as w:
    ...     sum(range(1000))
    499500
    >>> (w.energy_j is None) == (w.source is None)
    True
    """
    gpus, rapl = _nvml_counters() if device != "cpu" else {}, _RaplCounters(powercap)
    result = Energy()
    started = time.perf_counter()
    first = {name: read() for name, read in gpus.items()}
    rapl.start()
    try:
        yield result
    finally:
        rapl_j = rapl.stop()
        nvml_j = _differences(first, {name: read() for name, read in gpus.items()})
        result.elapsed_s = time.perf_counter() - started
        result.by_domain = {**nvml_j, **rapl_j}
        for source, joules in (("nvml", nvml_j), ("rapl", rapl_j if device != "gpu" else {})):
            if joules:
                result.source, result.energy_j = source, sum(joules.values())
                result.power_w = result.energy_j / result.elapsed_s
                break


@dataclass(frozen=True)
class PowerEstimate:
    """An estimate, and labelled so wherever it goes."""

    power_w: float
    source: str
    rule: str


def estimate_power_w(tdp_w: float, load: float, idle_w: float = 0.0, devices: int = 1) -> PowerEstimate:
    """Power of ``devices`` at a load, by a straight line from idle to TDP: devices × (idle + load × (TDP − idle)).

    Args:
        tdp_w: thermal design power of one device.
        load: share of the time or of the units that are busy, 0 to 1.
        idle_w: power of one device at rest.

    Raises:
        MoecapError: a value is out of range.

    >>> estimate_power_w(tdp_w=300, load=0.5, idle_w=60).power_w
    180.0
    """
    if not (0 <= load <= 1 and 0 <= idle_w <= tdp_w and tdp_w > 0 and devices >= 1):
        raise MoecapError(
            f"Cannot estimate power from tdp_w {tdp_w}, idle_w {idle_w}, load {load}, devices {devices}: allowed are "
            "0 ≤ load ≤ 1, 0 ≤ idle_w ≤ tdp_w, tdp_w > 0, devices ≥ 1."
        )
    power = devices * (idle_w + load * (tdp_w - idle_w))
    return PowerEstimate(power, "estimate", "devices × (idle + load × (TDP − idle))")


def _differences(first: Mapping[str, float | None], last: Mapping[str, float | None]) -> dict[str, float]:
    """Joules per counter that could be read both times; a counter that was reset (it went back) is left out."""
    joules = {}
    for name, before in first.items():
        after = last.get(name)
        if before is not None and after is not None and after >= before:
            joules[name] = after - before
    return joules


def _nvml_counters() -> dict[str, Callable[[], float | None]]:
    """Readers of each visible GPU's energy counter, in joules; empty without NVML, a driver or a GPU.

    A counter is a card's: of a slice of one (MIG) nothing is known.
    """
    try:
        nvml = Nvml()
    except OSError:
        return {}

    def reader(handle: Any) -> Callable[[], float | None]:
        return lambda: nvml.ask("nvmlDeviceGetTotalEnergyConsumption", handle, scale=1e-3)  # millijoules

    return {f"gpu{d.card.index}": reader(d.handle) for d in nvml.visible() if d.slice is None}


class _RaplCounters:
    """RAPL domains that do not contain each other (packages, and DRAM, which no package includes), with wrap-around."""

    def __init__(self, powercap: Path) -> None:
        self._domains: dict[str, tuple[Path, float]] = {}
        for zone in sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []:
            name = _read_text(zone / "name")
            # "psys" is the whole platform and contains the packages; "core" and "uncore" are parts of one.
            if name is None or not (name.startswith("package") or name == "dram"):
                continue
            parent = zone.name.split(":")[1]
            range_uj = _read_text(zone / "max_energy_range_uj")
            if _read_text(zone / "energy_uj") is not None and range_uj is not None:
                label = name if name.startswith("package") else f"{name}-{parent}"
                self._domains[label] = (zone / "energy_uj", float(range_uj))
        self._last: dict[str, float] = {}
        self._total_uj: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        for name, (path, _) in self._domains.items():
            value = _read_text(path)
            if value is not None:
                self._last[name], self._total_uj[name] = float(value), 0.0
        if self._last:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def stop(self) -> dict[str, float]:
        """Joules per domain since :meth:`start`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._sample()
        return {name: total / 1e6 for name, total in self._total_uj.items()}

    def _watch(self) -> None:
        while not self._stop.wait(RAPL_INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        for name in list(self._last):
            path, range_uj = self._domains[name]
            text = _read_text(path)
            if text is None:  # no longer readable: a part of the window is not a measurement of it
                del self._last[name], self._total_uj[name]
                continue
            value = float(text)
            step = value - self._last[name]
            self._total_uj[name] += step if step >= 0 else step + range_uj
            self._last[name] = value


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
