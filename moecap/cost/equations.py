"""The cost model of the paper's section 5: purchase (5), energy (6) and cost per token (7), with units in every name.

The functions take plain numbers or arrays. One A100 server of the paper, 139.08 token/s, four GPUs at their TDP:

>>> round(energy_kwh(power_w=1600, years=3))
42077
>>> usd = usd_per_token(hardware_usd=92_104.2, energy_kwh=42_076.8, usd_per_kwh=0.1, tokens_per_s=139.08, years=3)
>>> round(usd * 1e6, 2)
7.31

A year is 8,766 hours. The lifetime R is full time; of it ``utilisation`` is under load. Generated tokens are the
T_token of equation (7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moecap.errors import MoecapError

HOURS_PER_YEAR = 8766.0
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6
Values = Any  # a number or a NumPy array


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
    must_not_be_negative(interruptions_per_hour=interruptions_per_hour, restart_s=restart_s)
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
    must_be_positive(requests_per_hour=requests_per_hour, tokens_per_request=tokens_per_request)
    must_not_be_negative(cold_start_s=cold_start_s, keep_warm_s=keep_warm_s)
    rate = requests_per_hour / SECONDS_PER_HOUR
    cold = math.exp(-rate * keep_warm_s)
    paid_s = tokens_per_request / tokens_per_s + cold * cold_start_s + (1.0 - cold) / rate
    return usd_per_s * paid_s / tokens_per_request * 1e6


def run_usd(
    hardware_usd: Values, energy_usd: Values, years: Values, seconds: Values, utilisation: Values = 1.0
) -> Values:
    """Cost of running the deployment for so many seconds: its share of the life under load."""
    return (hardware_usd + energy_usd) * seconds / (years * HOURS_PER_YEAR * SECONDS_PER_HOUR * utilisation)


def split_usd_per_million_tokens(
    usd_per_hour: Values, prefill_share: Values, input_tokens_per_s: Values, output_tokens_per_s: Values
) -> tuple[Values, Values]:
    """USD per 10⁶ input and per 10⁶ output tokens apart, the hour split by the time that prefill takes of it.

    ``input × rate_in + output × rate_out`` is the whole cost of the hour.
    """
    per_input = usd_per_hour * prefill_share / (input_tokens_per_s * SECONDS_PER_HOUR) * 1e6
    per_output = usd_per_hour * (1.0 - prefill_share) / (output_tokens_per_s * SECONDS_PER_HOUR) * 1e6
    return per_input, per_output


def must_be_positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise MoecapError(f"cost: `{name}` is {value:g}; it must be positive.")


def must_not_be_negative(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value >= 0):
            raise MoecapError(f"cost: `{name}` is {value:g}; it must not be negative.")
