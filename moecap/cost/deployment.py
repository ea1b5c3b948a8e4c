"""The cost model of the paper's section 5: purchase (5), energy (6) and cost per token (7), with units in every name.

The pure functions take plain numbers or arrays. One A100 server of the paper, 139.08 token/s, four GPUs at their TDP:

>>> round(energy_kwh(power_w=1600, years=3))
42077
>>> usd = usd_per_token(hardware_usd=92_104.2, energy_kwh=42_076.8, usd_per_kwh=0.1, tokens_per_s=139.08, years=3)
>>> round(usd * 1e6, 2)
7.31

A year is 8,766 hours. The lifetime R is full time; of it ``utilisation`` is under load. Generated tokens are the
T_token of equation (7). What is measured and what is estimated is said in ``energy_source``, never mixed without a
word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from moecap.columns.base import schema
from moecap.columns.cost import COST, ENERGY, HOSTS
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.errors import MoecapError
from moecap.hardware.catalogue import COMPONENTS, SOURCED, Hardware, Power, Purchase, Range, System, plain_name

HOURS_PER_YEAR = 8766.0
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6
DRAWS = 4000
Z95 = 1.959963984540054  # two-sided 95% of the normal distribution

Values = Any  # a number or a NumPy array


# -- equations -------------------------------------------------------------------------------------------------------


def energy_kwh(power_w: Values, years: Values, pue: Values = 1.0) -> Values:
    """C_energy of equation (6): mean power of the whole deployment over its life R, in kWh."""
    return power_w / 1000.0 * years * HOURS_PER_YEAR * pue


def lifetime_tokens(tokens_per_s: Values, years: Values, utilisation: Values = 1.0) -> Values:
    """T_token × R of equation (7)."""
    return tokens_per_s * years * HOURS_PER_YEAR * SECONDS_PER_HOUR * utilisation


def usd_per_token(
    hardware_usd: Values,
    energy_kwh: Values,
    usd_per_kwh: Values,
    tokens_per_s: Values,
    years: Values,
    utilisation: Values = 1.0,
) -> Values:
    """C_token of equation (7): ``(C_hardware + C_energy × $/kWh) / (T_token × R)``, in USD per generated token."""
    return (hardware_usd + energy_kwh * usd_per_kwh) / lifetime_tokens(tokens_per_s, years, utilisation)


def mean_power_w(power_w: Values, utilisation: Values = 1.0, idle_w: Values | None = None) -> Values:
    """Mean power over the life: load for the utilised share, idle for the rest (load, where idle is unknown)."""
    return power_w if idle_w is None else utilisation * power_w + (1.0 - utilisation) * idle_w


def joules_per_token(power_w: Values, tokens_per_s: Values, pue: Values = 1.0) -> Values:
    """Energy per generated token under load, in J."""
    return power_w * pue / tokens_per_s


def tokens_per_kwh(power_w: Values, tokens_per_s: Values, pue: Values = 1.0) -> Values:
    """Generated tokens per kWh under load (the paper's tokens per kilowatt)."""
    return JOULES_PER_KWH / joules_per_token(power_w, tokens_per_s, pue)


def tokens_per_s_per_kw(power_w: Values, tokens_per_s: Values) -> Values:
    """Throughput per kW of power, in 1/(s kW)."""
    return tokens_per_s / (power_w / 1000.0)


def rental_usd_per_million_tokens(usd_per_hour: Values, tokens_per_s: Values, utilisation: Values = 1.0) -> Values:
    """Cost of 10⁶ generated tokens on rented hardware, which is paid for whether it is used or not."""
    return usd_per_hour / (tokens_per_s * SECONDS_PER_HOUR * utilisation) * 1e6


def spot_usd_per_million_tokens(
    usd_per_hour: Values,
    tokens_per_s: Values,
    interruptions_per_hour: Values,
    restart_s: Values,
    utilisation: Values = 1.0,
) -> Values:
    """The same on spot instances: each interruption costs ``restart_s`` of paid time in which nothing is generated.

    Paid time per hour of work is ``1 + interruptions_per_hour × restart_s / 3600``: work that was lost belongs into
    ``restart_s``.
    """
    _not_negative(interruptions_per_hour=interruptions_per_hour, restart_s=restart_s)
    paid = 1.0 + interruptions_per_hour * restart_s / SECONDS_PER_HOUR
    return rental_usd_per_million_tokens(usd_per_hour, tokens_per_s, utilisation) * paid


def elastic_usd_per_million_tokens(
    usd_per_replica_hour: Values,
    tokens_per_s: Values,
    demand_tokens_per_s: Sequence[float],
    least_replicas: int = 0,
    scale_up_s: float = 0.0,
) -> tuple[Values, Values]:
    """Cost of 10⁶ tokens where replicas follow an hourly demand, and the mean number of replicas.

    Args:
        usd_per_replica_hour, tokens_per_s: price and throughput of one replica.
        demand_tokens_per_s: demand, one figure per hour.
        least_replicas: kept however low the demand is.
        scale_up_s: paid time before a new replica serves.

    Raises:
        MoecapError: no demand at all.
    """
    demand = np.asarray(demand_tokens_per_s, dtype=float)
    if not demand.size or (demand < 0).any() or demand.sum() == 0:
        raise MoecapError("Elastic cost: `demand_tokens_per_s` must have an hour with a demand above 0 and none below.")
    replicas = np.maximum(np.ceil(demand / np.asarray(tokens_per_s, dtype=float)[..., None]), least_replicas)
    started = np.maximum(replicas - np.roll(replicas, 1, axis=-1), 0)  # the day repeats
    hours = replicas.sum(-1) + started.sum(-1) * scale_up_s / SECONDS_PER_HOUR
    tokens = demand.sum() * SECONDS_PER_HOUR
    return hours * usd_per_replica_hour / tokens * 1e6, replicas.mean(-1)


def serverless_usd_per_million_tokens(
    usd_per_s: Values,
    tokens_per_s: Values,
    requests_per_hour: float,
    tokens_per_request: float,
    cold_start_s: float,
    keep_warm_s: float = 0.0,
) -> Values:
    """Cost of 10⁶ tokens on workers paid by the second, requests arriving at random (Poisson), one at a time.

    A worker that has been idle for ``keep_warm_s`` stops; the next request pays ``cold_start_s``. The idle time paid
    for after a request is ``(1 − exp(−λ keep_warm_s)) / λ`` on average, and the next start is cold with probability
    ``exp(−λ keep_warm_s)``.
    """
    _positive(requests_per_hour=requests_per_hour, tokens_per_request=tokens_per_request)
    _not_negative(cold_start_s=cold_start_s, keep_warm_s=keep_warm_s)
    rate = requests_per_hour / SECONDS_PER_HOUR
    cold = math.exp(-rate * keep_warm_s)
    paid_s = tokens_per_request / tokens_per_s + cold * cold_start_s + (1.0 - cold) / rate
    return usd_per_s * paid_s / tokens_per_request * 1e6


def run_usd(
    hardware_usd: Values, energy_usd: Values, years: Values, seconds: Values, utilisation: Values = 1.0
) -> Values:
    """Cost of running the deployment for so many seconds: its share of the life under load."""
    return (hardware_usd + energy_usd) * seconds / (years * HOURS_PER_YEAR * SECONDS_PER_HOUR * utilisation)


def evaluation_usd(questions: Values, output_tokens_per_question: Values, usd_per_million_tokens: Values) -> Values:
    """Cost of an evaluation: its generated tokens at the deployment's price."""
    return questions * output_tokens_per_question * usd_per_million_tokens / 1e6


def split_usd_per_million_tokens(
    usd_per_hour: Values, prefill_share: Values, input_tokens_per_s: Values, output_tokens_per_s: Values
) -> tuple[Values, Values]:
    """USD per 10⁶ input and per 10⁶ output tokens apart, the hour split by the time that prefill takes of it.

    ``input × rate_in + output × rate_out`` is the whole cost of the hour.
    """
    per_input = usd_per_hour * prefill_share / (input_tokens_per_s * SECONDS_PER_HOUR) * 1e6
    per_output = usd_per_hour * (1.0 - prefill_share) / (output_tokens_per_s * SECONDS_PER_HOUR) * 1e6
    return per_input, per_output


# -- settings --------------------------------------------------------------------------------------------------------


FREE = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Settings:
    """What money and energy cost; :func:`settings` makes it from a config."""

    years: float = 3.0
    usd_per_kwh: Range = FREE
    pue: float = 1.0
    utilisation: float = 1.0
    electricity_status: str = "assumption"
    electricity_source: str = "given"
    hardware_usd: float | None = None
    rental_plan: str = "on_demand"
    rental_usd_per_device_hour: float | None = None
    spot: Mapping[str, Any] | None = None
    elastic: Mapping[str, Any] | None = None
    serverless: Mapping[str, Any] | None = None
    seed: int = 0


_KEYS = (
    "years",
    "region",
    "usd_per_kwh",
    "pue",
    "utilisation",
    "hardware_usd",
    "rental_plan",
    "rental_usd_per_device_hour",
    "spot",
    "elastic",
    "serverless",
    "seed",
    "deployments",
)


def settings(given: Mapping[str, Any], hardware: Hardware, deployment: str | None = None) -> Settings:
    """Check the ``cost`` part of a config.

    Args:
        given: ``years``, ``region`` or ``usd_per_kwh``, ``pue``, ``utilisation``; also ``hardware_usd`` (a price that
            replaces the catalogue's), ``rental_plan`` or ``rental_usd_per_device_hour``, ``spot``, ``elastic`` and
            ``serverless`` (see :mod:`moecap.campaign.config`), ``seed``, and ``deployments``: overrides per deployment.
        hardware: where regions are looked up.
        deployment: whose overrides apply.

    Raises:
        MoecapError: an unknown key or region, a lifetime that is not positive, a negative price.
    """
    from moecap.errors import nearest

    overrides = (given.get("deployments") or {}).get(deployment) or {}
    own = {k: v for k, v in overrides.items() if v is not None}
    if "usd_per_kwh" in own:
        own.setdefault("region", None)
    if "region" in own:
        own.setdefault("usd_per_kwh", None)
    merged = {**{k: v for k, v in given.items() if k != "deployments"}, **own}
    for key in merged:
        if key not in _KEYS:
            raise MoecapError(f"cost: unknown key `{key}`. {nearest(key, _KEYS)}")
    years = _number(merged, "years", 3.0)
    if years <= 0:
        raise MoecapError(f"cost: `years` is {years:g}; the lifetime must be positive (a year is 8,766 h).")
    pue = _pue(merged, hardware)
    if pue < 1:
        raise MoecapError(f"cost: `pue` is {pue:g}; a site draws at least what its machines draw, so it is 1 or more.")
    utilisation = _number(merged, "utilisation", 1.0)
    if not 0 < utilisation <= 1:
        raise MoecapError(
            f"cost: `utilisation` is {utilisation:g}; the share of the life under load is above 0, at most 1."
        )
    if merged.get("usd_per_kwh") is not None:
        price = _number(merged, "usd_per_kwh", 0.0)
        if price < 0:
            raise MoecapError(f"cost: `usd_per_kwh` is {price:g}; a price is not negative.")
        electricity, status, source = Range(price, price, price), "assumption", "given"
    elif merged.get("region"):
        region = hardware.region(merged["region"])
        electricity, status = region.usd_per_kwh.usd(), region.usd_per_kwh.status
        source = f"{region.usd_per_kwh.source} ({region.usd_per_kwh.date or 'undated'}, {status})"
    else:
        raise MoecapError(
            f"cost: neither `usd_per_kwh` nor `region` is given. {nearest('', hardware.electricity)} Give one of them."
        )
    prices = {}
    for key in ("hardware_usd", "rental_usd_per_device_hour"):
        prices[key] = None if merged.get(key) is None else _number(merged, key, 0.0)
        if prices[key] is not None and prices[key] < 0:
            raise MoecapError(f"cost: `{key}` is {prices[key]:g}; a price is not negative.")
    return Settings(
        years,
        electricity,
        pue,
        utilisation,
        status,
        source,
        rental_plan=str(merged.get("rental_plan") or "on_demand"),
        **prices,
        **{key: merged.get(key) for key in ("spot", "elastic", "serverless")},
        seed=int(merged.get("seed") or 0),
    )


def _pue(values: Mapping[str, Any], hardware: Hardware) -> float:
    """A figure, or that of a site of the catalogue."""
    given = values.get("pue")
    return (
        hardware.site(given).pue if isinstance(given, str) and given in hardware.sites else _number(values, "pue", 1.0)
    )


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key)
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise MoecapError(f"cost: `{key}` is {value!r}; a number is needed.") from None
    if not math.isfinite(number):
        raise MoecapError(f"cost: `{key}` is {value!r}; a finite number is needed.")
    return number


