"""``moecap validate CONFIG``: what the workflow checks when it starts, without Snakemake."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser("validate", help="check a config, its deployment table and its catalogues")
    parser.add_argument("config", metavar="CONFIG", help="a config file, such as config/config.yaml")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print what the config asks for; an error ends with status 1 and one paragraph."""
    from moecap.campaign.campaign import Campaign
    from moecap.schema import read_yaml

    campaign = Campaign(read_yaml(args.config) or {}, args.config)
    rows = campaign.deployments.values()
    summary = {
        "config": args.config,
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
        f"{args.config} is valid: {summary['deployments']} deployments of {summary['variants']} model variants, "
        f"{summary['points']} points to measure."
    )
    return 0
