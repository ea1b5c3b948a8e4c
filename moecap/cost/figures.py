"""Every figure that follows from prices, power and throughput, and its 95% interval by Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecap.cost.equations import (
    SECONDS_PER_HOUR,
    Values,
    elastic_usd_per_million_tokens,
    energy_kwh,
    joules_per_token,
    mean_power_w,
    rental_usd_per_million_tokens,
    run_usd,
    serverless_usd_per_million_tokens,
    split_usd_per_million_tokens,
    spot_usd_per_million_tokens,
    tokens_per_kwh,
    tokens_per_s_per_kw,
    usd_per_token,
)
from moecap.cost.settings import Settings
from moecap.hardware.entries import Range
from moecap.metrics.intervals import Z95

DRAWS = 4000


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
        return cls(**{name: point.get(name) for name in names}, prefill_share=prefill_time_share(point))


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
class Inputs:
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
class InputRanges:
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

    def middle(self) -> Inputs:
        """The figures themselves."""

        def value(of: Range | None) -> float | None:
            return None if of is None else of.value

        return Inputs(
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

    def draws(self, seed: int) -> Inputs:
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
        return Inputs(
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


def all_figures(x: Inputs, idle_w: float | None, given: Settings, served: Served) -> dict[str, Any]:
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


def _bought(x: Inputs, kwh: Values, energy_usd: Values, given: Settings, served: Served) -> dict[str, Any]:
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


def _rented(x: Inputs, given: Settings, served: Served) -> dict[str, Any]:
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
                given.elastic.demand_tokens_per_s,
                given.elastic.least_replicas,
                given.elastic.scale_up_s,
            )
    if x.spot_usd_per_hour is not None and given.spot is not None:
        found["spot_usd_per_million_tokens"] = spot_usd_per_million_tokens(
            x.spot_usd_per_hour,
            x.tokens_per_s,
            given.spot.interruptions_per_hour,
            given.spot.restart_s,
            given.utilisation,
        )
    if x.serverless_usd_per_s is not None and given.serverless is not None:
        tokens = given.serverless.tokens_per_request
        if tokens is None and served.requests and served.generated_tokens:
            tokens = served.generated_tokens / served.requests
        if tokens is not None:
            found["serverless_usd_per_million_tokens"] = serverless_usd_per_million_tokens(
                x.serverless_usd_per_s,
                x.tokens_per_s,
                given.serverless.requests_per_hour,
                tokens,
                given.serverless.cold_start_s,
                given.serverless.keep_warm_s,
            )
    return found


def interval(value: float | None, low: float | None, high: float | None) -> Range | None:
    if value is None:
        return None
    return Range(value, value if low is None else low, value if high is None else high)


def scaled(total_w: float | None, measured_w: float | None, low_w: float | None, high_w: float | None) -> Range | None:
    """The interval of a measured power, moved by what was added to it as an estimate."""
    if total_w is None or measured_w is None or low_w is None or high_w is None:
        return interval(total_w, None, None)
    return Range(total_w, low_w + total_w - measured_w, high_w + total_w - measured_w)


def intervals(
    row: Mapping[str, Any], ranges: InputRanges, idle_w: float | None, given: Settings, served: Served
) -> dict[str, Any]:
    """95% intervals by Monte Carlo with a fixed seed; a price's own is its whole range."""
    found: dict[str, Any] = {f"{name}_{end}": None for name in UNCERTAIN for end in ("low", "high")}
    if not ranges.known:
        return found
    figures = all_figures(ranges.draws(given.seed), idle_w, given, served)
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


#: Where nothing was timed.
NOTHING_SERVED = Served()


def prefill_time_share(point: Mapping[str, Any]) -> float | None:
    """Share of the steps' time that prefill took; None where the metrics do not say."""
    names = ("requests", "prompt_tokens", "generated_tokens", "prefill_tokens_per_s", "decode_tokens_per_s")
    requests, prompt, generated, prefill_rate, decode_rate = (point.get(n) for n in names)
    if not prompt or not prefill_rate:
        return None
    decoded = (generated or 0) - (requests or 0)  # the first token of a request comes out of its prefill
    decode_s = decoded / decode_rate if decode_rate and decoded > 0 else 0.0
    return prompt / prefill_rate / (prompt / prefill_rate + decode_s)
