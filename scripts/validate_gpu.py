"""Hold bytes against an NVIDIA GPU's own counters, and time against its bandwidth; writes gpu.csv and gpu.md.

    python scripts/validate_gpu.py --output docs/validation

One Mixtral-8x7B layer of its real dimensions and a whole model of OLMoE's size, with random weights, decode one step
at batch sizes 1 to 64 under Nsight Compute (`ncu`, metric `dram__bytes_read.sum`). Weights are many times the L2 cache.
Experts are executed one by one, so that what no token was sent to is not read. Then the same steps are timed without
the profiler, experts in one grouped product, against read and copy bandwidth measured in the same process.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from moecap.checks.byte_check import compare, measure
from moecap.checks.measured_bytes import AppendingCache
from moecap.errors import MoecapError
from moecap.hardware import machine
from moecap.io import atomic_path, read_json
from moecap.model.counted import anatomy as anatomy_of
from moecap.model.resolve import resolve
from moecap.model.structure import Anatomy
from moecap.provenance import ROOT, library_versions

sys.path.insert(0, str(Path(__file__).parent))
from validate_bytes import random_weights, real_layer

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
PROMPT_TOKENS = 128
TIMED_STEPS = 20
READ = "dram__bytes_read.sum"
#: Counters are of the whole device and of caches that hold something; weights have to agree within this.
TOLERANCE = 0.05
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def olmoe(device: str) -> tuple[Any, Anatomy]:
    """The whole of OLMoE-1B-7B with random weights."""
    config = dict(resolve("olmoe-1b-7b").config or {})
    shape = AutoConfig.for_model(config.pop("model_type"), **config)
    return random_weights(shape, device), anatomy_of("olmoe-1b-7b")


MODELS: dict[str, Callable[[str], tuple[Any, Anatomy]]] = {"mixtral-layer": real_layer, "olmoe": olmoe}

COLUMNS = {
    "model": "what was decoded",
    "batch_size": "sequences, one token each",
    "unique_experts": "experts read per layer, mean",
    "mbu_bytes": "MBU's count, eq. (1), B",
    "s_mbu_bytes": "S-MBU's as printed, B",
    "s_mbu_complete_bytes": "S-MBU's complete count, B",
    "measured_bytes": "counted op by op, B",
    "dram_bytes": "read from device memory by the GPU's counters, B",
    "dram_error": "complete count over the counters, minus 1",
    "kernels": "kernels of the step",
    "tpot_ms": "time of a decode step without profiler, experts grouped, ms",
    "achieved_gb_per_s": "complete bytes over that time, GB/s",
    "read_gb_per_s": "measured read bandwidth, GB/s",
    "copy_gb_per_s": "measured copy bandwidth (bytes read and written), GB/s",
    "s_mbu_complete": "achieved over read bandwidth",
}


def reason_to_skip() -> str | None:
    """Why counters cannot be read here; None: they can."""
    if not torch.cuda.is_available():
        return "no CUDA device is visible to PyTorch"
    if shutil.which("ncu") is None:
        return "Nsight Compute (`ncu`) is not on the PATH"
    return None


def step(name: str, batch_size: int, device: str = "cuda") -> dict[str, Any]:
    """Decode one step of a model, with the GPU's profiler open around nothing else; the row of the whole model."""
    model, anatomy = MODELS[name](device)
    window = torch.cuda.profiler.profile if device.startswith("cuda") else None
    list(measure(model, [batch_size], PROMPT_TOKENS))  # libraries choose and load their kernels
    (measured,) = measure(model, [batch_size], PROMPT_TOKENS, **({"window": window} if window else {}))
    return {**compare(measured, anatomy, None), "model": name}


