"""What one deployment costs at a throughput: purchase, energy, cost per token, rent.

What is measured and what is estimated is said in ``energy_source``, never mixed without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moecap.cost.equations import must_be_positive
from moecap.cost.figures import NOTHING_SERVED, InputRanges, Served, all_figures, interval, intervals, scaled
from moecap.cost.offers import rental_usd_per_hour, serverless_usd_per_s, spot_usd_per_hour
from moecap.cost.power import deployment_power
from moecap.cost.settings import Settings
from moecap.hardware.entries import COMPONENTS, SOURCED, Range
from moecap.hardware.systems import Purchase, System


def deployment_cost(
    system: System,
    devices: int,
    tokens_per_s: float | None,
    given: Settings,
    *,
    power_w: float | None = None,
    energy_source: str | None = None,
    machine: Mapping[str, Any] | None = None,
    tokens_per_s_low: float | None = None,
    tokens_per_s_high: float | None = None,
    power_w_low: float | None = None,
    power_w_high: float | None = None,
    purchase: Purchase | None = None,
    served: Served = NOTHING_SERVED,
) -> dict[str, Any]:
    """Everything that a deployment costs at a throughput: a flat dict, intervals as ``NAME_low`` and ``NAME_high``.

    Args:
        system, devices: what is bought (:meth:`moecap.hardware.catalogue.Hardware.find`).
        tokens_per_s: generated tokens per second (T_token); None: per-token figures are None.
        given: prices and lifetime.
        power_w: mean power of the whole deployment (or what ``energy_source`` covers of it); None: estimated.
        energy_source: ``nvml``, ``rapl``, ``given`` …
        machine: what was detected, for an entry that is priced by it.
        tokens_per_s_low, tokens_per_s_high, power_w_low, power_w_high: 95% intervals.
        purchase: C_hardware, where it is known already.
        served: what the timed run served.

    Raises:
        MoecapError: a throughput or power that is not positive, no price.
    """
    if tokens_per_s is not None:
        must_be_positive(tokens_per_s=tokens_per_s)
    if power_w is not None:
        must_be_positive(power_w=power_w)
    estimate = system.power(devices, machine)
    draw = deployment_power(estimate, power_w, energy_source, system.kind)
    idle = system.power(devices, machine, idle=True)
    idle_w = idle.total_w if given.utilisation < 1 and idle.total_w is not None and not idle.unknown else None
    price, gpu_price, row = _purchase(system, devices, given, machine, purchase)
    row |= {
        "lifetime_years": given.years,
        "usd_per_kwh": given.usd_per_kwh.value,
        "pue": given.pue,
        "utilisation": given.utilisation,
        "power_w": draw.power_w,
        "energy_source": draw.energy_source,
        "power_covers": draw.covers or None,
        "electricity_status": given.electricity_status,
        "electricity_source": given.electricity_source,
        **{f"estimated_{part}_w": estimate.components.get(part) for part in ("gpu", "cpu", "dram", "ssd", "host")},
    }
    rental, row["rental_source"] = rental_usd_per_hour(system, devices, given.rental_plan, given)
    spot, row["spot_source"] = spot_usd_per_hour(system, devices, given)
    serverless, row["serverless_source"] = serverless_usd_per_s(system, devices, given)
    statuses = (row["price_status"], given.electricity_status, draw.status)
    row["figures_unverified"] = any(status is not None and status not in SOURCED for status in statuses)
    ranges = InputRanges(
        price=price,
        gpu_price=gpu_price,
        speed=interval(tokens_per_s, tokens_per_s_low, tokens_per_s_high),
        power=scaled(draw.power_w, power_w, power_w_low, power_w_high),
        gpu_w=draw.gpu_w,
        electricity=given.usd_per_kwh,
        rental=rental,
        spot=spot,
        serverless=serverless,
    )
    row |= all_figures(ranges.middle(), idle_w, given, served)
    return row | intervals(row, ranges, idle_w, given, served)


def _purchase(
    system: System,
    devices: int,
    given: Settings,
    machine: Mapping[str, Any] | None,
    known: Purchase | None,
) -> tuple[Range | None, Range | None, dict[str, Any]]:
    """Price of the whole and of its GPUs, and what the row says of them: parts, status, source, what is missing."""
    row: dict[str, Any]
    if given.hardware_usd is not None:  # one figure, of which no part is known
        row = {"price_status": "assumption", "price_source": "given", "price_complete": True, "price_notes": None}
        price = Range(given.hardware_usd, given.hardware_usd, given.hardware_usd)
        return price, None, row | _parts({})
    bought = known or system.purchase(devices, machine)
    row = {
        "price_status": bought.status if bought.known else None,
        "price_source": "; ".join(bought.sources) or None,
        "price_complete": bought.complete,
        "price_notes": "; ".join([*bought.notes, *(f"no price for {u}" for u in bought.unpriced)]) or None,
        **_parts(bought.components),
    }
    return (*((bought.total, system.gpus_usd(devices, bought)) if bought.known else (None, None)), row)


def _parts(components: Mapping[str, Range | None]) -> dict[str, float | None]:
    """Price of each component with its range, null where it is not known."""
    row: dict[str, float | None] = {}
    for name in COMPONENTS:
        part = components.get(name)
        row[f"hardware_{name}_usd"] = None if part is None else part.value
        row[f"hardware_{name}_usd_low"] = part.low if part is not None and part.known else None
        row[f"hardware_{name}_usd_high"] = part.high if part is not None and part.known else None
    return row