# -- one deployment --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """Power of a deployment and where it comes from."""

    power_w: float | None
    energy_source: str | None
    covers: str
    gpu_w: float | None
    status: str
    low_w: float | None = None
    high_w: float | None = None


def deployment_power(
    estimate: Power, measured_w: float | None = None, source: str | None = None, kind: str = "gpu"
) -> Draw:
    """Power of the whole deployment: measured where it was, the rest of it estimated, and said so.

    NVML counts the GPUs alone, so the host's estimate is added to it (``nvml + estimated host``); RAPL counts
    processors and memory, which of a system without GPUs is the whole.
    """
    host_w = sum(w for name, w in estimate.components.items() if name != "gpu" and w is not None)
    gpu_w = estimate.components.get("gpu")
    if measured_w is None:
        return Draw(
            estimate.total_w,
            "estimated" if estimate.total_w is not None else None,
            estimate.covers,
            gpu_w,
            estimate.status,
        )
    source = source or "given"
    if source == "nvml":
        if host_w:
            return Draw(measured_w + host_w, "nvml + estimated host", estimate.covers, measured_w, estimate.status)
        return Draw(measured_w, "nvml", "gpu", measured_w, "verified")
    if source == "rapl" and kind == "gpu" and gpu_w is not None:
        return Draw(measured_w + gpu_w, "rapl + estimated gpu", "gpu, cpu, dram", gpu_w, estimate.status)
    if source in ("estimate", "estimated"):
        return Draw(measured_w, "estimated", estimate.covers, gpu_w, estimate.status)
    if source == "given":  # how much of it the GPUs draw is not known
        return Draw(measured_w, source, "everything", None, "assumption")
    return Draw(measured_w, source, "cpu, dram", None, "verified")


