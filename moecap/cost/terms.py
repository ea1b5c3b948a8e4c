"""What a user says about money and energy: the `cost` part of a config, and its one check."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moecap.schema import Name, Strict


class Spot(Strict):
    """Rented instances that may be taken away."""

    usd_per_device_hour: float | None = Field(default=None, ge=0, description="null: the catalogue's spot offers")
    interruptions_per_hour: float = Field(ge=0, description="how often an instance is taken away")
    restart_s: float = Field(ge=0, description="paid seconds per interruption in which nothing is generated")


class Elastic(Strict):
    """Rented replicas that follow a demand."""

    demand_tokens_per_s: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        min_length=1, description="demand of each hour of a day (or week), which repeats"
    )
    least_replicas: int = Field(default=0, ge=0, description="kept however low the demand is")
    scale_up_s: float = Field(default=0.0, ge=0, description="paid seconds before a new replica serves")


class Serverless(Strict):
    """Workers paid by the second."""

    usd_per_device_second: float | None = Field(default=None, ge=0, description="null: the catalogue's offers")
    requests_per_hour: float = Field(gt=0, description="requests, arriving at random, one served at a time")
    tokens_per_request: float | None = Field(default=None, gt=0, description="null: as in the timed run")
    cold_start_s: float = Field(ge=0, description="paid seconds before a stopped worker serves")
    keep_warm_s: float = Field(default=0.0, ge=0, description="paid idle seconds before a worker stops")


Pue = Annotated[float, Field(ge=1.0, le=10.0)] | Name
PUE = "power usage effectiveness of the site: a figure, or a site of the catalogue"


class CostTerms(Strict):
    """What money and energy cost; null: as for all deployments."""

    years: float | None = Field(default=None, gt=0, le=100, description="life of the hardware; a year is 8,766 h")
    region: str | None = Field(default=None, description="electricity price by region of the catalogue")
    usd_per_kwh: float | None = Field(default=None, ge=0, le=1000, description="overrides the region's price")
    pue: Pue | None = Field(default=None, description=PUE)
    utilisation: float | None = Field(default=None, gt=0, le=1, description="share of the lifetime under load")
    hardware_usd: float | None = Field(
        default=None, ge=0, description="price of a whole deployment, instead of the catalogue's"
    )
    rental_plan: Literal["on_demand", "reserved", "spot", "index"] | None = Field(
        default=None, description="which of the catalogue's rental offers"
    )
    rental_usd_per_device_hour: float | None = Field(
        default=None, ge=0, description="rent of one device, instead of the catalogue's offers"
    )
    spot: Spot | None = Field(default=None, description="spot instances, as a further way to rent")
    elastic: Elastic | None = Field(default=None, description="replicas that follow a demand, at the rental price")
    serverless: Serverless | None = Field(default=None, description="workers paid by the second")


class Cost(CostTerms):
    """What money and energy cost. Prices of devices are in the hardware catalogue."""

    years: float = Field(default=3.0, gt=0, le=100, description="life of the hardware; a year is 8,766 h")
    pue: Pue = Field(default=1.0, description=PUE)
    utilisation: float = Field(default=1.0, gt=0, le=1, description="share of the lifetime under load")
    rental_plan: Literal["on_demand", "reserved", "spot", "index"] = Field(
        default="on_demand", description="which of the catalogue's rental offers"
    )
    deployments: dict[Name, CostTerms] = Field(
        default={}, description="any of these keys for one deployment: deployment -> {key: value}"
    )
