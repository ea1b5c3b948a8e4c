"""What is predicted: a model at a precision, on devices, serving requests of a length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moecap.errors import MoecapError, nearest
from moecap.hardware.systems import Speeds
from moecap.model.structure import Anatomy

#: The dtype that GEMMs run in, by how the weights are stored (weight-only quantization computes in bf16).
COMPUTE_DTYPES = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "int8": "int8",
    "w8a8": "int8",
    "int4": "bf16",
    "w4a16": "bf16",
    "mxfp4": "bf16",
    "nvfp4": "fp4",
}


#: Share of a device's memory that weights and KV may fill; the rest is the engine's.
USABLE_MEMORY = 0.9

#: How the weights of a precision are stored, by the first word of its name that says so.
STORED_FORMATS = {"w8a8": "int8", "w4a16": "int4", "gptq": "int4", "awq": "int4"}


def stored_format(precision: str) -> str:
    """The format that weights are stored in: ``int4-gptq`` and ``awq-int4`` are ``int4``, ``fp8-block`` is ``fp8``.

    Raises:
        MoecapError: the name says none that is known.
    """
    words = precision.replace("_", "-").split("-")
    for word in words:
        if word in COMPUTE_DTYPES:
            return STORED_FORMATS.get(word, word)
    for word in words:
        if word in STORED_FORMATS:
            return STORED_FORMATS[word]
    raise MoecapError(f"How are the weights of precision {precision!r} stored? {nearest(precision, COMPUTE_DTYPES)}")


def compute_dtype(precision: str) -> str:
    """The dtype that GEMMs run in for a precision's name (``int4-g128``, ``int4-gptq`` …: its first part decides).

    Raises:
        MoecapError: the name says none that is known.
    """
    for name in (precision, precision.split("-")[0]):
        if name in COMPUTE_DTYPES:
            return COMPUTE_DTYPES[name]
    raise MoecapError(f"In which dtype does precision {precision!r} compute? {nearest(precision, COMPUTE_DTYPES)}")


@dataclass(frozen=True)
class Workload:
    """What a request is."""

    prompt_tokens: int = 512
    output_tokens: int = 128

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 2:
            raise MoecapError(
                f"A request of {self.prompt_tokens} prompt and {self.output_tokens} output tokens cannot be planned: "
                "at least 1 and 2 are needed."
            )


@dataclass(frozen=True)
class Candidate:
    """A model at a precision, and how accurate it is where that is known (0 to 1)."""

    anatomy: Anatomy
    compute_dtype: str
    accuracy: float | None = None

    @classmethod
    def of(cls, anatomy: Anatomy, accuracy: float | None = None) -> Candidate:
        """With the compute dtype that the precision's name implies."""
        return cls(anatomy, compute_dtype(anatomy.precision), accuracy)


@dataclass(frozen=True)
class Target:
    """Devices that serve one model together; rates and memory are those of ONE device."""

    hardware: str
    devices: int
    memory_bytes: float
    bytes_per_s: float
    flops: float | None
    link_bytes_per_s: float | None = None
    link: str | None = None

    @classmethod
    def of(
        cls, name: str, speeds: Speeds | None, devices: int, dtype: str, machine: Mapping[str, Any] | None = None
    ) -> Target:
        """From the catalogue's speeds, or from calibration where there are none.

        Raises:
            MoecapError: neither is there.
        """
        if speeds is not None:
            link, kind = speeds.link_bytes_per_s, "link"
            if not link:
                link, kind = speeds.pcie_bytes_per_s, "pcie"
            return cls(
                name,
                devices,
                speeds.memory_bytes,
                speeds.memory_bytes_per_s,
                speeds.peak_flops.get(dtype),
                link,
                kind if link else None,
            )
        if not machine or not machine.get("read_bandwidth_bytes_per_s"):
            raise MoecapError(
                f"{name}: its speeds are not in the catalogue but measured; give what calibration found "
                "(results/machine/*.json)."
            )
        return cls(
            name,
            devices,
            float(machine["memory_bytes"]),
            float(machine["read_bandwidth_bytes_per_s"]),
            (machine.get("peak_flops") or {}).get(dtype),
        )