@dataclass(frozen=True)
class Served:
    """What a timed run served, for the figures that need more than its rate; None: not known."""

    wall_s: float | None = None
    requests: float | None = None
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    prefill_share: float | None = None

    @classmethod
    def of(cls, point: Mapping[str, Any]) -> Served:
        """From a row of metrics."""
        names = ("wall_s", "requests", "prompt_tokens", "generated_tokens")
        return cls(*(point.get(n) for n in names), prefill_time_share(point))


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
    served: Served = Served(),
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
        _positive(tokens_per_s=tokens_per_s)
    if power_w is not None:
        _positive(power_w=power_w)
    if purchase is None:
        purchase = system.purchase(devices, machine) if given.hardware_usd is None else Purchase.unknown("given")
    bought = purchase
    total, gpu_usd = (bought.total, system.gpus_usd(devices, bought)) if bought.known else (None, None)
    if given.hardware_usd is not None:
        total, gpu_usd = Range(given.hardware_usd, given.hardware_usd, given.hardware_usd), None
    estimate = system.power(devices, machine)
    draw = deployment_power(estimate, power_w, energy_source, system.kind)
    idle = system.power(devices, machine, idle=True)
    idle_w = idle.total_w if given.utilisation < 1 and idle.total_w is not None and not idle.unknown else None

    row: dict[str, Any] = {
        "hardware_usd": None if total is None else total.value,
        "lifetime_years": given.years,
        "usd_per_kwh": given.usd_per_kwh.value,
        "pue": given.pue,
        "utilisation": given.utilisation,
        "power_w": draw.power_w,
        "energy_source": draw.energy_source,
        "power_covers": draw.covers or None,
        "electricity_status": given.electricity_status,
        "electricity_source": given.electricity_source,
    }
    if given.hardware_usd is not None:
        row |= {"price_status": "assumption", "price_source": "given", "price_complete": True, "price_notes": None}
    else:
        row |= {
            "price_status": bought.status if bought.known else None,
            "price_source": "; ".join(bought.sources) or None,
            "price_complete": bought.complete,
            "price_notes": "; ".join([*bought.notes, *(f"no price for {u}" for u in bought.unpriced)]) or None,
        }
    for name in COMPONENTS:
        part = bought.components.get(name) if given.hardware_usd is None else None
        row[f"hardware_{name}_usd"] = None if part is None else part.value
        row[f"hardware_{name}_usd_low"] = part.low if part is not None and part.known else None
        row[f"hardware_{name}_usd_high"] = part.high if part is not None and part.known else None
    for name in ("gpu", "cpu", "dram", "ssd", "host"):
        row[f"estimated_{name}_w"] = estimate.components.get(name)

    rental, row["rental_source"] = rental_usd_per_hour(system, devices, given.rental_plan, given)
    spot, row["spot_source"] = _spot_usd_per_hour(system, devices, given)
    serverless, row["serverless_source"] = _serverless_usd_per_s(system, devices, given)
    row["rental_usd_per_hour"] = None if rental is None else rental.value
    row["figures_unverified"] = any(
        s is not None and s not in SOURCED for s in (row["price_status"], given.electricity_status, draw.status)
    )
    ranges = _Ranges(
        price=total,
        gpu_price=gpu_usd,
        speed=_interval(tokens_per_s, tokens_per_s_low, tokens_per_s_high),
        power=_scaled(draw.power_w, power_w, power_w_low, power_w_high),
        gpu_w=draw.gpu_w,
        electricity=given.usd_per_kwh,
        rental=rental,
        spot=spot,
        serverless=serverless,
    )
    row.update(_figures(ranges.middle(), idle_w, given, served))
    row.update(_intervals(row, ranges, idle_w, given, served))
    return row


