"""Fused mixture-of-experts kernels: S-MBU that they reach, and slope and fixed time per format of the weights.

What a step reads is the weights of the *distinct* experts of its tokens. Dense MBU counts every expert, so it exceeds 1
wherever a kernel reads few of them; S-MBU counts what is read. Spread evenly, ``n`` tokens reach ``min(n k, E)``
experts; by a power law fewer than uniform routing's ``E (1 − (1 − k/E)^n)``, which is the most that can be said of
them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from moecap.hardware.catalogue import Hardware
from moecap.hardware.systems import Speeds
from moecap.metrics.routing_analysis import expected_unique
from moecap.model.recipes import resolve_precision
from moecap.plan.names import hardware_entry, precision_entry
from moecap.plan.points import KernelPoint
from moecap.plan.target import stored_format
from moecap.plan.terms import kernels, native

#: Formats are fitted to kernels of so many tokens at most: beyond, they compute.
MOST_TOKENS = 128


@dataclass(frozen=True)
class Kernel:
    """A measured kernel with the catalogue's names, its bytes, and what it reaches."""

    point: KernelPoint
    hardware: str
    speeds: Speeds
    format: str
    expert_bytes: float
    distinct: float

    @property
    def s_mbu(self) -> float:
        """Bytes of the distinct experts per second, over the bandwidth."""
        return self.distinct * self.expert_bytes / self.point.latency_s / self.speeds.memory_bytes_per_s

    @property
    def mbu(self) -> float:
        """The same with every expert counted."""
        return self.s_mbu * (self.point.experts / self.point.ep) / self.distinct

    @property
    def elements(self) -> float:
        """Weights of the distinct experts."""
        return self.distinct * 3 * self.point.hidden_size * self.point.expert_width / self.point.tp

    @property
    def tokens_per_expert(self) -> float:
        """Tokens that an expert sees on average."""
        return self.point.tokens * self.point.top_k / self.point.experts

    @property
    def predicted_s(self) -> float:
        """Latency by ``data/kernels.yaml``."""
        facts, size = kernels(), self.distinct * self.expert_bytes
        own = facts["formats"][self.format]
        if native(self.format, self.speeds):
            return float(own["launch_s"]) + float(own["slope"]) * size / self.speeds.memory_bytes_per_s
        unpacked = facts["unpacked"]
        read = float(unpacked["slope"]) * size / self.speeds.memory_bytes_per_s
        return float(own["launch_s"]) + read + self.elements / float(unpacked["elements_per_s"])


@lru_cache(maxsize=64)
def _expert_bytes(precision: str, hidden: int, width: int) -> float:
    recipe = resolve_precision(precision)
    if recipe.layout is None:
        return 3 * hidden * width * recipe.rest_bits / 8
    return float(2 * recipe.layout.matrix_bytes(width, hidden) + recipe.layout.matrix_bytes(hidden, width))


def kernels_of(points: Iterable[KernelPoint], hardware: Hardware) -> list[Kernel]:
    """Measured kernels whose GPU and format are known."""
    found = []
    for point in points:
        name, precision = hardware_entry(point.hardware, hardware), precision_entry(point.dtype)
        speeds = hardware.find(name).speeds if name else None
        if name is None or precision is None or speeds is None:
            continue
        reached = (
            min(point.tokens * point.top_k, point.experts)
            if point.routing == "balanced"
            else float(expected_unique(point.tokens, point.experts, point.top_k))
        )
        size = _expert_bytes(precision, point.hidden_size, point.expert_width) / point.tp
        found.append(Kernel(point, name, speeds, stored_format(precision), size, reached / point.ep))
    return found


def kernel_report(points: Sequence[KernelPoint], hardware: Hardware) -> dict[str, Any]:
    """Shares of kernels beyond an MBU and an S-MBU of 1, errors of predicted latencies, and the same by group.

    ``correlation`` is the median over (GPU, format, shape, kernel) of the log-log correlation of latency with distinct
    experts. ``atlas``: median S-MBU and MBU by GPU × format × tokens per expert (balanced routing).
    """
    found = kernels_of(points, hardware)
    if not found:
        return {"points": 0}
    small = [k for k in found if k.point.tokens <= MOST_TOKENS]
    error = np.array([k.predicted_s / k.point.latency_s - 1 for k in small])
    return {
        "points": len(found),
        "small": len(small),
        "dense_mbu_above_one": _share(k.mbu > 1 for k in small),
        "s_mbu_above_one": _share(k.s_mbu > 1 for k in small),
        "balanced_s_mbu_above_one": _share([k.s_mbu > 1 for k in small if k.point.routing == "balanced"] or [False]),
        "mape": float(np.abs(error).mean()),
        "median": float(np.median(np.abs(error))),
        "correlation": _correlation(small),
        "skew": _skew(small),
        "above_one": [
            {"format": fmt, "shape": shape, "kernel": kernel, "kernels": len(group),
             "above_one": _share(k.s_mbu > 1 for k in group), "balanced_above_one": _balanced(group)}
            for (fmt, shape, kernel), group in _grouped(small, lambda k: (k.point.dtype, _shape(k), k.point.kernel))
            if any(k.s_mbu > 1 for k in group)
        ],
        "atlas": [
            {"hardware": name, "format": dtype, "experts": experts, "tokens": tokens,
             "tokens_per_expert": group[0].tokens_per_expert,
             "s_mbu": float(np.median([k.s_mbu for k in group])), "mbu": float(np.median([k.mbu for k in group]))}
            for (name, dtype, experts, tokens), group in _grouped(
                [k for k in found if k.point.routing == "balanced"],
                lambda k: (k.hardware, k.point.dtype, k.point.experts, k.point.tokens))
        ],
    }  # fmt: skip


