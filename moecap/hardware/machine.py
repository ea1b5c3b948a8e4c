"""The machine at hand: what it is (detected) and what it can do (measured by a short calibration).

Detection reads Linux's /proc and /sys, psutil and NVML, and leaves null what it cannot read. Calibration measures peak
read and copy bandwidth and peak FLOP/s per dtype with torch, so that utilizations refer to what this machine reaches,
not to a data sheet.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from moecap.errors import MoecapError
from moecap.hardware import gpus

SYS = Path("/sys")
PROC = Path("/proc")
# Instruction sets that decide which kernels an engine has.
ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
# Identical machines report memory that differs by what kernel and firmware keep for themselves.
MEMORY_TOLERANCE = 0.03
MIN_TRIALS = 4


def detect() -> dict[str, Any]:
    """What this machine is. Keys (null where unreadable):

    ``cpu_model``, ``cores`` (physical), ``threads`` (logical), ``available_cores`` (that this process may use),
    ``sockets``, ``isa``, ``memory_bytes``, ``memory_limit_bytes`` (of the control group), ``caches`` (list of level,
    type, size_bytes, instances), ``last_level_cache_bytes`` (sum over instances), ``numa`` (list of node, cpus,
    memory_bytes), ``clocks`` (base_hz, max_hz, current_hz, governor), ``power_cap_w`` (sum of the packages' long-term
    RAPL limits), ``virtualized``, ``kernel``, ``driver`` (NVIDIA's), ``gpus`` (those that this process sees:
    :func:`moecap.hardware.gpus.detect`). No host or user name.
    """
    driver, seen = gpus.detect()
    cpuinfo = _cpuinfo()
    caches = _caches()
    return {
        "cpu_model": cpuinfo["model"],
        "isa": cpuinfo["isa"],
        "virtualized": cpuinfo["virtualized"],
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": psutil.cpu_count(),
        "available_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        "sockets": cpuinfo["sockets"],
        "memory_bytes": psutil.virtual_memory().total,
        "memory_limit_bytes": _memory_limit(),
        "caches": caches,
        "last_level_cache_bytes": _last_level_cache(caches),
        "numa": _numa(),
        "clocks": _clocks(),
        "power_cap_w": _power_cap(),
        "kernel": f"{platform.system()} {platform.release()}",
        "driver": driver,
        "gpus": seen,
    }


def fingerprint(detected: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a kind of machine, stable between boots: CPU model, cores, memory (GiB, rounded), kinds of GPU
    and, where there are GPUs, how much memory they have (GiB, rounded): cards of one name are made in several sizes.

    Nothing in it names the host or the user: two equal nodes of a cluster have the same fingerprint, and so have jobs
    that got one of a node's GPUs and all of them.
    """
    seen = detected.get("gpus") or []
    sizes = {round(gpu["memory_bytes"] / 2**30) for gpu in seen if gpu.get("memory_bytes")}
    return {
        "cpu_model": detected["cpu_model"],
        "cores": detected["cores"],
        "memory_gib": round(detected["memory_bytes"] / 2**30),
        "gpus": sorted({gpu["name"] or "unknown" for gpu in seen}),
        **({"gpu_memory_gib": sorted(sizes)} if sizes else {}),
    }