def timed(name: str, device: str = "cuda", batch_sizes: Sequence[int] = BATCH_SIZES) -> list[dict[str, Any]]:
    """Mean time of a decode step per batch size, and the device's bandwidths."""
    measured = machine.calibrate(10.0, device)
    model, _ = MODELS[name](device)
    if device.startswith("cuda"):
        model.set_experts_implementation("grouped_mm")
    rows = []
    for batch_size in batch_sizes:
        cache = AppendingCache(model.config, PROMPT_TOKENS + TIMED_STEPS + 1)
        shape = (batch_size, PROMPT_TOKENS + TIMED_STEPS + 1)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
        with torch.inference_mode():
            model(input_ids=tokens[:, :PROMPT_TOKENS], past_key_values=cache, logits_to_keep=1)
            times = []
            for at in range(PROMPT_TOKENS, PROMPT_TOKENS + TIMED_STEPS + 1):
                _wait(device)
                started = time.perf_counter()
                model(input_ids=tokens[:, at : at + 1], past_key_values=cache)
                _wait(device)
                times.append(time.perf_counter() - started)
        rows.append(
            {
                "model": name,
                "batch_size": batch_size,
                "tpot_ms": 1e3 * sum(times[1:]) / len(times[1:]),  # the first one chooses kernels
                "read_gb_per_s": measured["read_bandwidth_bytes_per_s"] / 1e9,
                "copy_gb_per_s": measured["copy_bandwidth_bytes_per_s"] / 1e9,
            }
        )
    return rows


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def dram_bytes(lines: Iterable[str]) -> tuple[float, int]:
    """Bytes read from device memory, and the number of kernels, from what ``ncu --csv`` wrote.

    Raises:
        MoecapError: there is no such metric in it, with what ncu said instead.
    """
    lines = list(lines)
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    said = " ".join(line.strip() for line in lines if line.startswith("==ERROR==")) or "it profiled no kernel"
    if start is None:
        raise MoecapError(
            f"ncu gave no table: {said}. Reading counters needs permission (the driver's option "
            "NVreg_RestrictProfilingToAdminUsers=0, or root)."
        )
    total, kernels = 0.0, set()
    for row in csv.DictReader(lines[start:]):
        if row["Metric Name"] == READ:
            unit = row["Metric Unit"]
            if unit not in UNITS:
                raise MoecapError(f"ncu gives {READ} in {unit!r}; known: {', '.join(UNITS)}.")
            total += float(row["Metric Value"].replace(",", "")) * UNITS[unit]
            kernels.add(row["ID"])
    if not kernels:
        raise MoecapError(f"ncu's table has no {READ}: {said}.")
    return total, len(kernels)


