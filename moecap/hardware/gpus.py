"""The GPUs that a job sees: which ones its environment leaves it, and what the driver says of exactly those.

A driver lists every card of a node. What a job gets is less, and not in that order: ``CUDA_VISIBLE_DEVICES`` picks by
number, UUID or MIG id; a card in MIG mode gives a slice of itself; on AMD, ``ROCR_VISIBLE_DEVICES`` and then
``HIP_VISIBLE_DEVICES`` pick, and a compute partition is the slice. What is checked and measured must be what is used.

NVIDIA's cards are read through NVML (nvidia-ml-py), AMD's from the kernel's own tables under /sys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYS = Path("/sys")
# How CUDA numbers cards: by default the fastest first, which no driver's list says; jobs ask for NVML's order.
ORDER = "CUDA_DEVICE_ORDER"
BY_PLACE = "PCI_BUS_ID"


@dataclass(frozen=True)
class Slice:
    """A part of a card (MIG), as a device of its own."""

    uuid: str
    handle: Any = None


@dataclass(frozen=True)
class Card:
    """A card as the driver lists it, at ``index``. ``slices``: those it is cut into; None: it is whole."""

    uuid: str
    index: int = 0
    name: str | None = None
    handle: Any = None
    slices: tuple[Slice, ...] | None = None


@dataclass(frozen=True)
class Device:
    """What a process sees as one GPU: a card, or a slice of it."""

    card: Card
    slice: Slice | None = None

    @property
    def handle(self) -> Any:
        return self.card.handle if self.slice is None else self.slice.handle


def chosen(selection: str | None, cards: Sequence[Card]) -> list[Device]:
    """The devices that CUDA shows under ``CUDA_VISIBLE_DEVICES=selection``, in its order. None: the variable is unset.

    By the driver's rules: a number, or the beginning of a UUID, up to the first that is none (``-1``, ``NoDevFiles``,
    a number beyond the last card, a UUID of two cards); one that is named twice leaves nothing; of a card in MIG mode
    only the first slice, unless another is named. Numbers count in the order of ``cards``.

    >>> cards = [Card("GPU-a"), Card("GPU-b", slices=(Slice("MIG-1"), Slice("MIG-2")))]
    >>> [d.card.uuid for d in chosen("1,0", cards)]
    ['GPU-b', 'GPU-a']
    >>> chosen("MIG-2", cards)[0].slice.uuid
    'MIG-2'
    >>> chosen("NoDevFiles", cards)
    []
    """
    if selection is None:
        return [device for card in cards if (device := _whole(card))]
    found: list[Device] = []
    for word in selection.split(","):
        device = _pick(word.strip(), cards)
        if device is None:
            break
        if device in found:
            return []
        found.append(device)
    return found


def _whole(card: Card) -> Device | None:
    if card.slices is None:
        return Device(card)
    return Device(card, card.slices[0]) if card.slices else None


def _pick(word: str, cards: Sequence[Card]) -> Device | None:
    number = re.match(r"[+-]?\d+", word)
    if number:
        index = int(number[0])
        return _whole(cards[index]) if 0 <= index < len(cards) else None
    if word.startswith("MIG-"):
        slices = [Device(c, s) for c in cards for s in c.slices or () if s.uuid.startswith(word)]
        return slices[0] if len(slices) == 1 else None
    named = [card for card in cards if word.startswith("GPU-") and card.uuid.startswith(word)]
    return _whole(named[0]) if len(named) == 1 else None


def order_is_known(environment: Mapping[str, str], cards: Sequence[Card]) -> bool:
    """Whether a number in ``CUDA_VISIBLE_DEVICES`` names the card that the driver lists under it.

    It does not where cards differ and CUDA sorts them by speed: its default, which the jobs of this workflow change.
    """
    picked = environment.get("CUDA_VISIBLE_DEVICES", "0")
    by_number = bool(re.match(r"\s*[+-]?\d", picked))
    return environment.get(ORDER) == BY_PLACE or not by_number or len({card.name for card in cards}) <= 1


# -- NVIDIA -----------------------------------------------------------------------------------------------------------


class Nvml:
    """NVML, opened; ``ask`` gives None for what a card or driver does not answer.

    Raises:
        OSError: no library, no driver or no card.
    """

    def __init__(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:
            raise OSError(f"NVML does not answer: {error}") from error
        self.api: Any = pynvml

    def ask(self, function: str, *arguments: Any, scale: float | None = None) -> Any:
        try:
            answer: Any = getattr(self.api, function)(*arguments)
        except Exception:
            return None
        if isinstance(answer, bytes):
            return answer.decode()
        return answer if scale is None else answer * scale

    def cards(self) -> list[Card]:
        """Every card of the machine, in the order of its place on the bus."""
        return [self._card(index) for index in range(self.ask("nvmlDeviceGetCount") or 0)]

    def _card(self, index: int) -> Card:
        handle = self.ask("nvmlDeviceGetHandleByIndex", index)
        mode = self.ask("nvmlDeviceGetMigMode", handle)
        slices = None
        if mode is not None and mode[0]:
            count = self.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
            parts = [self.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, i) for i in range(count)]
            slices = tuple(Slice(str(self.ask("nvmlDeviceGetUUID", part)), part) for part in parts if part is not None)
        uuid = self.ask("nvmlDeviceGetUUID", handle)
        return Card(str(uuid or f"card-{index}"), index, self.ask("nvmlDeviceGetName", handle), handle, slices)

    def visible(self, environment: Mapping[str, str] | None = None) -> list[Device]:
        """The devices that this process, or one with ``environment``, sees."""
        environment = os.environ if environment is None else environment
        return chosen(environment.get("CUDA_VISIBLE_DEVICES"), self.cards())

    def processes(self, device: Device) -> set[int] | None:
        """Ids of the processes that compute on a device; None: not told."""
        found = self.ask("nvmlDeviceGetComputeRunningProcesses", device.handle)
        return None if found is None else {int(process.pid) for process in found}

    def close(self) -> None:
        self.ask("nvmlShutdown")


def nvidia(environment: Mapping[str, str] | None = None) -> tuple[str | None, list[dict[str, Any]]]:
    """The driver's version and, per visible device, the facts of :func:`detect`; ``(None, [])`` without NVML."""
    try:
        nvml = Nvml()
    except OSError:
        return None, []
    environment = os.environ if environment is None else environment
    try:
        cards = nvml.cards()
        known = order_is_known(environment, cards)
        devices = chosen(environment.get("CUDA_VISIBLE_DEVICES"), cards)
        return nvml.ask("nvmlSystemGetDriverVersion"), [_facts(nvml, device, known) for device in devices]
    finally:
        nvml.close()