def check_is(expected: Mapping[str, Any], detected: Mapping[str, Any], name: str = "the deployment's hardware") -> None:
    """Raise a :class:`MoecapError` unless ``detected`` is the machine that a deployment names.

    Args:
        expected: what must hold, any of: ``fingerprint`` (from a calibration: cpu_model, cores, memory_gib, gpus,
            gpu_memory_gib), ``gpu_names`` (what the driver may call the GPU; one match is enough) with ``gpus`` (how
            many of those that the job sees it uses: they must be whole, and of that kind) and ``gpu_memory_bytes`` (of
            one, as sold), ``cpu_names`` (parts of what the system may call the CPU).
        detected: :func:`detect`'s dict.
        name: the hardware's name, for the message.
    """
    here = fingerprint(detected)
    differences = _from_fingerprint(expected.get("fingerprint") or {}, here)
    if expected.get("gpu_names"):
        differences += gpus.differences(
            detected.get("gpus") or [],
            expected["gpu_names"],
            int(expected.get("gpus", 1)),
            memory_bytes=expected.get("gpu_memory_bytes"),
            same=lambda a, b: _plain(a) == _plain(b),
        )
    if expected.get("cpu_names"):
        model = _plain(here["cpu_model"] or "")
        if not any(_plain(alias) in model for alias in expected["cpu_names"]):
            differences.append(f"the CPU is {here['cpu_model']!r}, not {' or '.join(map(repr, expected['cpu_names']))}")
    if differences:
        raise MoecapError(
            f"This job landed on a machine other than {name}: {'; '.join(differences)}. Nothing was measured. Send the "
            "job to the right machine (partition or constraint in the profile), name the hardware that it runs on in "
            "the deployment table, or, if this machine has changed, delete its file under results/machine to calibrate "
            "it again."
        )


