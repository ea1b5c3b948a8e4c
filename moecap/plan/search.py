"""Predict every combination of model, hardware, number of devices and batch size, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.cost.equations import HOURS_PER_YEAR, SECONDS_PER_HOUR, energy_kwh, mean_power_w
from moecap.cost.settings import Settings, settings
from moecap.errors import MoecapError
from moecap.hardware.catalogue import Hardware
from moecap.hardware.entries import SOURCED, Range
from moecap.hardware.systems import System
from moecap.plan.expected import NO_DRAFTS, Drafts, expected
from moecap.plan.layouts import layouts, refused
from moecap.plan.offload import Tier, offloaded
from moecap.plan.pooling import Own
from moecap.plan.pools import figures_of_decode, in_pools
from moecap.plan.predict import UNCALIBRATED, Calibration, predict
from moecap.plan.prior import Prior, prior_of
from moecap.plan.schema import PLAN_SCHEMA
from moecap.plan.target import USABLE_MEMORY, Candidate, Target, Workload
from moecap.plan.terms import Parallel

Row = dict[str, Any]


def plan(
    candidates: Sequence[Candidate],
    hardware: Hardware,
    systems: Sequence[str],
    devices: Sequence[int],
    batch_sizes: Sequence[int],
    workload: Workload | None = None,
    cost: Mapping[str, Any] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    machine: Mapping[str, Any] | None = None,
    profiles: Mapping[str, Sequence[np.ndarray]] | None = None,
    usable_memory: float = USABLE_MEMORY,
    engine: str | None = None,
    kinds: tuple[str, ...] = ("tp",),
    drafts: Drafts = NO_DRAFTS,
    own: Mapping[str, Own] | None = None,
    tier: Tier | None = None,
) -> pa.Table:
    """Predict every combination of model × precision × hardware × number of devices × layout × batch size.

    Args:
        candidates: models at precisions.
        hardware: the catalogue (or a slice of it); ``systems`` names its entries.
        devices: numbers of devices; those beyond one server are left out.
        cost: the ``cost`` part of a config (lifetime, region …); prices that it gives for own deployments do not apply.
        calibrations: system → how measured runs exceed the roofline there; others are upper bounds.
        machine: what calibration found, for a system whose speeds are measured.
        profiles: model → routing profile (:func:`expected_unique_experts`).
        engine: whose prior (:mod:`moecap.plan.prior`) times of catalogued devices rest on; None: the roofline.
        kinds: layouts that are tried (:data:`moecap.plan.layouts.KINDS`).
        own: system → own runs there, which the prior shrinks to.
        tier: where a part of the experts lies instead: then every figure is a bound, by tensor parallelism.

    Returns:
        ``PLAN_SCHEMA``, one row per combination; what cannot be served has ``feasible`` false and a reason.

    Raises:
        MoecapError: unknown hardware, nothing to plan, batch sizes below 1.
    """
    workload = workload or Workload()
    if not candidates or not systems or not devices or not batch_sizes:
        raise MoecapError("plan: at least one model, hardware entry, number of devices and batch size is needed.")
    if min(devices) < 1:
        raise MoecapError(f"plan: numbers of devices must be at least 1; given: {list(devices)}.")
    terms = {k: v for k, v in (cost or {"region": "us-average"}).items() if k not in ("hardware_usd", "deployments")}
    given = settings(terms, hardware)
    rows: list[Row] = []
    for name in systems:
        system = hardware.find(name, "plan")
        slots = system.server.slots if system.server else 1
        calibration = (calibrations or {}).get(name, UNCALIBRATED)
        for number in sorted({d for d in devices if d <= slots} or {1}):
            money = _money(system, number, given, machine)
            for candidate in candidates:
                profile = (profiles or {}).get(candidate.anatomy.model)
                target = Target.of(system.name, system.speeds, number, candidate.compute_dtype, machine)
                if tier is not None:
                    if system.speeds is None:
                        raise MoecapError(
                            f"plan: {system.name} has no catalogued speeds; offload is planned with those."
                        )
                    parallel = Parallel(tp=number)
                    figures = predict(candidate.anatomy, target, batch_sizes, workload, profile=profile)
                    figures = offloaded(figures, candidate.anatomy, system.speeds, parallel, workload, tier)
                    for row in _plan_rows(candidate, system, target, workload, UNCALIBRATED, money, figures):
                        notes = "; ".join(filter(None, [row["notes"], tier.note]))
                        rows.append({**row, "layout": str(parallel), "notes": notes})
                    continue
                if engine is None or system.speeds is None:
                    figures = predict(
                        candidate.anatomy, target, batch_sizes, workload, calibration, profile, usable_memory
                    )
                    rows += _plan_rows(candidate, system, target, workload, calibration, money, figures)
                    continue
                prior = prior_of(engine)
                mine = (own or {}).get(name)
                basis = _basis(prior, mine)
                for parallel in layouts(number, kinds):
                    refusal = refused(candidate.anatomy, parallel)
                    if refusal:
                        rows += _refused_rows(
                            candidate, system, number, parallel, batch_sizes, workload, refusal, engine
                        )
                        continue
                    tdp = system.gpu.tdp_w if system.gpu is not None else None
                    figures = expected(
                        candidate, target, system.speeds, parallel, batch_sizes, workload, prior, tdp, profile, mine,
                        drafts, usable_memory,
                    )  # fmt: skip
                    more = {"engine": engine, "layout": str(parallel), "basis": basis[0]}
                    for row in _plan_rows(candidate, system, target, workload, basis[1], money, figures):
                        rows.append({**row, **more})
                    if "pools" in kinds and parallel.tp == number:
                        decode = figures_of_decode(figures, workload)
                        alone = _plan_rows(candidate, system, target, workload, basis[1], money, decode)
                        rows += in_pools([{**row, **more} for row in alone], figures["prefill_s"], workload)
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


def _basis(prior: Prior, own: Own | None) -> tuple[str, Calibration]:
    source = f"public measurements ({prior.date}), {prior.engine}"
    if own is None or not own.ratios:
        return "prior", Calibration(source=source, upper_bound=False)
    return "prior and own runs", Calibration(source=f"{source}; {own.source}", upper_bound=False)


def _refused_rows(
    candidate: Candidate,
    system: System,
    devices: int,
    parallel: Parallel,
    batch_sizes: Sequence[int],
    workload: Workload,
    reason: str,
    engine: str,
) -> list[Row]:
    """Rows of a layout that no engine would load."""
    return [
        {
            "model": candidate.anatomy.model,
            "precision": candidate.anatomy.precision,
            "compute_dtype": candidate.compute_dtype,
            "hardware": system.name,
            "devices": devices,
            "engine": engine,
            "layout": str(parallel),
            "batch_size": int(batch),
            "prompt_tokens": workload.prompt_tokens,
            "output_tokens": workload.output_tokens,
            "feasible": False,
            "reason": f"{engine} refuses: {reason}",
            "upper_bound": False,
        }
        for batch in batch_sizes
    ]


@dataclass(frozen=True)
class _Money:
    """What a system costs over its life, whatever runs on it."""

    usd: float | None
    usd_low: float | None
    usd_high: float | None
    purchase_usd: float | None
    power_w: float | None
    seconds: float
    status: str | None
    sourced: bool
    note: str | None


def _money(system: System, devices: int, given: Settings, machine: Mapping[str, Any] | None) -> _Money:
    seconds = given.years * HOURS_PER_YEAR * SECONDS_PER_HOUR * given.utilisation
    estimate = system.power(devices, machine)
    power, statuses = estimate.total_w, [given.electricity_status, estimate.status]
    idle = system.power(devices, machine, idle=True)
    idle_w = idle.total_w if given.utilisation < 1 and not idle.unknown else None
    energy = None
    if power is not None:
        energy = energy_kwh(mean_power_w(power, given.utilisation, idle_w), given.years, given.pue)
    try:
        bought = system.purchase(devices, machine)
    except MoecapError:
        return _Money(None, None, None, None, power, seconds, None, False, "no price is known")
    if not bought.complete:  # a sum without one of its parts would win every comparison
        note = f"no price for {', '.join(bought.unpriced)}"
        return _Money(None, None, None, None, power, seconds, None, False, note)
    price, status = bought.total, bought.status
    sourced = all(s in SOURCED for s in [*statuses, status])
    if energy is None:
        return _Money(None, None, None, price.value, None, seconds, status, sourced, "no power is known")
    rate = given.usd_per_kwh
    low, middle, high = (p + energy * r for p, r in zip(_ends(price), _ends(rate), strict=True))
    return _Money(middle, low, high, price.value, power, seconds, status, sourced, None)


def _ends(of: Range) -> tuple[float, float, float]:
    return of.low, of.value, of.high


def _plan_rows(
    candidate: Candidate,
    system: System,
    target: Target,
    workload: Workload,
    calibration: Calibration,
    money: _Money,
    figures: Mapping[str, np.ndarray],
) -> list[Row]:
    anatomy, devices = candidate.anatomy, target.devices
    notes = [money.note] if money.note else []
    if devices > 1 and target.link is None:
        notes.append("no bandwidth of its links is known: they take no time here")
    elif devices > 1 and target.link == "pcie":
        notes.append("devices talk over PCIe")
    spread = 1.96 * calibration.decode.spread
    speed = system.speed_status(candidate.compute_dtype)
    rows = []
    for i, batch in enumerate(figures["batch_size"]):
        rate, tpot = float(figures["output_tokens_per_s"][i]), float(figures["tpot_s"][i])
        low, high = _ends_of_tpot(figures, i, spread)
        reason = None
        if target.flops is None:
            reason = system.why_no_peak(candidate.compute_dtype)
        elif not figures["fits"][i]:
            needed, available = figures["needed_bytes"][i] / 1e9, figures["available_bytes"][i] / 1e9
            reason = f"it needs {needed:,.1f} GB, {available:,.1f} GB are there"

        def per_million(usd: float | None, factor: float, rate: float = rate) -> float | None:
            return None if usd is None else usd / (rate * money.seconds) * 1e6 * factor

        rows.append(
            {
                "model": anatomy.model,
                "precision": anatomy.precision,
                "compute_dtype": candidate.compute_dtype,
                "hardware": system.name,
                "devices": devices,
                "batch_size": int(batch),
                "prompt_tokens": workload.prompt_tokens,
                "output_tokens": workload.output_tokens,
                "feasible": reason is None,
                "reason": reason,
                **{
                    key: None if np.isnan(figures[key][i]) else float(figures[key][i])
                    for key in (
                        "needed_bytes",
                        "available_bytes",
                        "largest_batch",
                        "tpot_s",
                        "ttft_s",
                        "output_tokens_per_s",
                        "s_mbu",
                        "s_mbu_complete",
                        "mbu",
                        "s_mfu",
                        "unique_experts",
                        "tpot_dense_s",
                    )
                },
                "tpot_s_low": low,
                "tpot_s_high": high,
                **_energy(figures, i, rate),
                "memory_bound": bool(figures["memory_bound"][i]),
                "power_w": money.power_w,
                "energy_source": None if money.power_w is None else "estimated",
                "hardware_usd": money.purchase_usd,
                "usd_per_million_tokens": per_million(money.usd, 1.0),
                "usd_per_million_tokens_low": per_million(money.usd_low, (low or tpot) / tpot),
                "usd_per_million_tokens_high": per_million(money.usd_high, (high or tpot) / tpot),
                "price_status": money.status,
                "speed_status": speed,
                "figures_unverified": not money.sourced or (speed is not None and speed not in SOURCED),
                "accuracy": candidate.accuracy,
                "upper_bound": calibration.upper_bound,
                "basis": "bound" if calibration.upper_bound else "own runs",
                "calibration": calibration.source,
                "notes": "; ".join(notes) or None,
            }
        )
    return rows


def _ends_of_tpot(figures: Mapping[str, np.ndarray], i: int, spread: float) -> tuple[float | None, float | None]:
    """The interval of a TPOT: what the prior gives, else that of the calibration, else none."""
    tpot = float(figures["tpot_s"][i])
    if "tpot_s_low" in figures:
        return float(figures["tpot_s_low"][i]), float(figures["tpot_s_high"][i])
    return (tpot / (1 + spread), tpot * (1 + spread)) if spread else (None, None)


def _energy(figures: Mapping[str, np.ndarray], i: int, rate: float) -> Row:
    """Power of the devices from what they do, where the prior says; and energy per token."""
    names = ("devices_power_w", "devices_power_w_low", "devices_power_w_high")
    if "devices_power_w" not in figures or np.isnan(figures["devices_power_w"][i]):
        return dict.fromkeys((*names, "joules_per_token"))
    found = {name: float(figures[name][i]) for name in names}
    return {**found, "joules_per_token": found["devices_power_w"] / rate}
