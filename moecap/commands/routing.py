"""``moecap routing WHAT [RESULTS]``: drift, placements of experts and depths of draft, from traces."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from moecap.errors import MoecapError

WHAT = {
    "drift": "share of expert choices that change between precisions, beside the accuracy",
    "ranks": "expert parallelism: tokens and bytes of the busiest rank, by placement",
    "drafts": "speculative decoding: bytes of weights per token, by depth of the draft",
}


def add_parser(subparsers: Any) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser(
        "routing",
        help="what traces say of drift between precisions, of expert parallelism and of speculative decoding",
        epilog="; ".join(f"{name}: {text}" for name, text in WHAT.items()),
    )
    parser.add_argument("what", choices=tuple(WHAT))
    parser.add_argument("results", nargs="?", default="results", help="a campaign's folder; default results")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="ranks: over how many experts lie; default 2")
    parser.add_argument("--redundant", type=int, default=0, metavar="N", help="ranks: further copies of busy experts")
    parser.add_argument(
        "--placement", metavar="FILE", help="ranks: yours, a JSON list of the experts of each rank, beside the others"
    )
    parser.add_argument(
        "--acceptance", type=float, default=0.7, metavar="P", help="drafts: share accepted of each drafted token"
    )
    parser.add_argument("--format", choices=("table", "csv", "md", "json"), default="table")
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="as --format json")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the rows."""
    import pandas as pd

    from moecap.commands.show import print_rows
    from moecap.routing.analyse import Traces, draft_rows, drift_rows, rank_rows

    traces = Traces.of(args.results)
    rows = {
        "drift": lambda: drift_rows(traces),
        "ranks": lambda: rank_rows(traces, args.ranks, args.redundant, _placement(args.placement)),
        "drafts": lambda: draft_rows(traces, args.acceptance),
    }
    found = pd.DataFrame(list(rows[args.what]()))
    if found.empty:
        why = "it has one precision of each model" if args.what == "drift" and traces.deployments else "no routing kept"
        print(f"{args.results}: nothing to show ({why}).", file=sys.stderr)
    print_rows(found, args.format)
    return 0


def _placement(path: str | None) -> list[list[int]] | None:
    from moecap.io import read_json

    if path is None:
        return None
    if not Path(path).is_file():
        raise MoecapError(f"--placement {path} does not exist; a JSON list of the experts of each rank is expected.")
    found = read_json(path)
    sound = isinstance(found, list) and found and all(isinstance(rank, list) for rank in found)
    if not sound or not all(isinstance(e, int) and not isinstance(e, bool) for rank in found for e in rank):
        raise MoecapError(f"--placement {path}: a list of each rank's experts is expected, as in [[0, 1], [2, 3]].")
    return found