def _facts(nvml: Nvml, device: Device, order_known: bool) -> dict[str, Any]:
    ask, handle, card = nvml.ask, device.handle, device.card.handle
    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    capability = ask("nvmlDeviceGetCudaComputeCapability", card)
    ecc, mig = ask("nvmlDeviceGetEccMode", card), ask("nvmlDeviceGetMigMode", card)
    clocks = {
        f"{prefix}{name}_hz": ask(function, card, kind, scale=1e6)
        for prefix, function in (("", "nvmlDeviceGetClockInfo"), ("max_", "nvmlDeviceGetMaxClockInfo"))
        for name, kind in (("sm", nvml.api.NVML_CLOCK_SM), ("memory", nvml.api.NVML_CLOCK_MEM))
    }
    return {
        "name": device.card.name,
        "memory_bytes": None if memory is None else memory.total,
        "clocks": clocks,
        "power_limit_w": ask("nvmlDeviceGetEnforcedPowerLimit", card, scale=1e-3),
        "default_power_limit_w": ask("nvmlDeviceGetPowerManagementDefaultLimit", card, scale=1e-3),
        "compute_capability": None if capability is None else ".".join(map(str, capability)),
        "pcie_generation": ask("nvmlDeviceGetMaxPcieLinkGeneration", card),
        "pcie_width": ask("nvmlDeviceGetMaxPcieLinkWidth", card),
        "ecc": None if ecc is None else bool(ecc[0]),
        "mig": None if mig is None else bool(mig[0]),
        "partition": None if device.slice is None else "MIG",
        "order_known": order_known,
    }


# -- AMD --------------------------------------------------------------------------------------------------------------


