"""``moecap cost``: purchase, energy and cost per token of a deployment (equations 5-7)."""

from __future__ import annotations

import argparse
import json
from typing import Any

from moecap.cost.deployment import deployment_cost
from moecap.cost.settings import settings
from moecap.errors import MoecapError
from moecap.hardware import gpus
from moecap.hardware.catalogue import Hardware, load

DEFAULT_REGION = "us-average"


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "cost", help="purchase, energy and cost per token of a deployment (equations 5-7)"
    )
    parser.add_argument(
        "--hardware",
        required=True,
        metavar="ENTRY",
        help="a server or GPU of the hardware catalogue; `detected`: the entry that lists what this machine's driver "
        "calls its GPUs, or `this-machine` where it has none",
    )
    parser.add_argument("--devices", required=True, type=int, metavar="N", help="GPUs (or machines without GPUs)")
    parser.add_argument("--tokens-per-s", required=True, type=float, metavar="X", help="generated tokens per second")
    parser.add_argument("--power-w", type=float, metavar="W", help="mean power of the whole deployment; default: TDPs")
    parser.add_argument("--years", type=float, default=3.0, metavar="Y", help="lifetime; a year is 8,766 h (default 3)")
    price = parser.add_mutually_exclusive_group()
    price.add_argument("--usd-per-kwh", type=float, metavar="P", help="price of electricity")
    price.add_argument("--region", help=f"electricity price of a region of the catalogue (default {DEFAULT_REGION})")
    parser.add_argument("--pue", type=float, default=1.0, help="power usage effectiveness of the site (default 1)")
    parser.add_argument("--utilisation", type=float, default=1.0, help="share of the lifetime under load (default 1)")
    parser.add_argument("--catalogue", help="folder of hardware.yaml (default config/catalogue)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if args.devices < 1:
        raise MoecapError(f"--devices is {args.devices}; at least 1 is needed.")
    hardware = load(args.catalogue)
    region = None if args.usd_per_kwh is not None else (args.region or DEFAULT_REGION)
    given = settings(
        {
            "years": args.years,
            "usd_per_kwh": args.usd_per_kwh,
            "region": region,
            "pue": args.pue,
            "utilisation": args.utilisation,
        },
        hardware,
    )
    name = _detected(hardware) if args.hardware == "detected" else args.hardware
    row = deployment_cost(
        hardware.find(name, "--hardware"), args.devices, args.tokens_per_s, given, power_w=args.power_w
    )
    row = {"hardware": name, "devices": args.devices, "output_tokens_per_s": args.tokens_per_s, **row}
    print(json.dumps(row, allow_nan=False) if args.json else describe(row))
    return 0


def _detected(hardware: Hardware) -> str:
    """The entry for the GPUs that are visible here; `this-machine` without any.

    Raises:
        MoecapError: what is visible is a part of a card.
    """
    _, seen = gpus.detect()
    if not seen:
        return "this-machine"
    if seen[0].get("partition"):
        raise MoecapError(
            f"The GPU that is visible here is a part ({seen[0]['partition']}) of a {seen[0]['name']}: it has no price "
            "of its own. Name the hardware with --hardware."
        )
    return hardware.match_gpu(seen[0]["name"], seen[0]["memory_bytes"])


def describe(row: dict[str, Any]) -> str:
    """The figures for a reader."""

    def interval(name: str, form: str) -> str:
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        return "" if low is None or high is None else f"   ({low:{form}} to {high:{form}})"

    lines = [f"{row['devices']} x {row['hardware']}, {row['output_tokens_per_s']:,g} token/s", ""]
    for name, unit, form in (
        ("hardware_usd", "USD", ",.2f"),
        ("power_w", "W", ",.1f"),
        ("energy_kwh", "kWh", ",.0f"),
        ("energy_usd", "USD", ",.2f"),
        ("usd_per_million_tokens", "USD", ",.4f"),
        ("tokens_per_usd", "1/USD", ",.0f"),
        ("tokens_per_kwh", "1/kWh", ",.0f"),
        ("joules_per_token", "J", ",.3f"),
        ("tokens_per_s_per_kw", "1/(s kW)", ",.1f"),
        ("capital_share", "", ".1%"),
        ("gpu_only_error", "", "+.1%"),
        ("rental_usd_per_million_tokens", "USD", ",.4f"),
    ):
        value = row[name]
        lines.append(f"{name:32} {'unknown' if value is None else f'{value:{form}} {unit}'}{interval(name, form)}")
    lines += [
        "",
        f"over {row['lifetime_years']:g} years at {row['usd_per_kwh']:g} USD/kWh, PUE {row['pue']:g}; "
        f"power {row['energy_source']} ({row['power_covers'] or 'nothing'})",
        f"prices {row['price_status']}: {row['price_source']}",
    ]
    if row["price_notes"]:
        lines.append(f"note: {row['price_notes']}")
    if row["figures_unverified"]:
        lines.append("note: a figure behind this is fitted, assumed or unverified; see its entry in the catalogue")
    return "\n".join(lines)