#: Figures that get an interval by Monte Carlo.
UNCERTAIN = (
    "hardware_usd",
    "power_w",
    "energy_kwh",
    "energy_usd",
    "usd_per_million_tokens",
    "tokens_per_usd",
    "tokens_per_kwh",
    "joules_per_token",
    "tokens_per_s_per_kw",
    "capital_share",
    "operating_share",
    "usd_per_hour",
    "usd_per_million_input_tokens",
    "usd_per_million_output_tokens",
    "run_usd",
    "rental_usd_per_hour",
    "rental_usd_per_million_tokens",
    "spot_usd_per_million_tokens",
    "elastic_usd_per_million_tokens",
    "elastic_replicas",
    "serverless_usd_per_million_tokens",
    "gpu_only_usd_per_million_tokens",
    "gpu_only_error",
)


@dataclass(frozen=True)
class _Values:
    """What the figures are computed from: numbers, or draws of them (arrays); None: not known."""

    hardware_usd: Values | None
    gpu_usd: Values | None
    tokens_per_s: Values | None
    power_w: Values | None
    gpu_w: Values | None
    usd_per_kwh: Values
    rental_usd_per_hour: Values | None
    spot_usd_per_hour: Values | None
    serverless_usd_per_s: Values | None


@dataclass(frozen=True)
class _Ranges:
    """The same, each with its range. Prices vary within theirs, throughput and power within their 95% interval."""

    price: Range | None
    gpu_price: Range | None
    speed: Range | None
    power: Range | None
    gpu_w: float | None
    electricity: Range
    rental: Range | None
    spot: Range | None
    serverless: Range | None

    @property
    def known(self) -> bool:
        """Whether anything varies."""
        ranges = (self.price, self.speed, self.power, self.electricity, self.rental, self.spot, self.serverless)
        return any(r is not None and r.known for r in ranges)

    def middle(self) -> _Values:
        """The figures themselves."""

        def value(of: Range | None) -> float | None:
            return None if of is None else of.value

        return _Values(
            value(self.price),
            value(self.gpu_price),
            value(self.speed),
            value(self.power),
            self.gpu_w,
            self.electricity.value,
            value(self.rental),
            value(self.spot),
            value(self.serverless),
        )

    def draws(self, seed: int) -> _Values:
        """``DRAWS`` draws: prices triangular over their range, measurements log-normal in their interval.

        Each input has noise of its own, so that one's range does not move another's draws; the GPUs' price varies with
        the whole price, and their power with the whole power.
        """
        rng = np.random.default_rng(seed)
        bought, electricity, rental, spot, serverless = rng.random((5, DRAWS))
        speed, power = rng.standard_normal((2, DRAWS))
        watts = _lognormal(power, self.power)
        gpu_w = None
        if self.gpu_w is not None and self.power is not None and watts is not None:
            gpu_w = np.maximum(self.gpu_w + watts - self.power.value, 0.0)  # what is estimated does not vary
        return _Values(
            _triangular(bought, self.price),
            _triangular(bought, self.gpu_price),
            _lognormal(speed, self.speed),
            watts,
            gpu_w,
            _triangular(electricity, self.electricity),
            _triangular(rental, self.rental),
            _triangular(spot, self.spot),
            _triangular(serverless, self.serverless),
        )


