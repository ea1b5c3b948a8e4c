"""``moecap validate CONFIG``: what the workflow checks when it starts, without Snakemake."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from moecap.errors import Mistakes, MoecapError


def add_parser(subparsers: Any) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser("validate", help="check a config, its deployment table and its catalogues")
    parser.add_argument(
        "config", metavar="CONFIG", nargs="+", help="a config file, such as config/config.yaml; later ones lie over it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, the mistakes in it")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print what the config asks for, or (status 1) all that is wrong, a line each."""
    from moecap.cluster.start import start

    name = " + ".join(args.config)
    try:
        campaign = start(args.config).campaign
    except MoecapError as error:
        if not args.json:
            raise
        print(json.dumps({"config": name, "valid": False, "mistakes": _mistakes(error)}))
        return 1
    rows = campaign.deployments.values()
    summary = {
        "config": name,
        "valid": True,
        "deployments": len(campaign.deployments),
        "variants": len(campaign.graph.variants),
        "points": sum(len(row.datasets) * len(row.batch_sizes) for row in rows),
        "warnings": campaign.warnings,
    }
    if args.json:
        print(json.dumps(summary))
        return 0
    for warning in campaign.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{name} is valid: {summary['deployments']} deployments of {summary['variants']} model variants, "
        f"{summary['points']} points to measure."
    )
    return 0


def _mistakes(error: MoecapError) -> list[dict[str, Any]]:
    if not isinstance(error, Mistakes):
        return [{"file": None, "line": None, "entry": None, "key": None, "message": str(error)}]
    return [
        {"file": m.place.file, "line": m.place.line, "entry": m.place.entry, "key": m.key, "message": m.text}
        for m in error.mistakes
    ]