def counted_by_gpu(name: str, batch_size: int, folder: Path) -> dict[str, Any]:
    """One row: a step in a process of its own, under the profiler."""
    result, log = folder / f"{name}-{batch_size}.json", folder / f"{name}-{batch_size}.csv"
    command = [
        *("ncu", "--profile-from-start", "off", "--target-processes", "all", "--metrics", READ),
        # The caches as the step leaves them: flushed before every kernel, activations would be read from memory.
        *("--cache-control", "none", "--csv", "--print-units", "base", "--log-file", str(log)),
        *(sys.executable, __file__, "--step", name, str(batch_size), str(result)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        tail = " ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise MoecapError(f"ncu failed on {name} at batch size {batch_size} (status {done.returncode}): {tail}")
    row = read_json(result)
    total, kernels = dram_bytes(log.read_text().splitlines(keepends=True))
    return {**row, "dram_bytes": total, "kernels": kernels, "dram_error": row["s_mbu_complete_bytes"] / total - 1}


def joined(counted: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Counters and times of the same point in one row."""
    by_point = {(row["model"], row["batch_size"]): row for row in times}
    rows = []
    for row in counted:
        both = {**row, **by_point[row["model"], row["batch_size"]]}
        both["achieved_gb_per_s"] = both["s_mbu_complete_bytes"] / both["tpot_ms"] / 1e6
        both["s_mbu_complete"] = both["achieved_gb_per_s"] / both["read_gb_per_s"]
        rows.append({name: both[name] for name in COLUMNS})
    return rows


def wrong(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Points whose bytes the counters do not confirm, or whose S-MBU is impossible."""
    found = []
    for row in rows:
        where = f"{row['model']}, batch size {row['batch_size']}"
        if abs(row["dram_error"]) > TOLERANCE:
            found.append(f"{where}: the complete count is {100 * row['dram_error']:+.1f}% off the GPU's counters")
        if row["s_mbu_complete"] > 1:
            found.append(
                f"{where}: S-MBU is {row['s_mbu_complete']:.3f}, and nothing reads faster than memory delivers"
            )
    return found


def markdown(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """What was done, on what, and the table."""
    shown = {
        "model": "model",
        "batch_size": "batch",
        "unique_experts": "experts read",
        "mbu_bytes": "MBU, MB",
        "s_mbu_bytes": "S-MBU printed, MB",
        "s_mbu_complete_bytes": "complete, MB",
        "measured_bytes": "op by op, MB",
        "dram_bytes": "counters, MB",
        "dram_error": "complete / counters",
        "tpot_ms": "TPOT, ms",
        "achieved_gb_per_s": "achieved, GB/s",
        "s_mbu_complete": "S-MBU complete",
    }

    def cell(name: str, value: Any) -> str:
        if name.endswith("_bytes"):
            return f"{value / 1e6:,.1f}"
        if name == "dram_error":
            return f"{100 * value:+.2f}%"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    mistakes = wrong(rows)
    return "\n".join(
        [
            "# Bytes against a GPU's own counters",
            "",
            " ".join((__doc__ or "").split("\n\n")[2].split()),
            "",
            f"{facts['machine']}; "
            + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
            + f". {facts['date']}. Read bandwidth {max(r['read_gb_per_s'] for r in rows):,.0f} GB/s, copy "
            f"{max(r['copy_gb_per_s'] for r in rows):,.0f} GB/s.",
            "",
            "| " + " | ".join(shown.values()) + " |",
            "|---|" + "---:|" * (len(shown) - 1),
            *("| " + " | ".join(cell(name, row[name]) for name in shown) + " |" for row in rows),
            "",
            *(f"- {line}." for line in mistakes or [f"Every count is within {100 * TOLERANCE:g}% of the counters"]),
            "",
            "Made by `scripts/validate_gpu.py` (`make test-gpu`).",
            "",
        ]
    )


def run(output: Path, models: Sequence[str] = tuple(MODELS), batch_sizes: Sequence[int] = BATCH_SIZES) -> list[dict]:
    """Everything, and the pages; returns the rows."""
    reason = reason_to_skip()
    if reason:
        raise MoecapError(f"The GPU's counters cannot be read here: {reason}.")
    counted: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            for size in batch_sizes:
                counted.append(counted_by_gpu(name, size, Path(folder)))
                print(f"{name}, batch size {size}: {counted[-1]['dram_error']:+.4f}", file=sys.stderr, flush=True)
            times += timed(name, batch_sizes=batch_sizes)
            torch.cuda.empty_cache()
    rows = joined(counted, times)
    detected = machine.detect()
    gpu = detected["gpus"][0]["name"] if detected.get("gpus") else torch.cuda.get_device_name()
    ncu = subprocess.run(["ncu", "--version"], capture_output=True, text=True).stdout.split()
    facts = {
        "machine": gpu,
        "versions": {
            **library_versions("torch", "transformers"),
            "CUDA": torch.version.cuda,
            "driver": detected.get("driver"),
            "ncu": next((word for word in ncu if word[:1].isdigit() and "." in word), "unknown"),
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    with atomic_path(output / "gpu.csv") as path, path.open("w", newline="") as file:
        file.writelines(f"# {name}: {meaning}\n" for name, meaning in COLUMNS.items())
        writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    with atomic_path(output / "gpu.md") as path:
        path.write_text(markdown(rows, facts))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--step", nargs=3, metavar=("MODEL", "BATCH", "JSON"), help="one step, for the profiler")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--output", type=Path, default=Path("docs/validation"))
    args = parser.parse_args(argv)
    try:
        if args.step:
            name, batch_size, result = args.step
            Path(result).write_text(json.dumps(step(name, int(batch_size))))
            return 0
        mistakes = wrong(run(args.output, args.models))
    except MoecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in mistakes:
        print(f"wrong: {line}", file=sys.stderr)
    return 1 if mistakes else 0


if __name__ == "__main__":
    raise SystemExit(main())