def _figures(x: _Values, idle_w: float | None, given: Settings, served: Served) -> dict[str, Any]:
    """Every figure of eqs. (5)-(7) and what follows from them; the same code for the figures and for their draws."""
    found: dict[str, Any] = dict.fromkeys((*UNCERTAIN, "gpu_only_purchase_error", "gpu_only_energy_error"))
    found["hardware_usd"], found["power_w"] = x.hardware_usd, x.power_w
    if x.power_w is not None:
        found["energy_kwh"] = energy_kwh(mean_power_w(x.power_w, given.utilisation, idle_w), given.years, given.pue)
        found["energy_usd"] = found["energy_kwh"] * x.usd_per_kwh
        if x.gpu_w is not None:
            found["gpu_only_energy_error"] = x.gpu_w / x.power_w - 1.0
        if x.tokens_per_s is not None:
            found["tokens_per_kwh"] = tokens_per_kwh(x.power_w, x.tokens_per_s, given.pue)
            found["joules_per_token"] = joules_per_token(x.power_w, x.tokens_per_s, given.pue)
            found["tokens_per_s_per_kw"] = tokens_per_s_per_kw(x.power_w, x.tokens_per_s)
    if x.hardware_usd is not None and x.power_w is not None:
        found |= _bought(x, found["energy_kwh"], found["energy_usd"], given, served)
    if x.gpu_usd is not None and x.hardware_usd is not None:
        found["gpu_only_purchase_error"] = x.gpu_usd / np.where(x.hardware_usd > 0, x.hardware_usd, np.nan) - 1.0
    found |= _rented(x, given, served)
    return {k: _plain(v) for k, v in found.items()}


def _bought(x: _Values, kwh: Values, energy_usd: Values, given: Settings, served: Served) -> dict[str, Any]:
    """Shares, cost of time and cost per token of hardware that is bought."""
    found: dict[str, Any] = {}
    whole = x.hardware_usd + energy_usd
    found["capital_share"] = x.hardware_usd / np.where(whole > 0, whole, np.nan)
    found["operating_share"] = 1.0 - found["capital_share"]
    hourly = found["usd_per_hour"] = run_usd(x.hardware_usd, energy_usd, given.years, 3600.0, given.utilisation)
    if served.wall_s is not None:
        found["run_usd"] = hourly * served.wall_s / SECONDS_PER_HOUR
    if x.gpu_usd is not None and x.gpu_w is not None:  # the paper's first objection to costing by GPUs alone
        alone = x.gpu_usd + energy_kwh(x.gpu_w, given.years, given.pue) * x.usd_per_kwh
        found["gpu_only_error"] = alone / np.where(whole > 0, whole, np.nan) - 1.0
    if x.tokens_per_s is None:
        return found
    per_token = usd_per_token(x.hardware_usd, kwh, x.usd_per_kwh, x.tokens_per_s, given.years, given.utilisation)
    found["usd_per_million_tokens"] = per_token * 1e6
    found["tokens_per_usd"] = 1.0 / np.where(per_token > 0, per_token, np.nan)
    if served.prefill_share is not None and served.prompt_tokens and served.generated_tokens:
        inputs_per_s = x.tokens_per_s * served.prompt_tokens / served.generated_tokens
        found["usd_per_million_input_tokens"], found["usd_per_million_output_tokens"] = split_usd_per_million_tokens(
            hourly, served.prefill_share, inputs_per_s, x.tokens_per_s
        )
    if "gpu_only_error" in found:
        found["gpu_only_usd_per_million_tokens"] = per_token * 1e6 * (1.0 + found["gpu_only_error"])
    return found