def _sweep(kernel: Kernel) -> tuple[Any, ...]:
    p = kernel.point
    return kernel.hardware, p.dtype, _shape(kernel), p.kernel, p.engine_version, p.routing


def _balanced(group: Sequence[Kernel]) -> float:
    """Share beyond 1 of those whose tokens are spread evenly: their distinct experts are known."""
    return _share([k.s_mbu > 1 for k in group if k.point.routing == "balanced"] or [False])


def _share(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _shape(kernel: Kernel) -> str:
    return f"{kernel.point.experts} experts, top-{kernel.point.top_k}"


def _grouped(found: Iterable[Kernel], key: Any) -> list[tuple[tuple[Any, ...], list[Kernel]]]:
    groups: dict[tuple[Any, ...], list[Kernel]] = defaultdict(list)
    for kernel in found:
        groups[key(kernel)].append(kernel)
    return sorted(groups.items(), key=lambda item: str(item[0]))


def _correlation(found: Sequence[Kernel]) -> float | None:
    values = []
    balanced = [k for k in found if k.point.routing == "balanced"]
    for _, group in _grouped(
        balanced, lambda k: (k.hardware, k.point.dtype, _shape(k), k.point.kernel, k.point.engine_version)
    ):
        x, y = np.log([k.distinct for k in group]), np.log([k.point.latency_s for k in group])
        if len(group) >= 4 and np.ptp(x) > 0:
            values.append(float(np.corrcoef(x, y)[0, 1]))
    return float(np.median(values)) if values else None


def _skew(found: Sequence[Kernel]) -> dict[str, float]:
    """Routing by a power law: median latency over that of balanced routing, at the same tokens."""
    times: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    for k in found:
        p = k.point
        key = (k.hardware, p.dtype, _shape(k), p.kernel, p.engine_version, p.tokens)
        times[key][p.routing] = p.latency_s
    ratios: dict[str, list[float]] = defaultdict(list)
    for of in times.values():
        for routing, seconds in of.items():
            if routing != "balanced" and "balanced" in of:
                ratios[routing].append(seconds / of["balanced"])
    return {routing: float(np.median(values)) for routing, values in sorted(ratios.items())}


def fit_formats(points: Iterable[KernelPoint], hardware: Hardware) -> dict[str, Any]:
    """Slope and fixed time per format that the chip multiplies in, and what unpacking others takes.

    Without sweeps whose median S-MBU exceeds 1: they route tokens themselves, and reach fewer experts than was asked.
    Of balanced kernels of :data:`MOST_TOKENS` tokens at most; of several kernels of one configuration the fastest
    counts, which is what an engine picks. Relative errors, with a loss that grows linearly beyond a tenth.
    """
    from scipy.optimize import least_squares

    best: dict[tuple[Any, ...], Kernel] = {}
    counted = kernels_of(points, hardware)
    sweeps = dict(_grouped(counted, _sweep))
    impossible = {key for key, group in sweeps.items() if np.median([k.s_mbu for k in group]) > 1}
    for k in counted:
        p = k.point
        if _sweep(k) in impossible or p.routing != "balanced" or p.tokens > MOST_TOKENS:
            continue
        key = (k.hardware, k.format, p.dtype, _shape(k), p.tokens)
        if key not in best or p.latency_s < best[key].point.latency_s:
            best[key] = k
    found: dict[str, Any] = {}
    for fmt in sorted({k.format for k in best.values()}):
        for is_native in (True, False):
            group = [k for k in best.values() if k.format == fmt and native(fmt, k.speeds) == is_native]
            if len(group) < 8:
                continue
            read = np.array([k.distinct * k.expert_bytes / k.speeds.memory_bytes_per_s for k in group])
            second = np.zeros(len(group)) if is_native else np.array([k.elements for k in group]) * 1e-12
            measured = np.array([k.point.latency_s for k in group])

            def residual(x: np.ndarray, read: np.ndarray = read, second: np.ndarray = second,
                         measured: np.ndarray = measured) -> np.ndarray:  # fmt: skip
                return np.log((x[0] * 1e-6 + x[1] * read + x[2] * second) / measured)

            fitted = least_squares(residual, [30.0, 1.0, 0.05], bounds=([1.0, 0.5, 0.0], [200.0, 10.0, 10.0]),
                                   loss="soft_l1", f_scale=0.1)  # fmt: skip
            launch, slope, each = (float(v) for v in fitted.x)
            found[fmt + ("" if is_native else " unpacked")] = {
                "launch_s": launch * 1e-6,
                "slope": slope,
                "elements_per_s": None if is_native or each < 1e-6 else 1e12 / each,
                "points": len(group),
                "mape": float(np.abs(np.expm1(residual(fitted.x))).mean()),
            }
    return found
