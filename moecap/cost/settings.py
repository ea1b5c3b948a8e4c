"""The terms of a config, looked up in the catalogue: what money and energy cost for one deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moecap.cost.terms import Cost, CostTerms, Elastic, Serverless, Spot
from moecap.errors import MoecapError, Place, nearest
from moecap.hardware.catalogue import Hardware
from moecap.hardware.entries import Range
from moecap.schema import check

FREE = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Settings:
    """What money and energy cost; :func:`settings` makes it from a config. ``seed`` is that of the intervals' draws."""

    years: float = 3.0
    usd_per_kwh: Range = FREE
    pue: float = 1.0
    utilisation: float = 1.0
    electricity_status: str = "assumption"
    electricity_source: str = "given"
    hardware_usd: float | None = None
    rental_plan: str = "on_demand"
    rental_usd_per_device_hour: float | None = None
    spot: Spot | None = None
    elastic: Elastic | None = None
    serverless: Serverless | None = None
    seed: int = 0


def settings(given: Mapping[str, Any], hardware: Hardware, deployment: str | None = None) -> Settings:
    """The ``cost`` part of a config, as it holds for a deployment.

    Args:
        given: as :class:`moecap.cost.terms.Cost` describes it; null is as not given.
        hardware: where regions and sites are looked up.
        deployment: whose overrides (``deployments``) apply; None: nobody's.

    Raises:
        Mistakes: an unknown key, a lifetime that is not positive, a negative price …
        MoecapError: an unknown region or site, no price of electricity.
    """
    terms = check(Cost, {key: value for key, value in given.items() if value is not None}, lambda _: Place("cost"))
    own = terms.deployments.get(deployment) if deployment is not None else None
    electricity, status, source = _electricity(own, terms, hardware)
    return Settings(
        years=_own(own, terms, "years"),
        usd_per_kwh=electricity,
        pue=_pue(_own(own, terms, "pue"), hardware),
        utilisation=_own(own, terms, "utilisation"),
        electricity_status=status,
        electricity_source=source,
        **{
            key: _own(own, terms, key)
            for key in (
                *("hardware_usd", "rental_plan", "rental_usd_per_device_hour"),
                *("spot", "elastic", "serverless"),
            )
        },
    )


def _own(own: CostTerms | None, terms: Cost, key: str) -> Any:
    """What a deployment has of its own, else what holds for all."""
    value = getattr(own, key) if own is not None else None
    return getattr(terms, key) if value is None else value


def _electricity(own: CostTerms | None, terms: Cost, hardware: Hardware) -> tuple[Range, str, str]:
    """Price of electricity, its status and source: a deployment's own price or region goes before both of all's."""
    for given in filter(None, (own, terms)):
        if given.usd_per_kwh is not None:
            return Range(given.usd_per_kwh, given.usd_per_kwh, given.usd_per_kwh), "assumption", "given"
        if given.region:
            price = hardware.region(given.region).usd_per_kwh
            return price.usd(), price.status, f"{price.source} ({price.date or 'undated'}, {price.status})"
    raise MoecapError(
        f"cost: neither `usd_per_kwh` nor `region` is given. {nearest('', hardware.electricity)} Give one of them."
    )


def _pue(given: float | str, hardware: Hardware) -> float:
    """A figure, or that of a site of the catalogue."""
    return hardware.site(given, "cost: `pue`").pue if isinstance(given, str) else given
