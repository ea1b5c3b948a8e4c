"""``moecap report --archive FILE``: charts and report again, from an archive alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the console script."""
    parser = subparsers.add_parser("report", help="redraw charts and report from an archive, or verify one")
    parser.add_argument("--archive", metavar="FILE", required=True, help="what `snakemake archive` made (.tar.zst)")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="where report.html and charts/ go; default: named after the archive",
    )
    parser.add_argument("--verify", action="store_true", help="only compare every file with its checksum")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Verify the archive, and draw unless only that was asked for."""
    from moecap.archive.read import verify
    from moecap.report.redraw import redraw

    if args.verify:
        found = verify(args.archive)
        text = f"{args.archive}: {found['files']} files, every one as its checksum says. sha256 {found['sha256']}"
    else:
        output = args.output or Path(Path(args.archive).name.removesuffix(".tar.zst") + "-report")
        found = redraw(args.archive, output)
        text = f"{found['report']} and {found['charts']}/, from {found['name']} (sha256 {found['sha256']})"
        text += "".join(f"\n{name} is not drawn: {why}" for name, why in found["not_drawn"].items())
    print(json.dumps(found) if args.json else text)
    return 0
