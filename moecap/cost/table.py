"""Cost of measured points, and how far costing the GPUs alone would be off, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from moecap.columns.base import schema
from moecap.columns.cost import COST, ENERGY, HOSTS
from moecap.columns.deployment import DEPLOYMENT, POINT
from moecap.cost.deployment import deployment_cost
from moecap.cost.figures import Served
from moecap.cost.offers import api_prices
from moecap.cost.settings import Settings, settings
from moecap.errors import MoecapError
from moecap.hardware.catalogue import Hardware
from moecap.hardware.entries import COMPONENTS
from moecap.hardware.systems import Power, Purchase, System

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
    measured = point.get("energy_source") not in (None, "estimated")
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
