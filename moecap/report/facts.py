"""What is known of machines and of where the figures came from, as pairs of a name and a value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from moecap.report.inputs import Inputs
from moecap.report.numbers import binary, prefixed, times

Row = dict[str, Any]

MACHINE_FACTS = (
    ("cpu_model", "processor", "detected"),
    ("sockets", "sockets", "detected"),
    ("cores", "cores", "detected"),
    ("available_cores", "cores that this process may use", "detected"),
    ("isa", "instruction sets", "detected"),
    ("memory_bytes", "memory", "detected"),
    ("memory_limit_bytes", "memory limit", "detected"),
    ("last_level_cache_bytes", "last-level cache", "detected"),
    ("power_cap_w", "power cap", "detected"),
    ("clocks", "clocks", "detected"),
    ("numa", "NUMA nodes", "detected"),
    ("driver", "GPU driver", "detected"),
    ("gpus", "GPUs", "detected"),
    ("kernel", "kernel", "detected"),
    ("virtualized", "virtual machine", "detected"),
    ("read_bandwidth_bytes_per_s", "read bandwidth", "measured"),
    ("copy_bandwidth_bytes_per_s", "copy bandwidth", "measured"),
    ("peak_flops", "peak FLOP/s", "measured"),
    ("fingerprint", "fingerprint", "detected"),
)


#: Bits of an operand: a narrower one is never much slower where the chip multiplies in it.
_BITS = {"fp32": 32, "tf32": 19, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4}
#: A peak below this share of a wider dtype's, or of one operation per core and clock, is none of the chip's.
DOUBTED_SHARE = 0.1


def doubtful_peaks(machine: Mapping[str, Any]) -> dict[str, str]:
    """Measured peaks that the chip cannot have, by dtype, with the reason: a library without a kernel for the dtype
    emulates it, and what is relative to such a peak looks far too good.

    >>> doubtful_peaks({"peak_flops": {"fp32": 1e11, "bf16": 2e11, "fp16": 8.9e8, "int8": None}})
    {'fp16': '890 MFLOP/s were measured, 0.0089× that of fp32: most likely emulated, without a kernel of its own'}
    """
    peaks = {d: v for d, v in (machine.get("peak_flops") or {}).items() if v}
    clock = (machine.get("clocks") or {}).get("base_hz")
    cores = machine.get("available_cores") or machine.get("cores")
    found = {}
    for dtype, value in peaks.items():
        wider = {d: v for d, v in peaks.items() if _BITS.get(d, 0) > _BITS.get(dtype, 0)}
        best = max(wider, key=lambda d: wider[d], default=None)
        said = f"{prefixed(value)}FLOP/s were measured"
        if best and value < DOUBTED_SHARE * wider[best]:
            ratio = times(value / wider[best])
            found[dtype] = f"{said}, {ratio} that of {best}: most likely emulated, without a kernel of its own"
        elif clock and cores and value < DOUBTED_SHARE * clock * cores:
            found[dtype] = f"{said}, less than one operation per ten clocks of a core"
    return found


def machine_facts(machine: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, how it is known) of what detection and calibration found; what is null is said to be unknown."""
    found = []
    for key, name, how in MACHINE_FACTS:
        if key in machine:
            value = machine[key]
            found.append((name, _fact(key, value), how if value not in (None, [], {}) else "not readable here"))
    found += [(f"peak of {dtype}", why, "doubtful") for dtype, why in doubtful_peaks(machine).items()]
    return found


def _fact(key: str, value: Any) -> str:
    if value in (None, [], {}):
        return "none" if key == "gpus" else "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        parts = [
            f"{k.removesuffix('_hz')} {_fact(k if '_' in k else key, v)}" for k, v in value.items() if v is not None
        ]
        return ", ".join(parts) or "–"
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], Mapping):
            names = [str(v.get("name") or f"node {v.get('node')}: {v.get('cpus')}") for v in value]
            return "; ".join(names)
        return ", ".join(map(str, value))
    if key.endswith("_bytes_per_s"):
        return f"{value / 1e9:,.1f} GB/s"
    if key.endswith("_bytes"):
        return binary(value)
    if key.endswith("_hz"):
        return f"{value / 1e9:.2f} GHz"
    if key.endswith("_w"):
        return f"{value:g} W"
    if key == "peak_flops":
        return f"{prefixed(value)}FLOP/s"
    return str(value)


def provenance_facts(inputs: Inputs, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, value) of what the results were made from."""
    facts: list[tuple[str, str]] = []
    made = dict(inputs.provenance)
    commit = made.pop("git_commit", None)
    dirty = made.pop("git_dirty", None)
    if commit:
        facts.append(("commit", f"{commit}{' (with uncommitted changes)' if dirty else ''}"))
    made.pop("cap", None)  # the classes' rule; the leaderboard says it in words
    for key, value in made.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value is not None:
            facts.append((key.replace("_", " "), str(value)))
    for column, name in (("engine_version", "engine"), ("seed", "seed"), ("workload", "workload")):
        values = dict.fromkeys(
            f"{r['engine']} {r[column]}" if column == "engine_version" else str(r[column])
            for r in rows
            if r[column] is not None
        )
        if values:
            facts.append((name, "; ".join(list(values)[:12])))
    libraries: dict[str, Any] = {}
    for r in rows:
        if r["libraries"]:
            try:
                libraries |= json.loads(r["libraries"])
            except (ValueError, TypeError):
                libraries["libraries"] = r["libraries"]
    if libraries:
        facts.append(("libraries of the timed runs", ", ".join(f"{k} {v}" for k, v in sorted(libraries.items()))))
    times_ = [r["start_unix_s"] for r in rows if r["start_unix_s"]]
    if times_:
        first, last = (
            datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M UTC") for t in (min(times_), max(times_))
        )
        facts.append(("timed", first if first == last else f"{first} to {last}"))
    return facts
