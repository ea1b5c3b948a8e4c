"""``moecap leaderboard A.tar.zst B.tar.zst … --output DIR``: many archives as one static site."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser(
        "leaderboard",
        help="merge archives into one static site",
        description="Verify archives, merge their points, and write a site that opens from disk or any static host. "
        "Given an existing leaderboard as --output, archives are added to it; those that it has are not read again.",
        epilog="example: moecap leaderboard a.tar.zst b.tar.zst --output site",
    )
    parser.add_argument("archives", metavar="ARCHIVE", nargs="+", help="what `snakemake archive` made (.tar.zst)")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="the site: new, or made before")
    parser.add_argument("--title", help="of the site")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Merge, and say what came of it."""
    from moecap.report.leaderboard import build

    found = build(args.archives, args.output, args.title)
    text = (
        f"{found['index']}: {found['shown']} points of {found['deployments']} deployments from {found['archives']} "
        f"archives, {found['read']} of them read now."
    )
    older = found["points"] - found["shown"]
    text += f" {older} older measurements of the same points are kept in data.parquet." if older else ""
    print(json.dumps(found) if args.json else text)
    return 0
