"""What devices cost to rent, and what others ask for a model's tokens: the catalogue's offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moecap.cost.settings import Settings
from moecap.hardware.entries import SOURCED, Range, plain_name
from moecap.hardware.systems import System


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


def spot_usd_per_hour(system: System, devices: int, given: Settings) -> tuple[Range | None, str | None]:
    if given.spot is None:
        return None, None
    if given.spot.usd_per_device_hour is not None:
        return _given(given.spot.usd_per_device_hour * devices)
    return rental_usd_per_hour(system, devices, "spot")


def serverless_usd_per_s(system: System, devices: int, given: Settings) -> tuple[Range | None, str | None]:
    if given.serverless is None:
        return None, None
    if given.serverless.usd_per_device_second is not None:
        return _given(given.serverless.usd_per_device_second * devices)
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