def _rented(x: _Values, given: Settings, served: Served) -> dict[str, Any]:
    """The same hardware rented: by the hour, on spot instances, in replicas that follow a demand, by the second."""
    found: dict[str, Any] = {"rental_usd_per_hour": x.rental_usd_per_hour}
    if x.tokens_per_s is None:
        return found
    if x.rental_usd_per_hour is not None:
        found["rental_usd_per_million_tokens"] = rental_usd_per_million_tokens(
            x.rental_usd_per_hour, x.tokens_per_s, given.utilisation
        )
        if given.elastic is not None:
            found["elastic_usd_per_million_tokens"], found["elastic_replicas"] = elastic_usd_per_million_tokens(
                x.rental_usd_per_hour,
                x.tokens_per_s,
                given.elastic["demand_tokens_per_s"],
                given.elastic.get("least_replicas") or 0,
                given.elastic.get("scale_up_s") or 0.0,
            )
    if x.spot_usd_per_hour is not None and given.spot is not None:
        found["spot_usd_per_million_tokens"] = spot_usd_per_million_tokens(
            x.spot_usd_per_hour,
            x.tokens_per_s,
            given.spot["interruptions_per_hour"],
            given.spot["restart_s"],
            given.utilisation,
        )
    if x.serverless_usd_per_s is not None and given.serverless is not None:
        tokens = given.serverless.get("tokens_per_request")
        if tokens is None and served.requests and served.generated_tokens:
            tokens = served.generated_tokens / served.requests
        if tokens is not None:
            found["serverless_usd_per_million_tokens"] = serverless_usd_per_million_tokens(
                x.serverless_usd_per_s,
                x.tokens_per_s,
                given.serverless["requests_per_hour"],
                tokens,
                given.serverless["cold_start_s"],
                given.serverless.get("keep_warm_s") or 0.0,
            )
    return found


def rental_usd_per_hour(
    system: System, devices: int, plan: str = "on_demand", given: Settings | None = None
) -> tuple[Range | None, str | None]:
    """What the devices cost to rent, and by what: the given price, else the catalogue's offers of that plan.

    The value is the median of the sourced offers (of all, where none is sourced), the range from the lowest to the
    highest.
    """
    if given is not None and given.rental_usd_per_device_hour is not None:
        return _given(given.rental_usd_per_device_hour * devices)
    offers = [r for r in system.catalogue.rentals if r.gpu == system.gpu_name and r.plan == plan]
    return _offers([(r.usd_per_device_hour.usd(), r.status) for r in offers], devices, f"{plan} offers per device")


def _spot_usd_per_hour(system: System, devices: int, given: Settings) -> tuple[Range | None, str | None]:
    if given.spot is None:
        return None, None
    if given.spot.get("usd_per_device_hour") is not None:
        return _given(given.spot["usd_per_device_hour"] * devices)
    return rental_usd_per_hour(system, devices, "spot")


def _serverless_usd_per_s(system: System, devices: int, given: Settings) -> tuple[Range | None, str | None]:
    if given.serverless is None:
        return None, None
    if given.serverless.get("usd_per_device_second") is not None:
        return _given(given.serverless["usd_per_device_second"] * devices)
    offers = [r for r in system.catalogue.serverless if r.gpu == system.gpu_name]
    return _offers([(r.usd_per_device_second.usd(), r.status) for r in offers], devices, "serverless offers per device")


def _given(price: float) -> tuple[Range, str]:
    return Range(price, price, price), "given"


def _offers(offers: Sequence[tuple[Range, str]], amount: float, what: str) -> tuple[Range | None, str | None]:
    """Median of the sourced offers (of all, where none is), from the lowest to the highest."""
    sourced = [price for price, status in offers if status in SOURCED]
    chosen = sourced or [price for price, _ in offers]
    if not chosen:
        return None, None
    middle = float(np.median([p.value for p in chosen]))
    price = Range(middle, min(p.low for p in chosen), max(p.high for p in chosen)) * amount
    return price, f"median of {len(chosen)} {'sourced' if sourced else 'unverified'} {what}"


def api_prices(system: System, model: str | None) -> dict[str, Any]:
    """What others ask for the model's tokens, whatever they run it on: medians of the catalogue's offers."""
    found: dict[str, Any] = {"api_source": None}
    for side in ("input", "output"):
        name = f"usd_per_million_{side}_tokens"
        offers = [
            (price.usd(), offer.status)
            for offer in system.catalogue.api_prices
            if model and plain_name(offer.model) == plain_name(model) and (price := getattr(offer, name)) is not None
        ]
        price, source = _offers(offers, 1.0, "API prices")
        found[f"api_{name}"] = None if price is None else price.value
        found["api_source"] = source or found["api_source"]
    return found


def _interval(value: float | None, low: float | None, high: float | None) -> Range | None:
    if value is None:
        return None
    return Range(value, value if low is None else low, value if high is None else high)


