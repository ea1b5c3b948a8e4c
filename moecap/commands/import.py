"""``moecap import``: public result files as a CAP table, with costs from our catalogue."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from typing import Any

from moecap.errors import MoecapError
from moecap.hardware.catalogue import load
from moecap.io import write_parquet
from moecap.plan.cases import cases_of
from moecap.plan.formats import FORMATS, read_all
from moecap.plan.importing import import_rows, import_table
from moecap.plan.points import Point, unique
from moecap.provenance import provenance


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser("import", help="public result files as a CAP table")
    parser.add_argument("paths", nargs="+", metavar="FILE", help=f"of: {', '.join(m.NAME for m in FORMATS)}")
    parser.add_argument("--output", required=True, metavar="FILE", help="the CAP table (Parquet)")
    parser.add_argument("--hardware", metavar="ENTRY", help="what it ran on, where a file does not say so")
    parser.add_argument("--devices", type=int, metavar="N", help="how many, where a file does not say so")
    parser.add_argument("--precision", metavar="P", help="of the weights, where a file does not say so")
    parser.add_argument("--years", type=float, default=3.0, metavar="Y")
    parser.add_argument("--region", default="us-average")
    parser.add_argument("--catalogue", help="folder of models.yaml and hardware.yaml")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    hardware = load(args.catalogue)
    given = {"hardware": args.hardware, "devices": args.devices, "precision": args.precision}
    points = [
        replace(p, **{k: v for k, v in given.items() if v is not None and getattr(p, k) is None})
        for p in read_all(args.paths)[0]
        if isinstance(p, Point)
    ]
    cases, rest = cases_of(unique(points), hardware, args.catalogue)
    reasons = Counter(reason for _, reason in rest).most_common()
    if not cases:
        why = f" {reasons[0][1]} of them: {reasons[0][0]}." if reasons else ""
        raise MoecapError(f"None of {len(points)} rows could be imported.{why} --hardware, --devices and --precision "
                          "say what a file leaves out.")  # fmt: skip
    rows = import_rows(cases, hardware, {"years": args.years, "region": args.region})
    write_parquet(import_table(rows, {**provenance(), "imported": args.paths}), args.output)
    print(f"{len(rows):,} rows of {len(points):,} points written to {args.output}, all marked as imported")
    for reason, number in reasons:
        print(f"{number:6,} left out: {reason}")
    return 0
