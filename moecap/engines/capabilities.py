"""What an engine can serve where: a plan is refused before anything starts. No engine and no torch is imported."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moecap.engines.base import library_versions
from moecap.engines.catalogue import EngineEntry, Way
from moecap.errors import PermanentError


@dataclass(frozen=True)
class Machine:
    """What a kernel asks of the hardware. None stands for "not known", to which nothing is objected.

    ``gpu_vendor`` is "none" where there is no GPU; ``lacks`` are the dtypes that its GPU has no units for.
    """

    name: str
    isa: str | None = None
    vendor: str | None = None
    flags: frozenset[str] | None = None
    packages: frozenset[str] | None = None
    gpu_vendor: str | None = None
    lacks: frozenset[str] | None = None


def this_machine(name: str = "this-machine", cpuinfo: str | Path = "/proc/cpuinfo") -> Machine:
    """The machine that this process runs on: CPU from ``/proc/cpuinfo``, packages from the environment.

    GPUs are left unknown: a driver is not to be touched for a question about CPUs.
    """
    path = Path(cpuinfo)
    return parse_cpuinfo(
        path.read_text(encoding="utf-8") if path.is_file() else "",
        name,
        packages=frozenset(library_versions()),
        isa=platform.machine(),
    )


def parse_cpuinfo(text: str, name: str, packages: frozenset[str] | None = None, isa: str | None = None) -> Machine:
    """A machine from the text of ``/proc/cpuinfo`` (x86: ``vendor_id``, ``flags``; Arm: ``Features``)."""

    def first(key: str) -> str | None:
        found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
        return found.group(1).strip() if found else None

    flags = first("flags") or first("Features")
    return Machine(
        name=name,
        isa=isa,
        vendor=first("vendor_id"),
        flags=frozenset(flags.split()) if flags is not None else None,
        packages=packages,
    )


def catalogue_machine(name: str, gpu: Mapping[str, Any] | None) -> Machine:
    """A machine as the hardware catalogue knows it: from a GPU's entry (``vendor``, ``lacks``). None: no GPU."""
    if gpu is None:
        return Machine(name=name, gpu_vendor="none")
    return Machine(name=name, gpu_vendor=gpu.get("vendor"), lacks=frozenset(gpu.get("lacks") or ()))


def _missing(way: Way, machine: Machine) -> list[str]:
    """What ``machine`` lacks of one way (one alternative in the catalogue) to run a precision."""
    lacks = []

    def one_of(wanted: str | list[str], have: str | None, what: str) -> None:
        allowed = _as_list(wanted)
        if allowed and have is not None and have not in allowed:
            lacks.append(f"{what} {' or '.join(allowed)}")

    one_of(way.isa, machine.isa, "a CPU of type")
    one_of(way.vendor, machine.vendor, "a CPU by")
    one_of(way.gpu_vendor, machine.gpu_vendor, "a GPU by")
    if machine.flags is not None:
        lacks += [f"CPU feature {flag}" for flag in _as_list(way.flags) if flag not in machine.flags]
    if machine.lacks is not None:
        lacks += [f"a GPU with {dtype} units" for dtype in _as_list(way.dtypes) if dtype in machine.lacks]
    if machine.packages is not None:
        lacks += [f"package {p}" for p in _as_list(way.packages) if p not in machine.packages]
    return lacks


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def scheme_of(precision: str | Mapping[str, Any] | None) -> str:
    """The scheme that an engine's catalogue entry speaks of, from a precision's entry or a name.

    >>> scheme_of({"scheme": "W8A8", "method": "rtn"})
    'W8A8'
    """
    if precision is None:
        return "bf16"
    if isinstance(precision, str):
        return precision
    return str(precision.get("scheme") or precision.get("name") or "bf16")


def check_can_serve(
    entry: EngineEntry,
    precision: str | Mapping[str, Any] | None,
    machine: Machine,
    *,
    engine: str,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    data_parallel: int = 1,
    expert_parallel: int = 1,
    offload: str = "none",
    where: str | None = None,
) -> None:
    """Refuse what an engine cannot do, before it is loaded: from its catalogue entry and facts about the machine.

    Args:
        entry: the engine's entry in ``engines.yaml``.
        precision: a scheme (``"W8A8"``), or a precision's entry with the key ``scheme``.
        machine: facts; what is not known (None) is not objected to.
        engine: the entry's name, for the message.
        where: ``file, line N (deployment)`` that asked, for the message.

    Raises:
        PermanentError: with the reason.
    """
    scheme = scheme_of(precision)
    capabilities = entry.capabilities
    prefix = f"{where}: " if where else ""
    limits = {
        "tensor_parallel": tensor_parallel,
        "pipeline_parallel": pipeline_parallel,
        "data_parallel": data_parallel,
        "expert_parallel": expert_parallel,
    }
    allowed: set[str] = set(capabilities.parallelism)
    for key, value in limits.items():
        if value > 1 and key not in allowed:
            raise PermanentError(
                f"{prefix}`{key}` is {value}, but engine {engine} serves with "
                f"{', '.join(sorted(allowed)) if allowed else 'no parallelism'} only (`capabilities.parallelism` in "
                "config/catalogue/engines.yaml)."
            )
    if offload != "none" and offload not in capabilities.offload:
        raise PermanentError(
            f"{prefix}`offload` is {offload!r}, which engine {engine} cannot do; it can: "
            f"{', '.join(['none', *capabilities.offload])}."
        )
    precisions = capabilities.precisions
    if scheme not in precisions:
        raise PermanentError(
            f"{prefix}engine {engine} has no kernel for experts in {scheme}; it serves: "
            f"{', '.join(precisions) or 'nothing'}."
        )
    ways = precisions[scheme] or [Way()]
    lacks = [_missing(way, machine) for way in ways]
    if all(lacks):
        options = "; or ".join(f"{way.name}: lacks {', '.join(lack)}" for way, lack in zip(ways, lacks, strict=True))
        raise PermanentError(f"{prefix}engine {engine} cannot serve experts in {scheme} on {machine.name} ({options}).")