def _scaled(total_w: float | None, measured_w: float | None, low_w: float | None, high_w: float | None) -> Range | None:
    """The interval of a measured power, moved by what was added to it as an estimate."""
    if total_w is None or measured_w is None or low_w is None or high_w is None:
        return _interval(total_w, None, None)
    return Range(total_w, low_w + total_w - measured_w, high_w + total_w - measured_w)


def _intervals(
    row: Mapping[str, Any], ranges: _Ranges, idle_w: float | None, given: Settings, served: Served
) -> dict[str, Any]:
    """95% intervals by Monte Carlo with a fixed seed; a price's own is its whole range."""
    found: dict[str, Any] = {f"{name}_{end}": None for name in UNCERTAIN for end in ("low", "high")}
    if not ranges.known:
        return found
    figures = _figures(ranges.draws(given.seed), idle_w, given, served)
    for name in UNCERTAIN:
        values, middle = figures.get(name), row.get(name)
        if values is None or middle is None or np.ptp(values) <= 1e-12 * abs(middle):
            continue
        low, high = np.percentile(values, [2.5, 97.5])
        found[f"{name}_low"], found[f"{name}_high"] = min(float(low), middle), max(float(high), middle)
    for name, price in (("hardware_usd", ranges.price), ("rental_usd_per_hour", ranges.rental)):
        if price is not None and price.known:
            found[f"{name}_low"], found[f"{name}_high"] = price.low, price.high
    return found


def _triangular(noise: np.ndarray, of: Range | None) -> np.ndarray | None:
    """Draws of a triangular distribution over a range, by uniform noise."""
    if of is None:
        return None
    if not of.known:
        return np.full(DRAWS, of.value)
    split = (of.value - of.low) / (of.high - of.low)
    left = of.low + np.sqrt(noise * (of.high - of.low) * (of.value - of.low))
    right = of.high - np.sqrt((1 - noise) * (of.high - of.low) * (of.high - of.value))
    return np.where(noise < split, left, right)


def _lognormal(noise: np.ndarray, of: Range | None) -> np.ndarray | None:
    """Draws of a log-normal distribution with that 95% interval, by standard normal noise."""
    if of is None:
        return None
    if not of.known or of.low <= 0:
        return np.full(DRAWS, of.value)
    return of.value * np.exp(noise * math.log(of.high / of.low) / (2 * Z95))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray | np.generic) and value.ndim == 0 else value


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise MoecapError(f"cost: `{name}` is {value:g}; it must be positive.")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value >= 0):
            raise MoecapError(f"cost: `{name}` is {value:g}; it must not be negative.")


# -- the table -------------------------------------------------------------------------------------------------------

COST_SCHEMA = schema(
    [
        "deployment dataset batch_size hardware_usd±",
        *(f"hardware_{part}_usd±" for part in COMPONENTS),
        "power_w± energy_source power_covers",
        *(f"estimated_{part}_w" for part in ("gpu", "cpu", "dram", "ssd", "host")),
        "energy_kwh± energy_usd± usd_per_million_tokens± tokens_per_usd± tokens_per_kwh± joules_per_token±",
        "tokens_per_s_per_kw± capital_share± operating_share± usd_per_hour±",
        "usd_per_million_input_tokens± usd_per_million_output_tokens± run_usd±",
        "rental_usd_per_hour± rental_usd_per_million_tokens± rental_source",
        "spot_usd_per_million_tokens± spot_source elastic_usd_per_million_tokens± elastic_replicas±",
        "serverless_usd_per_million_tokens± serverless_source",
        "api_usd_per_million_input_tokens api_usd_per_million_output_tokens api_source",
        "gpu_only_usd_per_million_tokens± gpu_only_error± gpu_only_purchase_error gpu_only_energy_error",
        "lifetime_years usd_per_kwh pue utilisation price_status price_source price_complete price_notes",
        "electricity_status electricity_source figures_unverified",
    ],
    *(DEPLOYMENT, POINT, ENERGY, COST),
)


