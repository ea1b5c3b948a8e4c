"""What is known of machines and of where the figures came from, as pairs of a name and a value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from moecap.report.inputs import Inputs
from moecap.report.numbers import binary, prefixed

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


def machine_facts(machine: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, how it is known) of what detection and calibration found; what is null is said to be unknown."""
    found = []
    for key, name, how in MACHINE_FACTS:
        if key in machine:
            value = machine[key]
            found.append((name, _fact(key, value), how if value not in (None, [], {}) else "not readable here"))
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
