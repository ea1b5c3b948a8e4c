"""``moecap compare A B``: two archives side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser("compare", help="lay two archives side by side")
    parser.add_argument("a", metavar="A", help="archive to compare with (.tar.zst)")
    parser.add_argument("b", metavar="B", help="archive that got better or worse")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write a page")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write Markdown")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Compare, print, and write what was asked for."""
    from moecap.io import atomic_path
    from moecap.report.compare import compare

    found = compare(args.a, args.b)
    for path, text in ((args.html, found.html), (args.markdown, found.markdown)):
        if path:
            with atomic_path(path) as temporary:
                temporary.write_text(text(), encoding="utf-8")
    print(json.dumps(found.to_json(), allow_nan=False) if args.json else found.markdown())
    return 0