def _from_fingerprint(wanted: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    found = [
        f"{key} is {here[key]!r}, not {wanted[key]!r}"
        for key in ("cpu_model", "cores", "gpus")
        if key in wanted and wanted[key] != here[key]
    ]
    memory = wanted.get("memory_gib")
    if memory is not None and abs(memory - here["memory_gib"]) > max(1, MEMORY_TOLERANCE * memory):
        found.append(f"memory is {here['memory_gib']} GiB, not {memory} GiB")
    calibrated = wanted.get("gpu_memory_gib")
    sizes = here.get("gpu_memory_gib") or []
    if calibrated and any(all(abs(a - b) > max(1, MEMORY_TOLERANCE * b) for b in calibrated) for a in sizes):
        found.append(f"the memory of a GPU is {_list(sizes)} GiB, not {_list(calibrated)} GiB")
    return found


def _list(values: Sequence[Any]) -> str:
    return " or ".join(map(str, values))


def calibrate(seconds: float = 20.0, device: str = "cpu") -> dict[str, Any]:
    """Measure peak read bandwidth, copy bandwidth and FLOP/s per dtype.

    The buffers are several times the last-level cache. Of each quantity several kernels are tried for an equal share
    of ``seconds``; the best trial of the best kernel is the peak, and the spread says how far the others fell short.

    Args:
        seconds: time to spend, about.
        device: "cpu", or a torch device such as "cuda:0".

    Returns:
        ``read_bandwidth_bytes_per_s``; ``copy_bandwidth_bytes_per_s`` (bytes read plus bytes written);
        ``peak_flops`` {dtype: FLOP/s, null where this machine has no kernel}; ``measured`` true; ``trials`` {quantity:
        {best, median, worst, trials, kernel, buffer_bytes or size}}; ``torch``, ``threads``, ``unix_time_s``.
    """
    import torch

    detected_cache = _last_level_cache(_caches()) if device == "cpu" else None
    free = psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info(device)[0]
    buffer_bytes = buffer_size(detected_cache, free)
    dtypes = ("fp32", "bf16", "fp16", "int8")
    share = seconds / (3 + 2 + len(dtypes))  # three read kernels, one copy at twice the share, one matmul per dtype
    started_unix_s = time.time()
    synchronize = (lambda: torch.cuda.synchronize(device)) if device != "cpu" else (lambda: None)
    threads = torch.get_num_threads()
    if device == "cpu" and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        with torch.inference_mode():
            bandwidth = _bandwidth_trials(torch, device, buffer_bytes, share, synchronize)
            flops = {dtype: _flops_trials(torch, device, dtype, share, synchronize) for dtype in dtypes}
        used_threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
    return {
        "measured": True,
        "read_bandwidth_bytes_per_s": bandwidth["read_bandwidth"]["best"],
        "copy_bandwidth_bytes_per_s": bandwidth["copy_bandwidth"]["best"],
        "peak_flops": {dtype: (found or {}).get("best") for dtype, found in flops.items()},
        "trials": {**bandwidth, **{f"flops_{dtype}": found for dtype, found in flops.items()}},
        "device": device,
        "threads": used_threads,
        "torch": torch.__version__,
        "unix_time_s": started_unix_s,
        "seconds": time.time() - started_unix_s,
    }


def buffer_size(last_level_cache_bytes: int | None, free_bytes: int) -> int:
    """Bytes of a calibration buffer: eight times the cache, 256 MiB at least, an eighth of free memory at most.

    Raises:
        MoecapError: so little memory is free that the buffer would not be twice the cache.
    """
    cache = last_level_cache_bytes or 64 * 2**20
    size = min(max(8 * cache, 256 * 2**20), free_bytes // 8)
    if size < 2 * cache:
        raise MoecapError(
            f"Calibration needs a buffer of at least {2 * cache / 2**20:.0f} MiB (twice the last-level cache), and an "
            f"eighth of the free memory is {free_bytes / 8 / 2**20:.0f} MiB. Free some memory and start again."
        )
    return size // 4096 * 4096


def _bandwidth_trials(
    torch: Any, device: str, buffer_bytes: int, share: float, synchronize: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    columns = 1024
    source = torch.ones(buffer_bytes // 4 // columns, columns, device=device)
    vector = torch.ones(columns, device=device)
    read_kernels = {
        "sum": lambda: source.sum(),
        "max": lambda: source.max(),
        "matrix_vector": lambda: torch.mv(source, vector),
    }
    read = [
        _trials(run, source.nbytes, share, synchronize) | {"kernel": name, "buffer_bytes": source.nbytes}
        for name, run in read_kernels.items()
    ]
    best = max(read, key=lambda trial: trial["best"])
    target = torch.empty_like(source)
    copy = _trials(lambda: target.copy_(source), 2 * source.nbytes, 2 * share, synchronize)
    return {
        "read_bandwidth": best | {"others": {trial["kernel"]: trial["best"] for trial in read if trial is not best}},
        "copy_bandwidth": copy | {"kernel": "copy", "buffer_bytes": source.nbytes},
    }


def _flops_trials(
    torch: Any, device: str, dtype: str, share: float, synchronize: Callable[[], None]
) -> dict[str, Any] | None:
    """FLOP/s of a large square matmul, sized so that a trial takes a fraction of ``share``; None without a kernel."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}[dtype]

    def multiply(size: int) -> Callable[[], Any]:
        if dtype == "int8":
            a, b = (torch.randint(-100, 100, (size, size), dtype=kind, device=device) for _ in range(2))
            b = b.t().contiguous().t()  # the layout that int8 kernels expect: columns contiguous
            return lambda: torch._int_mm(a, b)
        a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
        return lambda: torch.mm(a, b)

    try:
        size, run = 512, multiply(512)
        run()
        while size < 8192:
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            # The next size takes eight times as long; the fewest trials of it have to fit, roughly.
            if MIN_TRIALS * 8 * (time.perf_counter() - started) > 1.5 * share:
                break
            size *= 2
            run = multiply(size)
        return _trials(run, 2 * size**3, share, synchronize) | {"kernel": "matmul", "size": size}
    except (RuntimeError, NotImplementedError, AttributeError):
        return None


def _trials(run: Callable[[], Any], work: float, share: float, synchronize: Callable[[], None]) -> dict[str, Any]:
    """Rates (work per second) of trials over ``share`` seconds, after one to warm up."""
    run()
    synchronize()
    rates: list[float] = []
    end = time.perf_counter() + share
    while len(rates) < MIN_TRIALS or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        synchronize()
        rates.append(work / (time.perf_counter() - started))
    best, worst = max(rates), min(rates)
    return {
        "best": best,
        "median": statistics.median(rates),
        "worst": worst,
        "spread": (best - worst) / best,
        "trials": len(rates),
    }


def _plain(name: str) -> str:
    """Names compared without vendor marks, case and separators: "NVIDIA A100-SXM4-80GB" = "a100 sxm4 80gb"."""
    name = re.sub(r"\((r|tm)\)", "", name.lower())
    return " ".join(word for word in re.split(r"[\s\-_]+", name) if word not in ("nvidia", "tesla", "geforce"))


def _cpuinfo() -> dict[str, Any]:
    text = _text(PROC / "cpuinfo") or ""
    keys = {
        key.strip().lower(): value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if value
    }
    model, flags = keys.get("model name"), set((keys.get("flags") or keys.get("features") or "").split())
    if model is None:  # ARM and other systems: py-cpuinfo knows more ways, but takes a second
        import cpuinfo

        info = cpuinfo.get_cpu_info()
        model, flags = info.get("brand_raw") or platform.processor() or None, flags or set(info.get("flags", []))
    sockets = {line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("physical id")}
    return {
        "model": model,
        "isa": [name for name in ISA if name in flags],
        "sockets": len(sockets) or None,
        "virtualized": "hypervisor" in flags if flags else None,
    }


def _caches() -> list[dict[str, Any]]:
    """Distinct caches by level and type, with the number of instances (one may be shared by several cores)."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    seen: set[tuple[int, str, str]] = set()
    for index in sorted((SYS / "devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*")):
        level, kind, size, shared = (_text(index / f) for f in ("level", "type", "size", "shared_cpu_list"))
        if level is None or kind is None or size is None or (int(level), kind, shared or str(index)) in seen:
            continue
        seen.add((int(level), kind, shared or str(index)))
        entry = found.setdefault(
            (int(level), kind), {"level": int(level), "type": kind, "size_bytes": _size(size), "instances": 0}
        )
        entry["instances"] += 1
    return [found[key] for key in sorted(found)]


def _last_level_cache(caches: Sequence[Mapping[str, Any]]) -> int | None:
    data = [cache for cache in caches if cache["type"] != "Instruction"]
    if not data:
        return None
    last = max(data, key=lambda cache: cache["level"])
    return last["size_bytes"] * last["instances"]


def _numa() -> list[dict[str, Any]]:
    nodes = []
    for node in sorted((SYS / "devices/system/node").glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        total = re.search(r"MemTotal:\s+(\d+) kB", _text(node / "meminfo") or "")
        nodes.append(
            {
                "node": int(node.name[4:]),
                "cpus": _text(node / "cpulist"),
                "memory_bytes": int(total[1]) * 1024 if total else None,
            }
        )
    return nodes


def _clocks() -> dict[str, Any]:
    policy = SYS / "devices/system/cpu/cpu0/cpufreq"

    def khz(name: str) -> float | None:
        text = _text(policy / name)
        return float(text) * 1e3 if text and text.isdigit() else None

    current = khz("scaling_cur_freq")
    if current is None:  # virtual machines have no cpufreq; /proc/cpuinfo still says what the clock is
        found = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _text(PROC / "cpuinfo") or "", re.MULTILINE)
        current = float(found[1]) * 1e6 if found else None
    return {
        "base_hz": khz("base_frequency"),
        "max_hz": khz("cpuinfo_max_freq"),
        "current_hz": current,
        "governor": _text(policy / "scaling_governor"),
    }


def _power_cap() -> float | None:
    """Sum of the packages' long-term power limits (RAPL constraint 0), in watts."""
    limits = [
        _text(zone / "constraint_0_power_limit_uw")
        for zone in (SYS / "class/powercap").glob("intel-rapl:*")
        if (_text(zone / "name") or "").startswith("package")
    ]
    watts = [float(limit) / 1e6 for limit in limits if limit]
    return sum(watts) if watts else None


def _memory_limit() -> int | None:
    """The memory limit of the control group (v2, then v1) that this process is in; None: none."""
    lines = [line.split(":", 2) for line in (_text(PROC / "self/cgroup") or "").splitlines()]
    groups = {path: names for _, names, path in lines}
    v2 = next((path for path, names in groups.items() if names == ""), None)
    candidates = [SYS / "fs/cgroup/memory/memory.limit_in_bytes"]
    if v2 is not None:
        parts = Path(v2.lstrip("/"))
        candidates = [SYS / "fs/cgroup" / level / "memory.max" for level in (parts, *parts.parents)] + candidates
    limits = [int(text) for text in map(_text, candidates) if text and text.isdigit()]
    limits = [limit for limit in limits if limit < psutil.virtual_memory().total]
    return min(limits) if limits else None


def _size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