def cost_table(
    metrics: pa.Table | Iterable[Mapping[str, Any]],
    deployments: Iterable[Mapping[str, Any]],
    hardware: Hardware,
    cost: Mapping[str, Any],
    machine: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Cost of every measured point.

    Args:
        metrics: rows per deployment × dataset × batch size with ``output_tokens_per_s`` and, where known, its interval,
            ``power_w`` and ``energy_source``; for the split between input and output ``requests``,
            ``prompt_tokens``, ``generated_tokens``, ``prefill_tokens_per_s``, ``decode_tokens_per_s``, ``wall_s``.
        deployments: rows of the deployment table (``deployment``, ``hardware``, ``devices``).
        hardware: the catalogue, or a slice of it.
        cost: the ``cost`` part of the config.
        machine: what calibration found, for hardware that is priced by what is detected.

    Returns:
        ``COST_SCHEMA``: one row per row of ``metrics`` that belongs to a deployment.

    Raises:
        MoecapError: an unknown hardware or region, a negative lifetime … A missing price is null, and said in
            ``price_notes``.
    """
    rows = metrics.to_pylist() if isinstance(metrics, pa.Table) else [dict(r) for r in metrics]
    found: list[dict[str, Any]] = []
    for deployment in deployments:
        name = str(deployment["deployment"])
        given = settings(cost, hardware, name)
        system = hardware.find(str(deployment["hardware"]), f"deployment {name}")
        devices = int(deployment.get("devices") or 1)
        try:
            bought = system.purchase(devices, machine)
        except MoecapError as error:
            bought = Purchase.unknown(str(error))
        shared = {**api_prices(system, deployment.get("model")), "deployment": name}
        beside, lacking = _offloaded(deployment.get("offload"), bought, system.power(devices, machine), given)
        for point in rows:
            if point["deployment"] == name:
                row = _point_cost(point, system, devices, given, machine, bought)
                notes = "; ".join([*filter(None, [row["price_notes"]]), *beside]) or None
                complete = row["price_complete"] and not lacking
                found.append({**row, **shared, "price_notes": notes, "price_complete": complete})
    return pa.Table.from_pylist(found, schema=COST_SCHEMA)


def _point_cost(
    point: Mapping[str, Any],
    system: System,
    devices: int,
    given: Settings,
    machine: Mapping[str, Any] | None,
    bought: Purchase,
) -> dict[str, Any]:
    measured = point.get("energy_source") not in (None, "estimated", "estimate")
    row = deployment_cost(
        system,
        devices,
        point.get("output_tokens_per_s"),
        given,
        power_w=point.get("power_w") if measured else None,
        energy_source=point.get("energy_source"),
        machine=machine,
        tokens_per_s_low=point.get("output_tokens_per_s_low"),
        tokens_per_s_high=point.get("output_tokens_per_s_high"),
        power_w_low=point.get("power_w_low") if measured else None,
        power_w_high=point.get("power_w_high") if measured else None,
        purchase=bought,
        served=Served.of(point),
    )
    return {**row, "dataset": point.get("dataset"), "batch_size": point.get("batch_size")}


def _offloaded(offload: str | None, bought: Purchase, power: Power, given: Settings) -> tuple[list[str], bool]:
    """Notes on what weights lie on outside the devices, and whether its price is lacking in the whole."""
    part = {"dram": "dram", "ssd": "ssd"}.get(offload or "none")
    if part is None:
        return [], False
    notes, lacking = [], False
    if bought.components.get(part) is None and given.hardware_usd is None:
        lacking = bought.components.get("unsplit") is None
        where = "has no price" if lacking else "is not told apart in the host's price"
        notes.append(f"weights are offloaded to {part.upper()}, which {where}")
    if power.components.get(part) is None and power.components.get("host") is None:
        notes.append(f"the power of the {part.upper()} that weights are offloaded to is not counted")
    return notes, lacking


def prefill_time_share(point: Mapping[str, Any]) -> float | None:
    """Share of the steps' time that prefill took; None where the metrics do not say."""
    names = ("requests", "prompt_tokens", "generated_tokens", "prefill_tokens_per_s", "decode_tokens_per_s")
    requests, prompt, generated, prefill_rate, decode_rate = (point.get(n) for n in names)
    if not prompt or not prefill_rate:
        return None
    decoded = (generated or 0) - (requests or 0)  # the first token of a request comes out of its prefill
    decode_s = decoded / decode_rate if decode_rate and decoded > 0 else 0.0
    return prompt / prefill_rate / (prompt / prefill_rate + decode_s)


HOSTS_SCHEMA = schema(
    "hardware gpu devices whole_usd gpus_usd purchase_error whole_w gpus_w power_error lifetime_error price_status "
    "covers",
    *(DEPLOYMENT, COST, HOSTS),
    about={"hardware": {"label": "server"}, "devices": {"label": "GPUs"}, "price_status": {"label": "price"}},
)


def hosts_table(hardware: Hardware, names: Iterable[str], cost: Mapping[str, Any]) -> pa.Table:
    """How far costing the GPUs alone would be off, for full servers of the catalogue: ``HOSTS_SCHEMA``.

    Raises:
        MoecapError: unknown hardware, or one without a price.
    """
    given = settings(cost, hardware)
    rows = []
    for name in names:
        system = hardware.find(name)
        devices = system.server.slots if system.server else 1
        row = deployment_cost(system, devices, None, given)
        gpus = system.gpus_usd(devices, system.purchase(devices))
        alone = row["power_covers"] == "gpu"
        rows.append(
            {
                "hardware": name,
                "gpu": system.gpu_name,
                "devices": devices,
                "whole_usd": row["hardware_usd"],
                "gpus_usd": None if gpus is None else gpus.value,
                "purchase_error": row["gpu_only_purchase_error"],
                "whole_w": None if alone else row["power_w"],
                "gpus_w": row["estimated_gpu_w"],
                "power_error": None if alone else row["gpu_only_energy_error"],
                "lifetime_error": row["gpu_only_error"],
                "price_status": row["price_status"],
                "covers": row["power_covers"],
            }
        )
    return pa.Table.from_pylist(rows, schema=HOSTS_SCHEMA)