def amd(environment: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """As :func:`nvidia`, of AMD's cards: name, memory and partition; all else is null."""
    environment = os.environ if environment is None else environment
    cards = _amd_cards()
    by_uuid = [Card(f"GPU-{card['unique_id']}", i, card["name"]) for i, card in enumerate(cards)]
    seen = [d.card for d in chosen(environment.get("ROCR_VISIBLE_DEVICES"), by_uuid)]
    # HIP counts among those; it takes CUDA's variable where its own is not set.
    selection = environment.get("HIP_VISIBLE_DEVICES", environment.get("CUDA_VISIBLE_DEVICES"))
    return [_amd_facts(cards[d.card.index]) for d in chosen(selection, seen)]


def _amd_cards() -> list[dict[str, Any]]:
    """AMD's cards in the order of ROCm, which is that of the kernel's topology."""
    found = []
    nodes = (SYS / "class/kfd/kfd/topology/nodes").glob("[0-9]*")
    for node in sorted(nodes, key=lambda path: int(path.name)):
        properties = dict(line.split(None, 1) for line in _text(node / "properties").splitlines() if " " in line)
        minor = properties.get("drm_render_minor", "0").strip()
        if properties.get("simd_count", "0").strip() == "0" or minor in ("0", "-1"):
            continue  # a CPU, or a card that this process may not open
        device = SYS / f"class/drm/renderD{minor}/device"
        memory = _text(device / "mem_info_vram_total")
        found.append(
            {
                "name": _text(device / "product_name") or None,
                "unique_id": _text(device / "unique_id") or minor,
                "memory_bytes": int(memory) if memory.isdigit() else None,
                "partition": _text(device / "current_compute_partition") or None,
            }
        )
    return found


def _amd_facts(card: Mapping[str, Any]) -> dict[str, Any]:
    partition = card["partition"]
    return {
        **dict.fromkeys(("power_limit_w", "default_power_limit_w", "compute_capability", "pcie_generation")),
        **dict.fromkeys(("pcie_width", "ecc", "mig")),
        "name": card["name"],
        "memory_bytes": card["memory_bytes"],
        "clocks": dict.fromkeys(("sm_hz", "memory_hz", "max_sm_hz", "max_memory_hz")),
        "partition": None if partition in (None, "SPX") else partition,
        "order_known": True,
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


# -- either -----------------------------------------------------------------------------------------------------------


def detect(environment: Mapping[str, str] | None = None) -> tuple[str | None, list[dict[str, Any]]]:
    """NVIDIA's driver version, and one dict per GPU that this process (or one with ``environment``) sees, in the order
    in which it sees them: name, memory_bytes (of a slice: the slice's), clocks (sm_hz, memory_hz, max_sm_hz,
    max_memory_hz), power_limit_w, default_power_limit_w, compute_capability, pcie_generation, pcie_width, ecc, mig,
    partition ("MIG", or the name of an AMD compute partition; null: a whole card), order_known (false: CUDA may number
    the cards in another order). What a card does not answer is null; ``(None, [])`` where there is no GPU.
    """
    driver, found = nvidia(environment)
    return driver, found or amd(environment)


# A driver reports up to 7 % less (ECC) or more (binary gigabytes) than is stated; half a card is not near.
SOLD_WITH = (0.9, 1.1)


def differences(
    gpus: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    count: int,
    *,
    memory_bytes: float | None = None,
    same: Callable[[str, str], bool] = lambda a, b: a == b,
) -> list[str]:
    """Why the first ``count`` of ``gpus`` (:func:`detect`), which a job would use, are not whole GPUs of a kind.

    Args:
        names: what the driver may call that kind.
        memory_bytes: what it is sold with.
        same: compares names.
    """
    called = " or ".join(map(repr, names))
    listed = ", ".join(sorted({str(gpu["name"] or "unknown") for gpu in gpus})) or "no GPU"
    if len(gpus) < count:
        picked = {k: os.environ[k] for k in _PICKS if k in os.environ}
        by = f" ({', '.join(f'{k}={v}' for k, v in picked.items())} leaves it so)" if picked else ""
        return [f"the job sees {len(gpus)} GPU(s), not {count} called {called} (found: {listed}){by}"]
    found = []
    for number, gpu in enumerate(gpus[:count]):
        if not any(same(str(gpu["name"] or ""), name) for name in names):
            found.append(f"GPU {number}, as the job counts, is called {gpu['name'] or 'nothing'}, not {called}")
        elif gpu.get("partition") or gpu.get("mig"):
            size = f" of {gpu['memory_bytes'] / 1e9:.0f} GB" if gpu.get("memory_bytes") else ""
            found.append(f"GPU {number} is a part{size} of a card ({gpu.get('partition') or 'MIG'}), not a whole one")
        elif memory_bytes and gpu.get("memory_bytes"):
            low, high = (bound * memory_bytes for bound in SOLD_WITH)
            if not low <= gpu["memory_bytes"] <= high:
                found.append(
                    f"GPU {number} has {gpu['memory_bytes'] / 1e9:.0f} GB of memory, not {memory_bytes / 1e9:.0f} GB"
                )
    if count and not all(gpu.get("order_known", True) for gpu in gpus[:count]):
        found.append(f"cards differ, and which one CUDA takes is not known: set {ORDER}={BY_PLACE}")
    return found


_PICKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
