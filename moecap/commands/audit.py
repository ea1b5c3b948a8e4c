"""``moecap audit``: whether published figures are possible, and what would explain them if not."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from moecap.hardware.catalogue import load
from moecap.plan.audit import audit, consistency, in_words
from moecap.plan.cases import cases_of
from moecap.plan.formats import FORMATS, read_all
from moecap.plan.points import Point


def add_parser(subparsers: Any) -> None:
    """Add the command's parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser("audit", help="whether published figures are possible")
    parser.add_argument("paths", nargs="+", metavar="FILE", help=f"of: {', '.join(m.NAME for m in FORMATS)}")
    parser.add_argument("--catalogue", help="folder of models.yaml and hardware.yaml")
    parser.add_argument("--all", action="store_true", help="every finding, not one example of each")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    hardware = load(args.catalogue)
    points = [p for p in read_all(args.paths)[0] if isinstance(p, Point)]
    cases, rest = cases_of(points, hardware, args.catalogue)
    found = audit(cases, hardware) + [f for point, _ in rest for f in consistency(point)]
    unknown = Counter(reason for _, reason in rest)
    if args.json:
        kinds = Counter(f.kind for f in found)
        print(json.dumps({"rows": len(points), "kinds": kinds, "unknown": unknown,
                          "findings": [asdict(f) for f in found]}))  # fmt: skip
        return 0
    print(in_words(found, len(points)))
    for reason, number in unknown.most_common():
        print(f"{number:6,} not held against the hardware: {reason}")
    if args.all:
        print("\n".join(f"{f.source}: {f.kind}: {f.problem}; {f.explanation}" for f in found))
    return 0
